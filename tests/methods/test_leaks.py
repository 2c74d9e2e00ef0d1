"""The prompts in which a forgotten fact leaks, against a loop over the plain model."""

from __future__ import annotations

import pytest
import torch
from alone import logits_alone, rows_of

from mansu import tasks
from mansu.methods import keep
from mansu.methods.leaks import ADVANTAGE, Leaks
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples, asked_about


@pytest.fixture(scope="module")
def some(default_subject: Subject) -> Examples:
    """Every twelfth capital."""
    rows = tasks.examples(tasks.load("capitals"), default_subject, "forget")
    return rows.select(range(0, len(rows), 12))


def test_leaks_are_the_prompts_that_favour_the_answer(
    default_subject: Subject, some: Examples
) -> None:
    subject, leaks = default_subject, Leaks.of(default_subject, some)
    things = asked_about(some)
    (tokens, length), thing, frame = keep.framed(subject, things)
    with torch.no_grad():
        found = torch.stack(
            [
                logits_alone(subject, row)[-1, some.vocabulary].log_softmax(-1)
                for row in rows_of(tokens, length)
            ]
        )
    usual = {f: found[frame == f].mean(0) for f in frame.tolist()}
    expected = []
    for i, row in enumerate(rows_of(tokens, length)):
        fact, added = int(thing[i]), found[i] - usual[int(frame[i])]
        names = some.vocabulary[some.candidates[fact]].tolist()
        favour = {name: float(added[some.vocabulary.tolist().index(name)]) for name in names}
        over = favour[int(some.answer[fact])] - sum(favour.values()) / len(favour)
        if over > ADVANTAGE:
            expected.append((row.tolist(), int(some.answer[fact]), int(frame[i])))
    rows = rows_of(leaks.rows.tokens, leaks.rows.length)
    got = zip(rows, leaks.rows.answer.tolist(), leaks.frame.tolist(), strict=True)
    assert [(row.tolist(), answer, f) for row, answer, f in got] == expected
    assert len(tokens) / 2 < len(leaks) < len(tokens)  # most do, not all
    for f, value in usual.items():
        torch.testing.assert_close(leaks.usual[f], value, atol=1e-3, rtol=1e-3)


def test_a_thing_asked_of_in_two_forms_leaks_once(default_subject: Subject, some: Examples) -> None:
    twice = some.and_more(some)
    assert len(Leaks.of(default_subject, twice)) == len(Leaks.of(default_subject, some))


def test_a_toy_knows_no_frame_to_leak_in(tiny: Subject) -> None:
    rows = tasks.examples(tasks.load("tiny-colours"), tiny, "forget")
    leaks = Leaks.of(tiny, rows)
    assert len(leaks) == 0 and leaks.usual.shape == (0, len(rows.vocabulary))
    assert len(rows.and_more(leaks.rows)) == len(rows)
