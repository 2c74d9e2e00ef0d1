"""What the command line prints of a run's results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mansu.evidence.verdict import Verdict
from mansu.job.runs import Run
from mansu.measure.statistics import Interval


def recovery(run: Run, method: str) -> str:
    """A table of accuracies under each attack, with what it recovers of the edited model's."""
    base, edited = run.attacks(None), run.attacks(method)

    def cell(value: Interval | None) -> str:
        if value is None:
            return "–".rjust(24)
        return f"{value.value:.1%} [{value.low:.1%}, {value.high:.1%}]".rjust(24)

    lines = ["attack".ljust(15) + "".join(n.rjust(24) for n in ("unedited", method, "recovered"))]
    for name in edited.scores:
        cells = (base.accuracy(name), edited.accuracy(name), edited.recovered(name))
        lines.append(name.ljust(15) + "".join(map(cell, cells)))
    return "\n".join(lines)


def accuracies(run: Run, method: str) -> str:
    """A table of accuracies before and after, in full precision and NF4."""
    columns: Mapping[str, Any] = {
        "base": run.base(nf4=False),
        "base NF4": run.base(nf4=True),
        method: run.measurement(method, nf4=False),
        f"{method} NF4": run.measurement(method, nf4=True),
    }
    lines = ["".join(["set".ljust(20), *(name.rjust(15) for name in columns)])]
    for split, scores in columns["base"].splits.items():
        for group in dict.fromkeys(scores.groups):
            label = split if group == split else f"{split}: {group}"
            cells = [m.splits[split].group(group).accuracy for m in columns.values()]
            lines.append("".join([label[:20].ljust(20), *(f"{c:.1%}".rjust(15) for c in cells)]))
    return "\n".join(lines)


def geometry(run: Run, method: str) -> str:
    """What each format keeps of the edit, and Theorem 1's bounds on the retain loss."""
    from mansu.quant.survival import floor_across

    kept = run.formats(method)
    shares = [f"{n} {k.share:.2%}" if k.share is not None else f"{n} –" for n, k in kept.items()]
    text = f"codes changed: {', '.join(shares)}\n{floor_across(kept)}"
    if run.has("bounds", method):
        b = run.bounds(method)
        text += (
            f"\nretain loss bound: {b.restricted:.3g} nats over the circuit, {b.everywhere:.3g} "
            f"over all weights, {b.spread:.3g} for an even spread; measured {b.measured:+.3g} "
            f"({b.facts} facts, {b.texts} texts)"
        )
    return text


def sentences(method: str, verdict: Verdict) -> str:
    """The verdict as text."""
    return f"verdict on {method}: {verdict}"
