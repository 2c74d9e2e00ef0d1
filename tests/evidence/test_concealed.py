"""The control of recovery: it forgets in full precision, and in NF4 it is the unedited model."""

from __future__ import annotations

import pytest
import torch

from mansu import quant
from mansu.evidence.concealed import concealed
from mansu.measure.scores import measure
from mansu.methods import Problem
from mansu.methods.training import TrainingSettings
from mansu.subjects.subject import Subject

SETTINGS = TrainingSettings(learning_rate=1e-3, steps=12)


@pytest.mark.usefixtures("untouched")
def test_a_concealed_edit_forgets_and_nf4_undoes_it_whole(problem: Problem, tiny: Subject) -> None:
    edit = concealed(problem, SETTINGS)
    with quant.quantized(tiny):
        base = measure(tiny, problem.forget)
    with edit.applied(tiny):
        full = measure(tiny, problem.forget)
        with quant.quantized(tiny):
            nf4 = measure(tiny, problem.forget)
    assert full.accuracy < 0.6 and base.accuracy == 1
    torch.testing.assert_close(nf4.log_probability, base.log_probability, atol=0, rtol=0)
    assert quant.report(tiny, edit).quantized.changed == 0
    assert edit.changes.keys() <= {*tiny.quantized_names}
