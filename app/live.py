"""The history of a method while it still works, read from what its job has printed.

``history.json`` is written when a method ends; until then the job's log has a line a step.
"""

from __future__ import annotations

import re

from app.jobs import LOG
from mansu.job.runs import Run
from mansu.progress import Step

_STEP = re.compile(r"(\w+): step (\d+) of (\d+): (.*)")
_NUMBER = re.compile(
    r"(forget loss|retain loss|forget accuracy|in NF4|forget|retain|text) (-?[\d.]+)(%?)"
)
_MOVED = re.compile(r"([\d,]+) weights moved")
_KEYS = {"in NF4": "forget_accuracy_nf4"}


def steps(run: Run) -> list[Step]:
    """What ``history.json`` will have as its steps, of the method that the job is at.

    Empty before the first step.
    """
    found: list[Step] = []
    text = (run.path / LOG).read_text(errors="replace") if run.has(LOG) else ""
    for line in text.splitlines():
        match = _STEP.search(line)
        if match is None:
            continue
        done, total = int(match[2]), int(match[3])
        if found and done <= found[-1].done:
            found = []  # the next method's first step
        values = {
            str(_KEYS.get(name, name.replace(" ", "_"))): float(value) / (100 if percent else 1)
            for name, value, percent in _NUMBER.findall(match[4])
        }
        moved = _MOVED.search(match[4])
        if moved is not None:  # MANSU's line
            values["moved"] = int(moved[1].replace(",", ""))
        found.append(Step("unlearn", done, total, match[1], values=values))
    return found
