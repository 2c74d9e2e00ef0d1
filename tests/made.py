"""Runs whose measurements are known beforehand, of the tiny subject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mansu.job.runs import Run
from mansu.measure.scores import Measurement
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.sweep.store import FILE, Store
from mansu.tasks.facts import Task

CHANCE = 0.25


def changed(base: Measurement, **splits: Mapping[str, float]) -> Measurement:
    """A measurement whose splits have these values in every row, and a margin to ``correct``."""
    margins = {0.0: -1.0, 1.0: 1.0}  # a share is of a tie
    splits = {
        name: {"margin": margins.get(v["correct"], 0.0), **v} if "correct" in v else v
        for name, v in splits.items()
    }
    found = {
        name: replace(
            base.splits[name],
            **{field: np.full(len(base.splits[name].rows), v) for field, v in values.items()},
        )
        for name, values in splits.items()
    }
    return Measurement({**base.splits, **found}, base.text_loss, (0.01,) * 8)


def one_fact(task: Task) -> Task:
    """The task with one fact to forget, in its three templates, each with a corrupt prompt."""
    forget = task.split("forget")
    one, other = forget[0], next(f for f in forget if f.answer != forget[0].answer)
    assert one.fact and other.fact
    wrong = tuple(sorted({f.answer for f in forget} - {one.answer}))[:3]
    mine = tuple(
        replace(
            f,
            corrupt_prompt=f.prompt.replace(one.fact, other.fact),
            foil=other.answer,
            distractors=wrong,
        )
        for f in forget
        if f.fact == one.fact
    )
    others = (f for f in task.facts if f.split not in ("forget", "paraphrase"))
    return replace(task, facts=(*mine, *others))


def run_of(
    path: Path, subject: Subject, task: Task, base: Measurement, edits: Mapping[str, Measurement]
) -> Run:
    run = Run.create(subject, task, path=path)
    run.save({"base": base, "base_nf4": base})
    name, weight = next(iter(subject.parameters.items()))
    for method, measured in edits.items():
        run.save({"edit": Edit.between({name: weight}, {name: weight + 1}, method)}, method)
        run.save({"full": measured, "nf4": measured}, method)
    return run


def ranked(folder: Path, run: Run) -> None:
    """Put a run's edits into a folder's store of results, as a sweep does."""
    for method in run.judged():
        about = {"run": run.name, "subject": run.subject, "task": run.about["name"]}
        about |= {"unit": f"{run.name}-{method}", "method": method, "given": {}, "seed": 0}
        done = {"state": "done", "verdict": run.verdict(method), "seconds": 2.0}
        Store(folder / FILE).put({**about, **done})
