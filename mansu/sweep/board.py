"""A store's rows as a table of text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mansu.evidence.verdict import ABOUT
from mansu.show.numbers import NOTHING, duration, mark, measured
from mansu.show.table import Table
from mansu.statistics import Interval


def interval(row: Mapping[str, Any], name: str) -> Interval | None:
    """A value of a row with its interval; None where it has none."""
    return stored(row[name], row[f"{name}_low"], row[f"{name}_high"])


def stored(*found: float | None) -> Interval | None:
    """A value and its bounds, as a store holds them: without bounds it is of one fact alone."""
    return Interval.from_json([x for x in found if x is not None]) if found[0] is not None else None


def given(row: Mapping[str, Any]) -> str:
    """The settings that a unit was given and its seed: ``rate 0.06, seed 0``."""
    values = json.loads(row["given"])
    return ", ".join(f"{name} {value}" for name, value in {**values, "seed": row["seed"]}.items())


def stands(row: Mapping[str, Any]) -> str:
    """What stands for the verdict of a unit that has none."""
    return "not made" if row["state"] == "failed" else row["state"]


def ranked(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The best first: by properties passed, then by what was forgotten; at the end, no verdict."""

    def rank(row: Mapping[str, Any]) -> tuple[bool, int, float]:
        passed = sum(row[name] == "passed" for name in ABOUT)
        return row["verdict"] is None, -passed, -(row["forgotten"] or 0.0)

    return sorted(rows, key=rank)


def board(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row a unit: what it was, its verdict, what it forgot and kept, what it cost."""
    lines = [
        (
            row["method"],
            given(row),
            f"{row['task']} on {row['subject']}",
            row["verdict"] or stands(row),
            *(mark(row[name]) if row[name] else NOTHING for name in ABOUT),
            measured(interval(row, "forgotten"), "share", behind=False),
            measured(interval(row, "kept_fall"), "share", behind=False),
            measured(interval(row, "kept_loss"), "nats", behind=False),
            duration(row["seconds"]),
            NOTHING if row["memory_gib"] is None else f"{row['memory_gib']:.2f}",
        )
        for row in ranked(rows)
    ]
    head = ("Method", "Settings", "Task", "Verdict", *(name.capitalize() for name in ABOUT))
    head += ("Forgotten, points", "Kept fell, points", "Kept lost, nats", "Time", "GiB")
    return Table(head, lines, align="<" * 8 + ">>>>>")
