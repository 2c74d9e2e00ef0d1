"""Links to a form that is filled in: the options that stand in the address, and what they mean."""

from __future__ import annotations

from pathlib import Path

from mansu.job.runs import Run
from mansu.subjects import shipped

ATTRIBUTION = Path(__file__).resolve().parents[1] / "pages" / "attribution.py"
RESULT, NEW = "This run", "New run"
OTHER_MODEL, SAME_TASK, OWN_TASK = "another model …", "the chosen run's", "your own file …"
NO_BASELINE = "no baseline"


def copied(run: Run) -> dict[str, str]:
    """The form for a new run on the Attribution page, filled in as this run was made."""
    settings = run.settings
    known = run.subject in shipped.OFFERED
    subject = {"subject": run.subject if known else OTHER_MODEL}
    return {
        "run": run.name,
        "view": NEW,
        "task": SAME_TASK,
        "baseline": next((name for name in run.asked if name != "mansu"), NO_BASELINE),
        **(subject if known else {**subject, "model": run.subject}),
        **{name: f"{getattr(settings, name):g}" for name in ("pairs", "steps", "tau")},
    }
