"""What repeats a result, and what limits it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mansu import methods, tasks
from mansu.job.runs import Run

LIMITS: Sequence[str] = (
    "The verdict is about this task's facts only: a pass here is **no guarantee of safety**, "
    "and says nothing about other knowledge or other ways to ask for it.",
    "The intervals are over the task's facts, not over models or seeds.",
    "Fine-tuning, and access to the weights in general, may bring back what was forgotten.",
    "The unlearned weights differ from the base model's, which may be had: comparing the two "
    "shows what was edited.",
)
"""Of every verdict, as Markdown sentences."""

ROUNDING = (
    "Another processor or number of threads rounds otherwise, and training carries that on: it can "
    "change an accuracy by many points, and a verdict with it (of the tiny subject most)."
)
"""Said wherever it is said how a result was made."""

WHERE = (
    "Run them in the folder that the run's folder lies in. The first makes everything anew, beside "
    f"the run; the others are of the run itself. {ROUNDING}"
)
"""Said of ``commands``."""


def repeat_command(run: Run, method: str, *, subject: str = "", facts: str = "task.jsonl") -> str:
    """The ``mansu run`` that makes this edit again, with every setting that is not the default.


    Args:
        subject: what the run's subject is called, where that is not to be its path.
        facts: the file of a task that is not shipped.
    """
    task = run.about
    shipped = task["name"] in tasks.shipped() and tasks.load(task["name"]).digest == task["digest"]
    words = ["mansu", "run", "--subject", subject or run.subject]
    by = run.method_of(method)
    words += ["--task", task["name"] if shipped else facts, "--method", by]
    words += [] if method == by else ["--name", method]
    for name, value in asdict(run.settings).items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    used = run.history(method)["settings"] if run.has("history", method) else {}
    for name, value in methods.named(by).changed(used).items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    return shlex.join(words)


def public(name: str) -> str:
    """What a file that leaves this machine calls a subject: of a path its last name alone."""
    return Path(name).name if Path(name).is_absolute() else name


def public_subject(run: Run) -> str:
    """``public`` of a run's subject."""
    return public(run.subject)


def commands(run: Run, method: str, changes: Mapping[str, float]) -> list[str]:
    """The commands that make what a dossier shows, for the folder that the run lies in.

    The first makes everything anew, in a folder of its own.

    Args:
        changes: thresholds that are not the original ones.
    """
    of = [run.name, "--method", method]
    facts = f"{run.name}/task.jsonl"
    again = repeat_command(run, method, subject=public_subject(run), facts=facts)
    found = [f"{again} --folder {shlex.quote(f'{run.name}-again')}"]
    steps = (("attacks", "attack"), ("strengths", "strengths"), ("by_format", "formats"))
    for kind, command in steps:
        if run.has(kind, method):
            found.append(shlex.join(["mansu", command, *of]))
    moved = [word for name, v in changes.items() for word in ("--threshold", f"{name}={v:g}")]
    found.append(shlex.join(["mansu", "dossier", *of, *moved, "--to", f"{run.name}-{method}.html"]))
    return found
