"""Rows of any data set as a task: what was chosen, row by row, and nothing quietly left out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mansu import tasks
from mansu.errors import BadInputError
from mansu.sets.own import Columns, lines

MMLU = [
    {"question": "Gold?", "subject": "metals", "choices": ["Ag", "Au", "Fe", "Cu"], "answer": 1},
    {"question": "Silver?", "subject": "metals", "choices": ["Ag", "Au", "Fe", "Cu"], "answer": 0},
    {"question": "Bone?", "subject": "body", "choices": ["Ca", "Pb", "Hg", "U"], "answer": 0},
]
COLUMNS = Columns("question", "answer", "subject", ("metals",), "choices", "Q: {} A:")


def test_a_numbered_answer_is_taken_from_the_choices() -> None:
    found = [json.loads(line) for line in lines(MMLU, COLUMNS).splitlines()]
    assert found[0] == {
        "prompt": "Q: Gold? A:",
        "answer": " Au",
        "split": "forget",
        "distractors": [" Ag", " Fe", " Cu"],
    }
    assert [row["split"] for row in found] == ["forget", "forget", "retain"]
    assert found[2]["group"] == "body" and found[2]["answer"] == " Ca"
    task = tasks.parse(lines(MMLU, COLUMNS), "mine")
    assert len(task.split("forget")) == 2 and len(task.split("retain")) == 1


def test_a_written_answer_stands_as_it_is() -> None:
    rows = [{"q": " 2+2 ", "a": "4", "kind": 1}, {"q": "sky", "a": "blue", "kind": 2}]
    found = [json.loads(x) for x in lines(rows, Columns("q", "a", "kind", ("1",))).splitlines()]
    assert [(row["prompt"], row["answer"], row["split"]) for row in found] == [
        ("2+2", " 4", "forget"),
        ("sky", " blue", "retain"),
    ]
    assert "distractors" not in found[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": "answer"}, "Row 1 of the data set has 'answer' = 1, which must be a text"),
        ({"choices": "subject"}, "Row 1 of the data set has 'subject' = 'metals'"),
        ({"answer": "choices"}, "which must be a text"),
        ({"prompt": "missing"}, "'missing' = None"),
        ({"written": "Question:"}, "has no {}"),
    ],
)
def test_a_wrong_column_is_named_with_its_row(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        lines(MMLU, replace(COLUMNS, **changes))
    with pytest.raises(BadInputError, match=r"Row 2 .* the number of a choice"):
        lines([MMLU[0], {**MMLU[1], "answer": 4}], COLUMNS)
