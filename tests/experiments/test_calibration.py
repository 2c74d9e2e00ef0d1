"""The verdict is held against edits of which it is known what they are."""

import re

import pytest

from experiments.calibration import (
    HEAD,
    MUST_FAIL,
    REFUSALS,
    SUBJECTS,
    by_layer,
    calibrate,
    main,
    refusal,
    table,
)
from mansu import api
from mansu.circuits.circuit import Circuit
from mansu.errors import BadInputError
from mansu.methods import Problem
from mansu.subjects import TINY, Subject, shipped
from mansu.tasks import Task
from scripts import readme


@pytest.fixture(scope="module")
def circuit(tiny: Subject, tiny_task: Task) -> Circuit:
    return api.find_circuit(tiny, tiny_task, api.attribute(tiny, tiny_task))


def test_the_retrained_model_passes_and_what_only_hides_does_not(
    tiny: Subject, tiny_task: Task, circuit: Circuit, untouched: None
) -> None:
    found = {one.control: one for one in calibrate(tiny, tiny_task, circuit, REFUSALS[TINY])}
    assert found.keys() == MUST_FAIL.keys()
    assert not [name for name, one in found.items() if one.right.startswith("no")]
    # A suppressor is held against suppressors, itself among them: that alone decides nothing.
    decided = {name for name, one in found.items() if one.right == "yes"}
    assert decided >= {"unedited", "random moves", "refusal", "retrained"}
    assert table([*found.values()]).columns["Control"] == [*found]


def test_what_hides_in_a_layer_is_beside_what_does_not_know(
    tiny: Subject, tiny_task: Task, circuit: Circuit, untouched: None
) -> None:
    columns = by_layer(tiny, tiny_task, circuit).columns
    assert "Worst kept group in full precision, nats" in columns
    edits = columns["Edit"]
    assert edits == [*(f"suppressor in layer {n}" for n in range(3)), *edits[3:]]
    assert edits[3:] == ["circuit ablated", "retrained", "MANSU"]
    signal = dict(zip(edits, (float(s.split()[0]) for s in columns["Signal CAD"]), strict=True))
    hidden = max(signal[edit] for edit in edits[:3])
    assert min(signal["circuit ablated"], signal["retrained"]) > 2 * hidden
    above = dict(zip(edits, columns["Above the reference's"], strict=True))
    assert above["circuit ablated"] == "reference"
    assert above["suppressor in layer 1"].startswith("+")  # it is back, as what is hidden is


def test_the_document_says_what_its_tables_are_and_of_which_commit() -> None:
    text = (readme.ROOT / "docs" / "calibration.md").read_text(encoding="utf-8")
    head, *tables = text.split("\n\n## ")
    assert head == HEAD
    for each, name in zip(tables, SUBJECTS, strict=True):
        about = (
            rf"{shipped.TABLE[name].task} on {name}\n\nAt commit [0-9a-f]{{8,}}\+?\.\n\n\| Control"
        )
        assert re.match(about, each)
    assert text.count("| Worst kept group in full precision, nats |") == 2


def test_a_refusal_of_several_tokens_is_refused(problem: Problem) -> None:
    with pytest.raises(BadInputError, match="2 tokens, not one"):
        refusal(problem, "not the")


def test_a_refusal_that_the_model_has_no_token_for_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--subject", TINY, "--refusal", "nonesuchword"]) == 2
    said = "calibration: The refusal 'nonesuchword' is not in the vocabulary of tiny: choose "
    assert capsys.readouterr().err == f"{said}another.\n"
