"""Relearning: what it is compared with, and that it tells erasure from hiding."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mansu import tasks
from mansu.errors import BadInputError, MismatchError
from mansu.evidence.controls import Suppression
from mansu.evidence.relearning import Relearned, gained, halves, relearning
from mansu.methods import Problem, named
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task
from mansu.tasks.tokens import Examples


@pytest.fixture(scope="module")
def found(tiny: Subject, tiny_task: Task) -> dict[str, Relearned]:
    """The retrained reference, and a suppressor, which only hides the answer."""
    forget, retain = (tasks.examples(tiny_task, tiny, split) for split in tasks.NEEDED)
    text = tasks.text(tiny_task, tiny)
    retrained = named("retrained")(Problem(tiny, tiny_task, forget, retain, text)).edit
    hidden = Suppression(tiny, forget, retain).reaching(0.25)
    halved = halves(tiny_task, tiny)
    return {edit.label: relearning(tiny, tiny_task, edit, halved) for edit in (retrained, hidden)}


def test_a_suppressed_answer_comes_back_and_an_unknown_one_does_not(
    found: dict[str, Relearned],
) -> None:
    reference, hidden = found["retrained"], found["suppressor"]
    assert reference.before == hidden.before == 1.0
    assert hidden.curve[0].accuracy < 0.5  # it was hidden
    assert gained(hidden, reference).low > 0
    assert reference.steps_to(0.5) is None and hidden.steps_to(0.5) is not None
    assert gained(reference, reference).to_json() == [0, 0, 0]


def test_what_is_gained_is_probability_among_the_choices(found: dict[str, Relearned]) -> None:
    reference, hidden = found["retrained"], found["suppressor"]
    means = [np.mean([np.exp(s.choice) for s in r.curve[1:]]) for r in (hidden, reference)]
    assert gained(hidden, reference).value == pytest.approx(means[0] - means[1])


def test_the_smallest_task_that_can_be_used_can_be_halved(tiny: Subject, tiny_task: Task) -> None:
    """Four answers, one fact each: half of them alone would lack wrong answers."""
    first = {f.answer: f.fact for f in reversed(tiny_task.split("forget"))}
    some = set(list(first.values())[:4])
    facts = tuple(f for f in tiny_task.facts if f.split != "forget" or f.fact in some)
    known, asked = halves(replace(tiny_task, facts=facts), tiny)
    assert len(known) == len(asked) == 6 and not set(known.rows) & set(asked.rows)


@pytest.mark.parametrize("size", [4, 5, 7, 8])
def test_all_of_the_other_half_is_asked_in_groups_of_any_size(
    tiny: Subject, tiny_task: Task, size: int
) -> None:
    """Half of a small group may have too few wrong answers: its rows keep those of the whole."""
    opposites = tiny_task.split("holdout")
    names = list(dict.fromkeys(f.fact for f in opposites))
    groups = {name: f"group {i // size}" for i, name in enumerate(names[: 32 // size * size])}
    forget = [
        replace(f, split="forget", group=groups[f.fact]) for f in opposites if f.fact in groups
    ]
    task = replace(tiny_task, facts=(*forget, *tiny_task.split("retain")))
    known, asked = halves(task, tiny)
    assert sorted(known.rows + asked.rows) == [f.row for f in forget]
    answers: dict[str, set[int]] = {name: set() for name in asked.groups}
    for group, answer in zip(asked.groups, asked.answer.tolist(), strict=True):
        answers[group].add(answer)
    whole = tasks.examples(task, tiny, "forget")
    own = dict(zip(whole.rows, whole.distractors.tolist(), strict=True))
    for row, group, wrong in zip(asked.rows, asked.groups, asked.distractors.tolist(), strict=True):
        enough = len(answers[group]) > tasks.N_DISTRACTORS
        assert set(wrong) <= answers[group] if enough else wrong == own[row]


def test_only_the_same_questions_compare(tiny: Subject, found: dict[str, Relearned]) -> None:
    one = found["retrained"]
    other = Relearned(one.of, 1.0, tuple(s.group("none") for s in one.curve), {})
    with pytest.raises(MismatchError, match="other rows"):
        gained(one, other)


def test_it_is_saved_whole(found: dict[str, Relearned]) -> None:
    for value in found.values():
        again = Relearned.from_json(json.loads(json.dumps(value.to_json())))
        assert again.to_json() == value.to_json()
    with pytest.raises(ValueError, match="empty"):
        Relearned.from_json({"of": "x", "before": 1.0, "curve": [], "settings": {}})


def shared(known: Examples, asked: Examples) -> tuple[set[str], set[int], set[tuple[int, ...]]]:
    """Facts, answers and prompts that both halves hold."""

    def prompts(rows: Examples) -> set[tuple[int, ...]]:
        tokens, length = rows.tokens.tolist(), rows.length.tolist()
        return {tuple(row[:n]) for row, n in zip(tokens, length, strict=True)}

    answers = [set(half.answer.tolist()) for half in (known, asked)]
    facts = set(known.facts) & set(asked.facts)
    return facts, answers[0] & answers[1], prompts(known) & prompts(asked)


def test_where_answers_are_few_no_fact_is_in_both_halves(tiny: Subject, tiny_task: Task) -> None:
    """Seven colours: three templates of each fact, which rows dealt one by one would part."""
    gone = tiny_task.split("forget")[0].answer
    facts = tuple(f for f in tiny_task.facts if f.split != "forget" or f.answer != gone)
    for seed in range(3):
        known, asked = halves(replace(tiny_task, facts=facts), tiny, seed=seed)
        found, answers, prompts = shared(known, asked)
        assert not found and not prompts and answers
        assert len(known) == 42 and len(asked) == 42
        unnamed = tuple(replace(f, fact=None) for f in facts)
        known, asked = halves(replace(tiny_task, facts=(*unnamed, *unnamed[:84])), tiny, seed=seed)
        assert not shared(known, asked)[2]  # a prompt that is there twice is in one half


def test_where_answers_are_many_no_fact_and_no_prompt_is_either(
    tiny: Subject, tiny_task: Task
) -> None:
    """A fact of two answers, and a prompt of two, hold together what answers alone would part."""
    forget = list(tiny_task.split("forget"))
    colours = sorted({f.answer for f in forget})
    by_answer = {c: [i for i, f in enumerate(forget) if f.answer == c] for c in colours}
    first, second, third, fourth = (by_answer[c][0] for c in colours[:4])
    forget[second] = replace(forget[second], fact=forget[first].fact)
    forget[fourth] = replace(forget[fourth], prompt=forget[third].prompt)
    others = tuple(f for f in tiny_task.facts if f.split != "forget")
    for seed in range(8):
        halved = halves(replace(tiny_task, facts=(*forget, *others)), tiny, seed=seed)
        assert all(len(half) for half in halved) and not any(shared(*halved))


def test_one_fact_cannot_be_halved_however_often_it_is_asked(
    tiny: Subject, tiny_task: Task
) -> None:
    one = tiny_task.split("forget")[0].fact
    wrong = (" red", " green", " forest")
    facts = tuple(
        replace(f, distractors=wrong)
        for f in tiny_task.facts
        if f.split != "forget" or f.fact == one
    )
    assert sum(f.split == "forget" for f in facts) == 3
    with pytest.raises(BadInputError, match=r"'tiny-colours' has one fact.*add facts to forget"):
        halves(replace(tiny_task, facts=facts), tiny)
