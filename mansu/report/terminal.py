"""What the command line prints of a run's results."""

from __future__ import annotations

from mansu.evidence.verdict import Verdict
from mansu.job.judging import gaps
from mansu.job.runs import Run
from mansu.report import rows


def recovery(run: Run, method: str) -> str:
    """A table of accuracies under each attack, with what it recovers of the edited model's."""
    return rows.recovery(run.attacks(None), run.attacks(method), method).text()


def accuracies(run: Run, method: str) -> str:
    """A table of accuracies before and after, in full precision and NF4."""
    measured = {
        "base": run.base(nf4=False),
        "base NF4": run.base(nf4=True),
        method: run.measurement(method, nf4=False),
        f"{method} NF4": run.measurement(method, nf4=True),
    }
    return rows.accuracies(measured).text()


def geometry(run: Run, method: str) -> str:
    """What each format keeps of the edit, and Theorem 1's bounds on the retain loss."""
    tables = [rows.formats(run.formats(method))]
    if run.has("bounds", method):
        tables.append(rows.bounds(run.bounds(method)))
    return "\n\n".join(table.text() for table in tables)


def formats(run: Run, method: str) -> str:
    """What the edit brings back in each format."""
    return rows.gaps(gaps(run, method), method).text()


def sentences(method: str, verdict: Verdict) -> str:
    """The verdict as a table, with its evidence."""
    return f"verdict on {method}: {verdict}"
