"""The leaderboard's table and chart, of a store's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from app import words
from mansu.evidence.verdict import ABOUT
from mansu.show.numbers import NOTHING, amount, many, mark, measured
from mansu.show.sentences import capitalised
from mansu.show.table import Table
from mansu.statistics import Interval
from mansu.sweep.board import given, interval, stands, stored

Row = Mapping[str, Any]

TALLEST, ROW, HEAD = 400, 35, 37  # pixels of the table, of a row of it, of its head
LETTER, MARGIN, WIDEST = 6.8, 20, 400  # pixels of a letter, beside a cell's text, of a column


def label(row: Row) -> str:
    """A unit, told from every other: ``MANSU, rate 0.06, seed 0 · tiny-colours · tiny``."""
    parts = f"{words.title(row['method'])}, {given(row)}", row["task"], Path(row["subject"]).name
    return " · ".join(parts)


def options(rows: Sequence[Row], column: str) -> list[str]:
    """The values that a column has, in order."""
    return sorted({row[column] for row in rows})


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """A row a unit; numbers are numbers, so that a column can be sorted."""
    return pd.DataFrame(
        {
            "Method": [words.title(row["method"]) for row in rows],
            "Verdict": [_status(row["verdict"] or stands(row)) for row in rows],
            "Task": [row["task"] for row in rows],
            "Settings": [given(row) for row in rows],
            "Forgotten, points": [_points(row["forgotten"]) for row in rows],
            "Kept fell by, points": [_points(row["kept_fall"]) for row in rows],
            "Kept lost, nats": [row["kept_loss"] for row in rows],
            **{
                capitalised(title): [_status(row[name]) for row in rows]
                for name, title in ABOUT.items()
            },
            "Subject": [Path(row["subject"]).name for row in rows],
            "Seconds": [row["seconds"] for row in rows],
            "Memory, GiB": [row["memory_gib"] for row in rows],
        }
    )


def height(rows: Sequence[Row]) -> int:
    """Pixels of that table: all rows where they are few, else some of them."""
    return min(TALLEST, ROW * len(rows) + HEAD)


def widths(shown: pd.DataFrame) -> dict[str, int]:
    """Pixels of each column of text, by its longest: the table itself measures its first rows."""
    texts = shown.select_dtypes(exclude="number")
    longest = {str(name): max(map(len, [str(name), *map(str, texts[name])])) for name in texts}
    return {name: min(WIDEST, round(LETTER * n) + MARGIN) for name, n in longest.items()}


def _status(status: str | None) -> str:
    return f"{mark(status)} {status}" if status and status in words.MARKS else status or NOTHING


def _points(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def failures(rows: Sequence[Row]) -> list[str]:
    """A sentence for each unit that failed."""
    return [f"{label(row)}: {row['error']}" for row in rows if row["state"] == "failed"]


def best(rows: Sequence[Row]) -> str:
    """How many units have a verdict, and how many of them passed, as a sentence."""
    judged = [row for row in rows if row["verdict"]]
    passed = sum(row["verdict"] == "passed" for row in judged)
    failed = len(rows) - len(judged)
    told = many(len(judged), "edit was", "edits were")
    text = f"{told} judged, and {passed} passed all four properties."
    return text + (f" {failed} could not be made." if failed else "")


def spots(rows: Sequence[Row]) -> dict[str, list[tuple[str, Interval, Interval]]]:
    """By method, each judged edit: its label, what it forgot, what that cost in nats."""
    found: dict[str, list[tuple[str, Interval, Interval]]] = {}
    for row in rows:
        forgotten, lost = interval(row, "forgotten"), interval(row, "kept_loss")
        if forgotten and lost:
            found.setdefault(words.title(row["method"]), []).append((label(row), forgotten, lost))
    return found


def checks(row: Row, found: Sequence[Row]) -> dict[str, Table]:
    """What each property of a unit's verdict asks, with intervals, under its title and status."""
    tables = {}
    for name, title in ABOUT.items():
        lines = [
            (
                _status(check["status"]),
                check["what"],
                measured(stored(check["value"], check["low"], check["high"]), check["measured_in"]),
                f"{'≥' if check['at_least'] else '≤'} "
                f"{amount(check['threshold'], check['measured_in']).lstrip('+')}",
            )
            for check in found
            if check["property"] == name
        ]
        if lines:
            label = f"{capitalised(title)}: {_status(row[name])} ({many(len(lines), 'check')})"
            tables[label] = Table(("Status", "What", "Value [95 %]", "Threshold"), lines)
    return tables
