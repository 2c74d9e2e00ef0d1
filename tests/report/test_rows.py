"""Every value of the front door can be shown, and tables of several say what the values say."""

from __future__ import annotations

import dataclasses

import pytest

from mansu import tasks
from mansu.circuits.attribution import Attribution, attribute
from mansu.circuits.search import minimal_circuit
from mansu.evidence.bounds import Bounds
from mansu.measure.scores import TITLES, Measurement, measure_task
from mansu.quant.survival import Kept
from mansu.report import rows
from mansu.show.numbers import written
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task


@pytest.fixture(scope="module")
def base(tiny: Subject, tiny_task: Task) -> Measurement:
    return measure_task(tiny, tiny_task)


@pytest.fixture(scope="module")
def attribution(tiny: Subject, tiny_task: Task) -> Attribution:
    return attribute(tiny, tasks.pairs(tiny_task, tiny, n=8), steps=2)


def test_the_front_door_s_values_are_shown_short(
    tiny: Subject, tiny_task: Task, base: Measurement, attribution: Attribution
) -> None:
    circuit = minimal_circuit(tiny, tasks.pairs(tiny_task, tiny, n=8), attribution, tau=0.5)
    name, weight = next(iter(tiny.parameters.items()))
    edit = Edit.between({name: weight}, {name: weight + 1}, "one tensor")
    for value in (tiny, tiny_task, attribution, circuit, edit, base):
        text, page = str(value), value._repr_html_()
        assert 2 < len(text.splitlines()) <= 20 and "tensor(" not in text
        assert page.startswith("<table>") and page.count("<tr>") == len(value.table().rows) + 1
        assert len(repr(value)) < 200 and "\n" not in repr(value)
    assert f"{tiny.n_parameters:,}" in str(tiny)
    assert f"{len(circuit)} of {circuit.layout.n_edges}" in repr(circuit)
    assert f"{edit.n_moved:,} weights moved in 1 tensors" in repr(edit) and name in str(edit)


def test_the_strongest_edge_stands_first(attribution: Attribution) -> None:
    table, layout = attribution.table(), attribution.layout
    strongest = int(attribution.scores.abs().argmax())
    source, destination = divmod(strongest, layout.n_destinations)
    score = attribution.scores.flatten()[strongest]
    names = layout.source_name(source), layout.destination_name(destination)
    assert table.rows[0] == (*names, written(float(score), "+.3f"))
    shown = [abs(float(row[2].replace("−", "-"))) for row in table.rows]
    assert shown == sorted(shown, reverse=True) and len(shown) == 10


def test_accuracies_are_by_set_and_model(base: Measurement) -> None:
    forget = base.splits["forget"]
    worse = dataclasses.replace(forget, correct=0 * forget.correct)
    edited = Measurement({"forget": worse}, None)
    table = rows.accuracies({"unedited": base, "edited": edited})
    assert table.columns["Set"] == list(base.sets())
    assert table.columns["Set"][0] == "Forget: colours" and table.rows[0][3] == "0.0\u00a0%"
    assert table.columns["edited"][1:] == ["–"] * (len(table.rows) - 1)  # not measured
    for (title, n, accuracy, _), scores in zip(table.rows, base.sets().values(), strict=True):
        assert (n, accuracy) == (
            str(len(scores.rows)),
            f"{scores.accuracy:.1%}".replace("%", "\u00a0%"),
        )
        assert title.split(":")[0] in TITLES.values()


def test_what_a_format_loses_is_counted() -> None:
    table = rows.formats({"nf4-64": Kept(1000, 1000, 3, 5), "fp4-64": Kept(1000, 10, 0, 0)})
    assert table.columns["Codes that change"] == ["100.00\u00a0%", "1.00\u00a0%"]
    assert table.columns["Moved weights that keep their code"] == ["0", "990"]
    assert "not met" in table.text() and "fp4-64 (990 of 1,000)" in table.text()


def test_bounds_and_settings_are_said() -> None:
    table = rows.bounds(Bounds(0.371, 0.5, 0.25, 1.382, 48, 16))
    assert [row[1] for row in table.rows] == ["0.371", "0.5", "0.25", "+1.38"]
    shown = rows.settings({"learning_rate": 1e-5, "target": None})
    assert list(shown.rows) == [("learning rate", "1e-05"), ("target", "automatic")]


def test_a_bound_that_does_not_hold_is_said_to() -> None:
    found = Bounds(0.1, 0.5, 0.25, 1.5, 48, 16)
    assert (
        "does not hold here: more than it was lost (3 times as much)" in rows.bounds(found).text()
    )
    assert not rows.bounds(dataclasses.replace(found, measured=0.5)).notes
    assert "times" not in rows.exceeded(dataclasses.replace(found, everywhere=0.0))


def test_a_measurement_survives_no_text(base: Measurement) -> None:
    assert "loss on text" in repr(base)
    assert "loss on text" not in repr(Measurement(base.splits, None))
