"""One unit, done by whoever is given it: a process of this machine's or a node's of Ray.

The weights of a subject are loaded once a worker, for all of its units of that subject. The workers
of one machine share them: safetensors maps the file privately, so that a page is in memory once
until a worker changes it: MANSU's edit some thousandths of the weights, a dense baseline all of
them. Measured on SmolLM2-135M, 2 workers: 514 MiB of weights, of which 0.04 MiB a worker's own,
also after NF4, whose weights stand beside them.
"""

from __future__ import annotations

import gc
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import mansu
from mansu import methods, subjects, tasks
from mansu.errors import MansuError, MismatchError, TakenError
from mansu.files import sweep as sweep_parts
from mansu.job import names, pipeline
from mansu.job.lock import Lock, hold
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.job.settings import Settings
from mansu.progress import Step
from mansu.subjects.subject import Subject
from mansu.sweep.grid import Unit

CIRCUIT = (*pipeline.CIRCUIT, pipeline.BASE_NF4, pipeline.REFERENCE)
SHARED = tuple(kind for stage in CIRCUIT for kind in stage.makes)
"""What the edits of one run's settings have in common: made once, and linked."""

EDIT = sum(s.weight for s in pipeline.whole("mansu") if s not in CIRCUIT)
"""How long an edit's own stages take, beside ``CIRCUIT``'s weights."""

State = Literal["done", "failed", "taken", "lost"]


@dataclass(frozen=True)
class Outcome:
    """How a unit ended.

    Attributes:
        state: done; failed, for a reason that stays; taken: another job is at work on it; lost:
            its worker is no more.
        why: a sentence, where it is not done.
    """

    state: State
    why: str = ""


_loaded: dict[str, Subject] = {}
"""The subject of this process's last unit."""


def attempt(unit: Mapping[str, Any], folder: str, threads: int) -> Outcome:
    """Do a unit in this process, as ``Unit.to_json`` describes it; raises nothing.

    Args:
        folder: of all run folders. threads: of this process.
    """
    try:
        torch.set_num_threads(threads)
        do(Unit(**unit), Path(folder))
    except TakenError as error:
        return Outcome("taken", str(error))
    except MansuError as error:
        return Outcome("failed", str(error))
    except Exception as error:  # a unit that meets a fault of ours is no reason to lose the others
        what = (str(error).strip().splitlines() or [""])[0]
        return Outcome("failed", f"{type(error).__name__}: {what:.300}")
    return Outcome("done")


def do(unit: Unit, folder: Path) -> Run:
    """Do what is not done yet of a unit.

    Raises:
        TakenError: another job is at work on it.
        MansuError: whatever a job raises.
    """
    if not folder.is_dir():
        raise MansuError(
            f"There is no folder {folder} on {platform.node()}: give one that every node sees."
        )
    run = _opened(unit, folder)
    with hold(run.path) as lock:
        sweep_parts(run.path)
        run.set_status("running", 0.0, begins=True)
        try:
            _work(unit, run, folder, lock)
        except BaseException as error:
            with suppress(MansuError, OSError):
                run.set_status("failed", error=str(error))
            raise
        run.set_status("done", 1.0)
    return run


def _opened(unit: Unit, folder: Path) -> Run:
    path = folder / unit.name
    if Run.is_at(path):
        return Run.open(path)
    subject, task, settings = subject_of(unit), tasks.load(unit.task), Settings(**unit.run)
    for name, was in unit.task_is.items():
        if getattr(task, name) != was:
            raise MismatchError(
                f"The task {unit.task} has changed since the sweep began (its {name} was {was}): "
                "start the sweep again."
            )
    pipeline.check_usable(task, subject, settings)
    asked = (unit.method,) if unit.method else ()
    return Run.create(subject, task, settings, path, asked=asked)


def subject_of(unit: Unit) -> Subject:
    """The unit's subject: loaded now, unless this process's last unit was of it, too."""
    if unit.subject not in _loaded:
        _loaded.clear()  # before the next one is loaded
        gc.collect()
        _loaded[unit.subject] = subjects.load(unit.subject)
    return _loaded[unit.subject]


def _work(unit: Unit, run: Run, folder: Path, lock: Lock) -> None:
    pipeline.reset_peak_memory()
    session = Session(run, subject_of(unit))
    if unit.method is None:
        stages = CIRCUIT
    else:
        run.adopt(Run.open(folder / unit.circuit.name), SHARED)
        _refuse_other(unit, run)
        stages = pipeline.whole(unit.method, unit.given)
    plan, share = pipeline.Plan.of(run, [(unit.method, stages)]), 0.0

    def on_step(step: Step) -> None:
        nonlocal share
        lock.check()
        if lock.cancelled:
            raise MansuError(f"The unit {unit.name} was cancelled: start the sweep again.")
        share = max(share, plan.share(step) or 0.0)
        run.record(step, share)

    pipeline.perform(session, stages, unit.method, on_step)


def _refuse_other(unit: Unit, run: Run) -> None:
    """Refuse an edit that is not the unit's: the app may have made another in the same run.

    Raises:
        MismatchError: another method made the edit of the unit's name, or other settings did.
    """
    assert unit.method is not None
    names.refuse_other(run, unit.method, unit.method, unit.given)
    if not run.has("edit", unit.method):
        return
    changed = methods.named(unit.method).changed  # what a unit was not given is the default
    given = run.history(unit.method)["given"]
    if changed(given) != changed(unit.given):
        raise MismatchError(
            f"The edit {unit.method} of the run {run.path} was made with other settings "
            f"({json.dumps(given)}) than the sweep's ({json.dumps(dict(unit.given))}): rename or "
            "delete it, and start the sweep again."
        )


def is_done(unit: Unit, folder: Path) -> bool:
    """Whether a unit's run folder holds its results.

    Raises:
        MansuError: it does, but they are damaged, or were measured on something else.
    """
    path = folder / unit.name
    if not Run.is_at(path):
        return False
    run = Run.open(path)
    kinds = SHARED if unit.method is None else ("edit", "history", "verdict")
    if not all(run.has(kind, unit.method) for kind in kinds):
        return False
    for kind in kinds:
        run.require(kind, unit.method)
    if unit.method is not None:
        _refuse_other(unit, run)
    return True


def record(unit: Unit, folder: Path) -> dict[str, Any]:
    """What the store keeps of a unit that is done, read from its run folder.

    Raises:
        MansuError: something is missing or damaged.
    """
    assert unit.method is not None
    run, shared = Run.open(folder / unit.name), folder / unit.circuit.name
    history = run.history(unit.method)
    before = Run.open(shared).seconds() if Run.is_at(shared) else {}
    versions = {**run.manifest["packages"], "python": run.manifest["python"]}
    return {
        **identity(unit),
        "fingerprint": run.fingerprint,
        "edit_digest": run.digest(unit.method),
        "settings": history["settings"],
        "verdict": run.verdict(unit.method),
        "seconds": round(sum(run.seconds().values()), 2),
        "shared_seconds": round(sum(before.values()), 2) if before else None,
        "memory_gib": run.timings().get("peak memory"),
        "threads": run.manifest["threads"],
        "versions": {**versions, "mansu": mansu.__version__, "cpus": os.cpu_count()},
        "state": "done",
    }


def identity(unit: Unit) -> dict[str, Any]:
    """What is known of a unit before it is done."""
    return {
        "unit": unit.id,
        "run": unit.name,
        "subject": unit.subject,
        "task": Path(unit.task).stem,
        "task_digest": unit.task_is["digest"],
        "method": unit.method,
        "given": unit.given,
        "run_settings": unit.run,
        "seed": unit.run["seed"],
    }
