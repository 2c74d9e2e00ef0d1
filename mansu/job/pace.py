"""How long work takes here: by what earlier runs of this folder took, and by the job's own rate.

Only this machine's numbers count: a stage that nobody has timed yet is put in proportion to those
that were, and where none was there is no estimate.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from mansu.errors import MansuError
from mansu.job.runs import Run, listed
from mansu.subjects import shipped

SURE = 0.02
"""Share of a job from which on its own rate says more than nothing."""


def label(stage: str, method: str | None) -> str:
    """What a stage's seconds are called in ``timings.json``."""
    return f"{stage} {method}" if method else stage


def recorded(subject: str) -> dict[str, float]:
    """Seconds by ``label`` that the runs of a subject took here; of the newest that did it."""
    found: dict[str, float] = {}
    spelled = subject, shipped.absolute(subject)  # a run of before has a folder as it was given
    for run in reversed(listed()):
        if run.subject in spelled:
            try:
                found |= run.seconds()
            except MansuError:  # a damaged file costs an estimate, not a page
                continue
    return {name: max(took, 0.01) for name, took in found.items()}  # they are weights, too


def seconds(parts: Iterable[tuple[str, float]], known: Mapping[str, float]) -> list[float] | None:
    """How long each part of some work takes here.

    Args:
        parts: (label, weight); what was not timed yet takes as long as its weight says beside
            those that were.
        known: seconds by label, of ``recorded``.

    Returns:
        None where no part was ever timed.
    """
    parts = list(parts)
    timed = [(known[name], weight) for name, weight in parts if name in known]
    if not timed:
        return None
    rate = sum(took for took, _ in timed) / sum(weight for _, weight in timed)
    return [known.get(name, rate * weight) for name, weight in parts]


def left(run: Run, now: float | None = None) -> float | None:
    """Seconds until the job that is at work on a run ends, by its rate so far.

    Args:
        now: seconds since 1970; this moment by default.

    Returns:
        None while nothing can be said: before its first results, or without a job.
    """
    status, now = run.status(), time.time() if now is None else now
    if status.state != "running" or not SURE <= status.share < 1:
        return None
    try:
        begun = _begun(run.path, status.started)
    except LookupError:
        return None
    took = status.updated - begun  # for what the share says
    return max(0.0, took / status.share * (1 - status.share) - (now - status.updated))


@lru_cache(maxsize=64)  # pages ask each second; what is raised is not kept
def _begun(path: Path, started: float) -> float:
    """When the job that started then had loaded its model.

    Raises:
        LookupError: it has not yet.
    """
    for at, step in Run.open(path).events(since=started):
        if step.stage != "load":
            return at
    raise LookupError
