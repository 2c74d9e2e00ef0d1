"""The verdict on an edit, from what its run has saved: nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mansu.evidence.by_format import InFormat
from mansu.evidence.verdict import Property, Thresholds, Verdict, gap, judge
from mansu.job.runs import Run
from mansu.quant import NF4


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
        others={name: each.measured for name, each in (found("by_format") or {}).items()},
    )


def gaps(run: Run, method: str) -> dict[str, tuple[InFormat, Property]]:
    """An edit in each format that it was measured in, the verdict's NF4 first, and its gap there.

    Raises:
        NotMeasuredError: it was not measured in full precision, in NF4 or in other formats.
        DamagedError, MismatchError: a file is damaged, or of another edit.
    """
    base, full = run.base(nf4=False), run.measurement(method, nf4=False)
    kept = run.formats(method).get(str(NF4)) if run.has("formats", method) else None
    formats = {str(NF4): InFormat(run.measurement(method, nf4=True), kept)}
    formats |= run.by_format(method)
    thresholds = originals(run)
    return {
        name: (each, gap(base, full, each.measured, thresholds, name))
        for name, each in formats.items()
    }
