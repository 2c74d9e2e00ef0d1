"""The history of a method while it still works, read from what its job has printed.

``history.json`` is written when a method ends; until then the job's log has a line a step.
"""

from __future__ import annotations

import re
from typing import Any

from app.jobs import LOG
from mansu.job.runs import Run

_STEP = re.compile(r"step (\d+)(?:/| of )\d+: (.*)")
_NUMBER = re.compile(r"(forget loss|forget accuracy|in NF4|forget|retain|text) (-?[\d.]+)(%?)")
_MOVED = re.compile(r"([\d,]+) weights moved")
_KEYS = {"forget loss": "forget_loss", "forget accuracy": "forget", "in NF4": "forget_nf4"}


def steps(run: Run) -> list[dict[str, Any]]:
    """What ``history.json`` will have as its steps, of the method that the job is at.

    Empty before the first step.
    """
    found: list[dict[str, Any]] = []
    text = (run.path / LOG).read_text(errors="replace") if run.has(LOG) else ""
    for line in text.splitlines():
        match = _STEP.search(line)
        if match is None:
            continue
        step, rest = int(match[1]), match[2]
        if found and step <= found[-1]["step"]:
            found = []  # the next method's first step
        values: dict[str, Any] = {
            str(_KEYS.get(name, name)): float(value) / (100 if percent else 1)
            for name, value, percent in _NUMBER.findall(rest)
        }
        moved = _MOVED.search(rest)
        if moved is not None:  # MANSU's line
            values["moved"] = int(moved[1].replace(",", ""))
            values["retain_loss"] = values.pop("retain", float("nan"))
        found.append({"step": step, **values})
    return found
