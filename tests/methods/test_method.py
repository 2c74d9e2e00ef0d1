"""What a method's description promises, of every method."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mansu import methods, tasks
from mansu.circuits.attribution import attribute
from mansu.circuits.parameters import parameter_mask
from mansu.circuits.search import minimal_circuit
from mansu.errors import BadInputError
from mansu.methods import Problem, named, parse_settings
from mansu.subjects.subject import Subject

FOLDER = Path(methods.__file__).parent


@pytest.fixture(scope="module")
def problem(tiny: Subject, tiny_task: tasks.Task) -> Problem:
    pairs = tasks.pairs(tiny_task, tiny, n=8)
    scores = attribute(tiny, pairs, steps=1)
    mask = parameter_mask(tiny, minimal_circuit(tiny, pairs, scores), scores, max_fraction=0.1)
    forget, retain = (tasks.examples(tiny_task, tiny, s) for s in ("forget", "retain"))
    text = tasks.text(tiny_task, tiny)
    return Problem(tiny, tiny_task, forget, retain, text, mask.tensors())


@pytest.mark.parametrize("name", methods.ALL)
def test_a_method_says_what_it_is(name: str) -> None:
    method = named(name)
    assert method.name == name
    assert method.title and method.about.endswith(".")
    assert all(setting.help.endswith(".") for setting in method.options().values())
    kinds = {"control": methods.CONTROLS, "ablation": methods.ABLATIONS, "mansu": ("mansu",)}
    assert name in kinds.get(method.kind, methods.NAMES[1:])
    assert (method.search is not None) == (name in methods.NAMES)


def test_every_file_with_a_method_is_listed() -> None:
    listed = {"mansu_method" if n == "mansu" else n for n in (*methods.NAMES, *methods.CONTROLS)}
    found = {p.stem for p in FOLDER.glob("*.py") if "METHOD = Method(" in p.read_text()}
    assert found == listed


def test_the_names_cost_no_torch() -> None:
    code = (
        "import sys; from mansu import methods; assert methods.ALL and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", methods.ALL)
def test_the_recorded_settings_make_the_same_edit(problem: Problem, name: str) -> None:
    short = {"steps": 2} if "steps" in named(name).options() else {}
    first = named(name)(problem, **short)
    recorded = json.loads(json.dumps(first.settings))
    assert set(recorded) >= set(named(name).options())
    chosen = {"rate", "target", "layer", "moves"}  # by subject and task, where not given
    assert all(recorded[setting] is not None for setting in chosen & set(recorded))
    again = named(name)(problem, **recorded)
    assert again.settings == first.settings
    assert again.edit.changes.keys() == first.edit.changes.keys()
    for key, (where, values) in first.edit.changes.items():
        assert torch.equal(where, again.edit.changes[key][0])
        assert torch.equal(values, again.edit.changes[key][1])


def test_given_settings_are_parsed_and_checked() -> None:
    mansu = named("mansu")
    items = ["rate=0.03", "steps=3.0", "floor=false", "budget=null", "steps=4"]
    parsed = parse_settings(mansu, items)
    assert parsed == {"rate": 0.03, "steps": 4, "floor": False, "budget": None}
    assert mansu.changed(parsed) == {"rate": 0.03, "steps": 4, "floor": False}
    whole = parse_settings(mansu, ["rate=1", "steps=3.0"])
    assert (type(whole["rate"]), type(whole["steps"])) == (float, int)


@pytest.mark.parametrize(
    ("name", "item", "says"),
    [
        ("mansu", "rate", "write NAME=VALUE"),
        ("mansu", "rate=fast", "is no number, true, false or null"),
        ("mansu", "speed=9", "'speed' is no setting of mansu: it has rate, steps"),
        ("mansu", "steps=1.5", "give a whole number of at least 1"),
        ("mansu", "floor=1", "give true or false"),
        ("mansu", "bfloat16=1", "give true or false, or null"),
        ("mansu", "rate=NaN", "give a number above 0"),
        ("mansu", "target=1.5", "at most 1, or null"),
        ("sure", "percentile=100", "at most 99.9"),
        ("mansu_no_floor", "floor=true", "The setting floor of mansu_no_floor is always false"),
    ],
)
def test_what_no_setting_may_be_is_one_sentence(name: str, item: str, says: str) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_settings(named(name), [item])
    assert says in str(caught.value)


def test_an_unknown_method_is_answered_with_the_names() -> None:
    with pytest.raises(BadInputError, match="Unknown method 'magic': give one of mansu, ga"):
        named("magic")


def test_a_preset_is_no_option_but_may_be_repeated(problem: Problem) -> None:
    ablation = named("mansu_no_fisher")
    assert "fisher_weight" not in ablation.options()
    recorded: dict[str, Any] = {"fisher_weight": 0.0, "steps": 3}
    assert ablation.configure(recorded).fisher_weight == 0
    assert ablation.changed(recorded) == {"steps": 3}
