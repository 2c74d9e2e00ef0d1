"""The tables of answers and of a followed weight say what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mansu.errors import MansuError
from mansu.job.runs import EXAMPLES, Run
from mansu.measure.answers import answered
from mansu.quant import follow
from mansu.report import asked
from mansu.show.numbers import written
from mansu.subjects.subject import Subject


@pytest.fixture(scope="module")
def run() -> Run:
    return Run.open(EXAMPLES / "tiny-colours")


def test_a_cell_is_right_exactly_where_the_measurement_is(run: Run) -> None:
    full, nf4 = run.measurement("mansu", nf4=False), run.measurement("mansu", nf4=True)
    found = answered(run.task(), run.base(nf4=False), full, nf4)
    table = asked.answers({"MANSU": found})
    assert len(table.rows) == sum(len(s.rows) for s in full.splits.values())
    forget = [r for r in table.rows if r[0].startswith("Forget")]
    for column, measured in ((5, full), (6, nf4)):
        right = sum(r[column] == "✓" for r in forget)
        assert right == sum(measured.splits["forget"].correct == 1)
    wrong = [r for r in forget if r[5] != "✓"]
    assert wrong and all(r[5].removeprefix("✗ ") != r[2] for r in wrong)
    with pytest.raises(MansuError, match="different facts"):
        asked.answers({"a": found, "b": found[1:]})


def test_an_older_measurement_says_wrong_without_a_word(run: Run) -> None:
    found = answered(run.task(), *(run.base(nf4=False),) * 3)
    old = [replace(f, full=replace(f.full, right=False, chosen=None)) for f in found]
    assert {row[5] for row in asked.answers({"x": old}).rows} == {"✗"}


def test_a_weight_s_table_is_of_both_edits(run: Run, tiny: Subject) -> None:
    name = tiny.quantized_names[0]
    edits = {m: run.edit(m) for m in run.edits()}
    followed = {m: follow(tiny, edit, name, 0, 0) for m, edit in edits.items()}
    table = asked.weight(followed)
    cells = {row[0]: row[1:] for row in table.rows}
    assert cells["Value"][0] == written(float(tiny.parameters[name][0, 0]), "+.5f")
    for i, found in enumerate(followed.values(), start=1):
        assert cells["Code"][i] == str(found.after.code)
        assert (cells["Code"][i] == cells["Code"][0]) == (cells["Code changes"][i] == "no")
