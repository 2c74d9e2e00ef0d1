"""The verdict is held against edits of which it is known what they are."""

import pytest

from experiments.calibration import MUST_FAIL, REFUSALS, calibrate, refusal, table
from mansu.errors import BadInputError
from mansu.methods import Problem
from mansu.subjects import TINY, Subject
from mansu.tasks import Task


def test_the_retrained_model_passes_and_what_only_hides_does_not(
    tiny: Subject, tiny_task: Task, untouched: None
) -> None:
    found = {one.control: one for one in calibrate(tiny, tiny_task, REFUSALS[TINY])}
    assert found.keys() == MUST_FAIL.keys()
    assert not [name for name, one in found.items() if one.right.startswith("no")]
    # A suppressor is held against suppressors, itself among them: that alone decides nothing.
    decided = {name for name, one in found.items() if one.right == "yes"}
    assert decided >= {"unedited", "random moves", "refusal", "retrained"}
    assert table([*found.values()]).columns["Control"] == [*found]


def test_a_refusal_of_several_tokens_is_refused(problem: Problem) -> None:
    with pytest.raises(BadInputError, match="2 tokens, not one"):
        refusal(problem, "not the")
