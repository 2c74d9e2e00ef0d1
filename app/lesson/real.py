"""What the toy cannot show: the same numbers of a run of a larger model, where there is one."""

from __future__ import annotations

from collections.abc import Sequence

from mansu import methods
from mansu.job import names
from mansu.job.runs import Run
from mansu.show.numbers import number, percent, written


def larger(runs: Sequence[Run], toy: str) -> Run | None:
    """The newest run of another model that has a baseline measured in both formats.

    Args:
        runs: newest first. toy: the fingerprint of the lesson's model.
    """
    return next((run for run in runs if run.fingerprint != toy and baseline(run)), None)


def baseline(run: Run) -> str | None:
    """The first measured edit of a run that is a baseline's."""
    for method in run.edits():
        kind = methods.named(by).kind if (by := run.method_of(method)) in methods.ALL else ""
        if kind == "baseline" and all(run.has(k, method) for k in ("full", "nf4", "survival")):
            return method
    return None


def _name(run: Run) -> str:
    return f"On {run.subject} ({run.about['title']}), by {names.title(run, baseline(run) or '')}"


def reach(run: Run) -> str:
    """How far a baseline moved its weights there, and what flips, a sentence."""
    found = run.survival(baseline(run) or "").quantized
    return (
        f"{_name(run)}: the typical move is {number(found.width_over_update)} times too short, and "
        f"{percent(found.share)} of the codes change."
    )


def comes_back(run: Run) -> str:
    """What comes back of a baseline's forgetting there, a sentence."""
    method = baseline(run) or ""
    full, nf4 = (run.measurement(method, nf4=x).splits["forget"] for x in (False, True))
    nats = float(nf4.log_probability.mean() - full.log_probability.mean())
    before = run.base(nf4=False).splits["forget"].accuracy
    return (
        f"{_name(run)}: from {percent(before)} right before to {percent(full.accuracy)} after the "
        f"edit and {percent(nf4.accuracy)} in 4 bits; an answer's log-probability changes by "
        f"{written(nats, '+.2f')} nats on the way to 4 bits."
    )


def circuit(run: Run) -> str:
    """How much of the model the circuit's mask is there, and what MANSU picks from, a sentence."""
    mask = run.mask()
    return (
        f"On {run.subject} ({run.about['title']}) the circuit's weights that count most are "
        f"{percent(mask.fraction, 2)} of all, and MANSU picks what it moves from "
        f"{percent(mask.movable.fraction)}."
    )
