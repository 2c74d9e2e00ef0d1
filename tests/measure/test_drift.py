"""Drift: KL from the unedited model on its own text, against the definition row by row."""

from __future__ import annotations

import pytest
import torch
from alone import logits_alone, rows_of
from families import family

from mansu.measure.drift import TEXTS, TOKENS, Reference, texts
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task


def shifted(subject: Subject) -> Edit:
    name = subject.quantized_names[0]
    return Edit.between(subject.parameters, {name: 3 * subject.parameters[name]})


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_divergences_are_those_of_the_definition(name: str) -> None:
    subject = family(name)
    tokens = torch.randint(1, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    length = torch.tensor([7, 3, 5])
    reference = Reference.of(subject, tokens, length)
    assert reference.divergences(subject).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    rows = rows_of(tokens, length)
    with torch.no_grad():
        before = [logits_alone(subject, row).log_softmax(-1) for row in rows]
        with shifted(subject).applied(subject):
            found = reference.divergences(subject)
            after = [logits_alone(subject, row).log_softmax(-1) for row in rows]
    wanted = [float((p.exp() * (p - q)).sum(1).mean()) for p, q in zip(before, after, strict=True)]
    assert max(wanted) > 1e-4 and found.tolist() == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def test_texts_begin_as_the_tasks_and_go_on_by_themselves(tiny: Subject, tiny_task: Task) -> None:
    tokens, length = texts(tiny, tiny_task, seed=0)
    assert tokens.shape == (TEXTS, TOKENS) and bool((length <= TOKENS).all())
    written = {tuple(tiny.encode(f.prompt)[:3]) for f in tiny_task.split("text")}
    assert {tuple(row[:3]) for row in tokens.tolist()} <= written
    whole = {tuple(tiny.encode(f.prompt)) for f in tiny_task.split("text")}
    own = [tuple(row[:n]) for row, n in zip(tokens.tolist(), length.tolist(), strict=True)]
    assert not whole & set(own)
