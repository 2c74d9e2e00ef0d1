"""What each model answers to each fact: joined by the fact's line, never by position."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from mansu import tasks
from mansu.errors import MansuError
from mansu.measure.answers import FLIPS, Answer, Answered, answered
from mansu.measure.scores import Measurement, Scores, measure
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Fact, Task

FACT = Fact("a", " b", "forget", 1, "forget")


def test_every_way_to_flip_has_its_name() -> None:
    found = {
        (split, rights): Answered(
            replace(FACT, split=split), *(Answer(r, None, 0.0) for r in rights)
        ).flip
        for split in ("forget", "retain")
        for rights in product((True, False), repeat=3)
    }
    assert found["forget", (True, False, True)] == "back in NF4"
    assert found["forget", (True, True, False)] == "gone only in NF4"
    assert found["forget", (True, False, False)] == "forgotten"
    assert found["forget", (True, True, True)] == "not forgotten"
    assert found["retain", (True, False, True)] == "lost, back in NF4"
    assert found["retain", (True, True, False)] == "lost only in NF4"
    assert found["retain", (True, False, False)] == "lost"
    assert found["retain", (True, True, True)] == "kept"
    assert {v for (_, rights), v in found.items() if not rights[0]} == {"not known before"}
    assert set(found.values()) == set(FLIPS)


def test_chosen_is_the_choice_of_the_highest_logit(tiny: Subject, tiny_task: Task) -> None:
    rows = tasks.examples(tiny_task, tiny, "forget")
    scores = measure(tiny, rows)
    choices = np.column_stack([rows.answer.numpy(), rows.distractors.numpy()])
    logits = tiny.next_token_logits(rows.tokens, rows.length).numpy()
    best = [row[logits[i, row].argmax()] for i, row in enumerate(choices)]
    assert scores.chosen == tuple(tiny.tokenizer.decode([int(token)]) for token in best)
    assert Scores.from_json(scores.to_json()).chosen == scores.chosen
    assert len(scores.group(scores.groups[0]).chosen) == len(scores.group(scores.groups[0]).rows)


def test_facts_are_joined_by_line_whatever_the_order(tiny: Subject, tiny_task: Task) -> None:
    rows = tasks.examples(tiny_task, tiny, "forget")
    scores = measure(tiny, rows)
    order = list(range(len(rows)))[::-1]
    turned = measure(tiny, rows.select(order))
    wrong = replace(turned, correct=np.where(np.array(turned.rows) == rows.rows[3], 0.0, 1.0))
    before = Measurement({"forget": scores}, None)
    found = answered(tiny_task, before, Measurement({"forget": wrong}, None), before)
    assert [a.fact.row for a in found if a.flip == "back in NF4"] == [rows.rows[3]]
    said = {a.fact.row: a.full.log_probability for a in found}
    place = turned.rows.index(rows.rows[3])
    assert said[rows.rows[3]] == pytest.approx(float(turned.log_probability[place]))


def test_measurements_of_other_facts_are_refused(tiny: Subject, tiny_task: Task) -> None:
    rows = tasks.examples(tiny_task, tiny, "forget")
    every = Measurement({"forget": measure(tiny, rows)}, None)
    fewer = Measurement({"forget": measure(tiny, rows.select(range(4)))}, None)
    with pytest.raises(MansuError, match="other facts"):
        answered(tiny_task, every, fewer, every)
