"""The history of a method while it still works, from the steps that its job reports.

``history.json`` is written when a method ends.
"""

from __future__ import annotations

from mansu.job.runs import Run
from mansu.progress import Step


def at_work(run: Run) -> str | None:
    """The edit that the last job was about last; None before its first step on one."""
    events = run.events(since=run.status().started)
    return next((step.method for _, step in reversed(events) if step.method), None)


def steps(run: Run, method: str) -> list[Step]:
    """What ``history.json`` will have as its steps, of an edit that the last job is at.

    Empty before the first step.
    """
    events = run.events(since=run.status().started)
    return [s for _, s in events if (s.stage, s.method) == ("unlearn", method) and s.values]
