"""The verdict on an edit, from what its run has saved: nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mansu.evidence.verdict import Thresholds, Verdict, judge
from mansu.job.runs import Run


def originals(run: Run) -> Thresholds:
    """The thresholds that the run's task was made with."""
    return Thresholds(run.about["margin"], run.about["tolerance"])


def judged(run: Run, method: str, changes: Mapping[str, Any] | None = None) -> Verdict:
    """Judge an edit by its saved measurements; what was not measured is unknown.

    Args:
        changes: thresholds that are not the original ones, by name.

    Raises:
        NotMeasuredError: not even accuracy after the edit was measured.
        DamagedError, MismatchError: a file is damaged, or of another edit.
        BadInputError: there is no such threshold, or it is out of range.
    """

    def found(kind: str) -> Any:
        return run.read(kind, method) if run.has(kind, method) else None

    return judge(
        base=run.base(nf4=False),
        edited=run.measurement(method, nf4=False),
        base_nf4=found("base_nf4"),
        edited_nf4=found("nf4"),
        divergences=found("cad"),
        relearned=found("relearned"),
        reference=found("reference"),
        thresholds=originals(run).moved(changes or {}),
    )
