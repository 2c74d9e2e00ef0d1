"""What a run and a subject share."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from mansu import quant, tasks
from mansu.job import examples
from mansu.job.runs import Run
from mansu.job.session import FEWEST, Session
from mansu.measure.scores import measure_task
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.subjects.weights import weight_name


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_edit_is_measured_as_with_all_layers(tiny: Subject, layer: int) -> None:
    """Only those from the first that an edit changes run again, and every number is the same."""
    session = Session(Run.open(examples.EXAMPLES / "tiny-colours"), tiny)
    name = weight_name(tiny, layer, "down")
    edit = Edit.between(tiny.parameters, {name: tiny.parameters[name] * 1.5})
    seed = session.settings.seed
    for nf4 in (False, True):
        for edited in (edit, None, edit, None):  # whichever is measured first
            with ExitStack() as stack:
                if edited:
                    stack.enter_context(edited.applied(tiny))
                if nf4:
                    stack.enter_context(quant.quantized(tiny))
                found = session.measured(nf4=nf4, edit=edited)
                assert found.to_json() == measure_task(tiny, session.task, seed=seed).to_json()


def test_other_pairs_are_of_facts_that_the_circuit_was_not_found_on(tiny: Subject) -> None:
    session = Session(Run.open(examples.EXAMPLES / "tiny-colours"), tiny)
    others, pairs = session.others, session.pairs
    assert others is not None and not set(others.facts) & set(pairs.facts)
    assert len(set(others.facts)) >= FEWEST
    corrupt = [row[:n].tolist() for row, n in zip(pairs.corrupt, pairs.length, strict=True)]
    clean = [row[:n].tolist() for row, n in zip(others.clean, others.length, strict=True)]
    assert not [prompt for prompt in clean if prompt in corrupt]
    again = Session(session.run, tiny).others
    assert again is not None and again.rows == others.rows


def test_other_pairs_are_drawn_from_all_templates(tiny: Subject) -> None:
    """They were the first rows of the file, which are in one template."""
    session = Session(Run.open(examples.EXAMPLES / "tiny-colours"), tiny)
    pairs = session.__dict__["pairs"] = tasks.pairs(session.task, tiny, n=8)
    others = session.others
    assert others is not None and len(others) == 8
    assert not set(others.facts) & set(pairs.facts)
    assert len(others.clean[:, 1].unique()) == 3  # how a template begins


@pytest.mark.parametrize("n", [80, 96])
def test_where_too_few_facts_are_left_other_pairs_are_of_other_rows(tiny: Subject, n: int) -> None:
    session = Session(Run.open(examples.EXAMPLES / "tiny-colours"), tiny)
    pairs = session.__dict__["pairs"] = tasks.pairs(session.task, tiny, n=n)
    others = session.others
    if n == 96:
        assert others is None
    else:
        assert others is not None and len(others) == 16
        assert not set(others.rows) & set(pairs.rows) and set(others.facts) & set(pairs.facts)
