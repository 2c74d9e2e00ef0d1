"""A task out of any question–answer data set: which column is what, and which rows to forget.

::

    rows = hub.read("OWNER/NAME:CONFIG:SPLIT", {})
    text = lines(rows, Columns("question", "answer", part="subject", forget=("chemistry",)))
    task = tasks.parse(text, "mine")
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mansu.errors import BadInputError


@dataclass(frozen=True)
class Columns:
    """Which column of a data set is what of a task.

    Attributes:
        prompt: the question. answer: the right answer, or the number (from 0) of the right one
            among ``choices``.
        part: what says which rows belong together, e.g. a subject. forget: the values of ``part``
            whose rows are forgotten; the others' are kept.
        choices: a list of answers, the right one among them or not; the wrong ones are offered
            beside the right one. None: the answers of other rows are.
        written: how a question is asked, ``{}`` being the column's text.
    """

    prompt: str
    answer: str
    part: str
    forget: Sequence[str]
    choices: str | None = None
    written: str = "{}"


def lines(rows: Sequence[Mapping[str, Any]], columns: Columns) -> str:
    """The rows as the JSONL of a task, a line a row, in order.

    Raises:
        BadInputError: a row has something else in a column; names it, from 1.
    """
    if "{}" not in columns.written:
        raise BadInputError(
            f"{columns.written!r:.60} has no {{}}: put {{}} where the question is to stand."
        )
    found = []
    for number, row in enumerate(rows, start=1):
        part = str(row.get(columns.part))
        question = _text(row, columns.prompt, number)
        answer, wrong = _answers(row, columns, number)
        line: dict[str, Any] = {
            "prompt": columns.written.replace("{}", question),
            "answer": f" {answer}",
            "split": "forget" if part in columns.forget else "retain",
            "group": part,
        }
        if line["split"] == "forget":
            line.pop("group")  # what is forgotten is one set
        if wrong:
            line["distractors"] = [f" {text}" for text in wrong]
        found.append(json.dumps(line, ensure_ascii=False))
    return "\n".join(found) + "\n"


def _answers(row: Mapping[str, Any], columns: Columns, number: int) -> tuple[str, list[str]]:
    """The right answer, and three wrong ones where the row has choices."""
    if columns.choices is None:
        return _text(row, columns.answer, number), []
    offered, right = row.get(columns.choices), row.get(columns.answer)
    if not isinstance(offered, list) or not all(isinstance(c, str) for c in offered):
        raise _wrong(row, columns.choices, number, "a list of answers")
    offered = [choice.strip() for choice in offered]
    if isinstance(right, int) and not isinstance(right, bool):
        if not 0 <= right < len(offered):
            raise _wrong(row, columns.answer, number, "the number of a choice, from 0")
        answer = offered[right]
    else:
        answer = _text(row, columns.answer, number)
    return answer, [choice for choice in offered if choice != answer][:3]


def _text(row: Mapping[str, Any], column: str, number: int) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise _wrong(row, column, number, "a text")
    return value.strip()


def _wrong(row: Mapping[str, Any], column: str, number: int, what: str) -> BadInputError:
    return BadInputError(
        f"Row {number} of the data set has {column!r} = {row.get(column)!r:.60}, which must be "
        f"{what}: choose another column."
    )
