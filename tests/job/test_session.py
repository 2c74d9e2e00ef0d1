"""What a run and a subject share."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from mansu import quant
from mansu.job import examples
from mansu.job.runs import Run
from mansu.job.session import Session
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
