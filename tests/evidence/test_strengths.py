"""An edit's parts are edits of its kind: with the magnitude floor they have it, too."""

from __future__ import annotations

import pytest
from families import FAMILIES, family, known_examples

from mansu import quant, tasks
from mansu.evidence.strengths import STRENGTHS, strengths
from mansu.job.runs import examples
from mansu.methods import Problem, named
from mansu.quant.survival import at_centers
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task


def shipped(name: str) -> Edit:
    (run,) = (run for run in examples() if run.name == "tiny-colours")
    return run.edit(name)


def test_the_floor_is_seen_in_an_edit_however_many_weights_it_moves(tiny: Subject) -> None:
    edit = shipped("mansu")
    assert edit.fraction(tiny) > 0.05 and at_centers(tiny, edit)
    for part in STRENGTHS:
        kept = quant.report(tiny, edit.thinned(part)).quantized
        assert at_centers(tiny, edit.thinned(part)) and kept.changed == kept.moved > 0
        assert not at_centers(tiny, edit.scaled(tiny, part))
    assert not at_centers(tiny, shipped("graddiff"))
    assert not at_centers(tiny, Edit({}))
    name = next(n for n in tiny.parameters if n not in tiny.quantized_names)
    moved = Edit.between(tiny.parameters, {name: tiny.parameters[name] + 1})
    assert not at_centers(tiny, edit.then(moved))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_floor_is_seen_in_every_family(name: str, tiny_task: Task) -> None:
    subject = family(name)
    rows = known_examples(subject)
    problem = Problem(subject, tiny_task, rows, rows, (rows.tokens, rows.length))
    edit = named("random_moves")(problem, moves=200).edit
    assert at_centers(subject, edit) and not at_centers(subject, edit.scaled(subject, 0.5))


@pytest.mark.parametrize(("name", "thinned"), [("mansu", True), ("graddiff", False)])
def test_an_edit_is_thinned_where_it_has_the_floor_and_scaled_else(
    name: str, thinned: bool, tiny: Subject, tiny_task: Task
) -> None:
    (run,) = (run for run in examples() if run.name == "tiny-colours")
    rows = {split: tasks.examples(tiny_task, tiny, split) for split in tasks.NEEDED}
    before = run.base(nf4=False), run.base(nf4=True)
    after = run.measurement(name, nf4=False), run.measurement(name, nf4=True)
    found = strengths(tiny, run.edit(name), rows, before=before, after=after)
    assert found.thinned is thinned and ("thinned" in found.table().caption) is thinned
    assert run.strengths(name).points[-1] == found.points[-1]  # one of before is read
