"""The signal: 1 in the unedited model, 0 where nothing tells one fact from another."""

from __future__ import annotations

import pytest
import torch
from alone import rows_of
from families import FAMILIES, family, known_examples

from mansu import tasks
from mansu.circuits.parameters import random_mask
from mansu.methods import keep
from mansu.methods.signal import Signal
from mansu.subjects.blocks import Block
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.subjects.weights import weight_name
from mansu.tasks.facts import Task
from mansu.tasks.tokens import Examples, entities


@pytest.fixture(scope="module")
def rows(tiny: Subject, tiny_task: Task) -> Examples:
    return tasks.examples(tiny_task, tiny, "forget")


@pytest.fixture(scope="module")
def signal(tiny: Subject, rows: Examples) -> Signal:
    every = {n: torch.ones_like(tiny.parameters[n], dtype=torch.bool) for n in tiny.quantized_names}
    return Signal(tiny, rows, random_mask(tiny, every, torch.Generator().manual_seed(0)).tensors())


def share(signal: Signal, rows: Examples) -> torch.Tensor:
    found, order = [], []
    with torch.no_grad():
        for pack in signal.subject.packs(rows.tokens, rows.length):
            with signal.watched() as seen:
                signal.subject.hidden(pack)
            found.append(signal.share(seen, pack.last, signal.forms[pack.rows]))
            order.append(pack.rows)
    return torch.cat(found)[torch.cat(order).argsort()]


def test_it_is_one_on_average_at_the_start(signal: Signal, rows: Examples) -> None:
    now = share(signal, rows)
    assert float(now.mean()) == pytest.approx(1, rel=1e-4) and float(now.std()) > 0.01
    assert sum(signal.weights.values()) == pytest.approx(1)


def test_it_is_gone_where_every_fact_writes_the_mean(
    tiny: Subject, signal: Signal, rows: Examples
) -> None:
    """Writers at zero write zero: what is left is the mean's own size, the same for every fact."""
    zero = {n: torch.zeros_like(tiny.parameters[n]) for n in signal.weights}
    with Edit.between(tiny.parameters, zero).applied(tiny):
        now = share(signal, rows)
    for form in signal.forms.unique().tolist():
        same = now[signal.forms == form]
        wanted = sum(
            weight * float(signal.means[n][form].norm() / signal.spreads[n][form])
            for n, weight in signal.weights.items()
        )
        assert same.tolist() == pytest.approx([wanted] * len(same), rel=1e-3)


def test_only_what_the_mask_has_is_looked_at(tiny: Subject, rows: Examples) -> None:
    name = weight_name(tiny, 1, "gate")
    mask = {name: torch.ones_like(tiny.parameters[name], dtype=torch.bool)}
    assert Signal(tiny, rows, mask).weights == {weight_name(tiny, 1, "down"): 1.0}


@pytest.mark.parametrize(
    "name", [name for name in FAMILIES if Block(family(name), 0).has_post_norms]
)
def test_it_is_of_what_the_stream_is_given(name: str) -> None:
    """A norm after a write undoes its scale, and so what is a tenth of it is all of the signal."""
    subject = family(name)
    rows = known_examples(subject, 12, 3)
    maps = [weight_name(subject, 1, role) for role in ("o", "down")]
    mask = {n: torch.ones_like(subject.parameters[n], dtype=torch.bool) for n in maps}
    found = Signal(subject, rows, mask)
    before = share(found, rows)
    assert float(before.std()) > 0.01
    less = {n: subject.parameters[n] * 0.5 for n in maps}
    with Edit.between(subject.parameters, less).applied(subject):
        assert torch.allclose(share(found, rows), before, rtol=0.01)


def test_what_is_kept_is_the_tasks_text_and_the_models_own(
    tiny: Subject, tiny_task: Task, rows: Examples
) -> None:
    text = tasks.text(tiny_task, tiny)
    tokens, length = keep.kept_text(tiny, text, rows)
    assert torch.equal(tokens[: len(text[0]), : text[0].shape[1]], text[0])
    begun = {tuple(row[:1]) for row in tokens[len(text[0]) :].tolist()}
    assert begun & {tuple(entity) for entity in entities(rows)}
    own = tokens[len(text[0]) :]
    assert not torch.isin(own, rows.vocabulary).any()  # no text says a forgotten answer
    assert bool((length >= 1).all())
    said = [str(tiny.tokenizer.decode(row)) for row in rows_of(own, length[len(text[0]) :])]
    assert all(sum(form in each for each in said) > 1 for form in ("home of", "food of"))
    assert any("opposite of" in each or "that is not" in each for each in said)  # of all it knows
    assert not any("[UNK]" in each for each in said)


def test_a_toy_that_knows_few_words_is_asked_of_nothing_else(tiny: Subject, rows: Examples) -> None:
    things = entities(rows)
    assert things and keep.common(tiny)
    for found in (keep.said_of(tiny, things), keep.prompts_of(tiny, things)):
        assert not len(found[0])


def test_of_things_much_else_is_said(default_subject: Subject) -> None:
    subject, things = default_subject, keep.common(default_subject)
    assert [subject.tokenizer.decode(thing) for thing in things] == [f" {w}" for w in keep.COMMON]
    said = [subject.tokenizer.decode(row) for row in rows_of(*keep.said_of(subject, things))]
    frames = keep.FRAMES[: keep.BEGINNINGS]
    assert said == [f.replace("_", f" {word}") for word in keep.COMMON for f in frames]
    rows = rows_of(*keep.prompts_of(subject, things))
    texts = {str(subject.tokenizer.decode(row)) for row in rows}
    assert len(texts) == len(rows) == keep.FRAMES_EACH * len(things)
    for frame in keep.FRAMES:  # each in its turn
        start = " " if frame.startswith("_") else ""
        assert texts & {start + frame.replace("_", word) for word in keep.COMMON}, frame
    nothing = [keep.said_of(subject, []), keep.prompts_of(subject, [])]
    assert [len(tokens) for tokens, _ in nothing] == [0, 0]
