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
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mansu import methods, subjects, tasks
from mansu.errors import MansuError, MismatchError, TakenError
from mansu.interrupts import Cancelled
from mansu.job import names, pipeline
from mansu.job.pipeline import Stage
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.job.settings import Settings
from mansu.job.working import Work
from mansu.subjects.subject import Subject
from mansu.sweep.grid import CIRCUIT, Unit

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


def attempt(unit: Unit, folder: str, threads: int) -> Outcome:
    """Do a unit in this process; raises nothing.

    Args:
        folder: of all run folders. threads: of this process.
    """
    try:
        torch.set_num_threads(threads)
        do(unit, Path(folder))
    except TakenError as error:
        return Outcome("taken", str(error))
    except MansuError as error:
        return Outcome("failed", str(error))
    except Cancelled:
        return Outcome("failed", cancelled(unit))
    except Exception as error:  # a unit that meets a fault of ours is no reason to lose the others
        what = (str(error).strip().splitlines() or [""])[0]
        return Outcome("failed", f"{type(error).__name__}: {what:.300}")
    return Outcome("done")


def cancelled(unit: Unit) -> str:
    """Why a unit failed that somebody cancelled, in the app or by a signal."""
    return f"The unit {unit.name} was cancelled: start the sweep again."


def do(unit: Unit, folder: Path) -> Run:
    """Do what is not done yet of a unit.

    Raises:
        TakenError: another job is at work on it. Cancelled: somebody asked for it.
        MansuError: whatever a job raises.
    """
    if not folder.is_dir():
        raise MansuError(
            f"There is no folder {folder} on {platform.node()}: give one that every node sees."
        )
    run = _opened(unit, folder)
    work = Work(run)
    with work.held():
        pipeline.reset_peak_memory()
        session = Session(run, subject_of(unit))
        if unit.before is not None:
            run.adopt(Run.open(folder / unit.before.name), makes(unit.before, session))
        name = edit_of(unit, run)
        work.plan = pipeline.Plan.of(session, [(name, unit.stages)])
        pipeline.perform(session, unit.stages, name, work.on_step)
    return run


def makes(unit: Unit, session: Session) -> tuple[str, ...]:
    """The kinds of results that a unit's run folder holds when it is done."""
    return tuple(kind for stage in unit.stages if stage.fits(session) for kind in stage.makes)


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
    try:
        return Run.create(subject, task, settings, path, asked=asked)
    except TakenError:
        if not Run.is_at(path):
            raise
        return Run.open(path)  # another sweep made it meanwhile: whose turn it is, its lock says


def subject_of(unit: Unit) -> Subject:
    """The unit's subject: loaded now, unless this process's last unit was of it, too."""
    if unit.subject not in _loaded:
        _loaded.clear()  # before the next one is loaded
        gc.collect()
        _loaded[unit.subject] = subjects.load(unit.subject)
    return _loaded[unit.subject]


def edit_of(unit: Unit, run: Run) -> str | None:
    """The unit's edit in its run: by its settings, since the app may have given it another name.

    Returns:
        the method's name where the run has no such edit yet; None for a unit without a method.

    Raises:
        MismatchError: the run has an edit of that name, by another method or with other settings.
        MansuError: the history of an edit by the method is damaged.
    """
    if unit.method is None:
        return None
    changed = methods.named(unit.method).changed  # what a unit was not given is the default
    ours = changed(unit.given)
    for name in names.by(run, unit.method):
        if changed(run.history(name)["given"]) == ours:
            return name
    names.refuse_other(run, unit.method, unit.method, unit.given)
    if run.has("edit", unit.method):
        given = run.history(unit.method)["given"]
        raise MismatchError(
            f"The edit {unit.method} of the run {run.path} was made with other settings "
            f"({json.dumps(given)}) than the sweep's ({json.dumps(dict(unit.given))}): rename or "
            "delete it, and start the sweep again."
        )
    return unit.method


def edit_at(unit: Unit, folder: Path) -> tuple[Run, str]:
    """The run of a unit that is done, and its edit's name there.

    Raises:
        MansuError: as ``edit_of``, or there is no run.
    """
    run = Run.open(folder / unit.name)
    return run, edit_of(unit, run) or ""


def is_done(unit: Unit, folder: Path) -> bool:
    """Whether a unit's run folder holds its results.

    Raises:
        MansuError: it does, but they are damaged, or were measured on something else.
    """
    path = folder / unit.name
    if not Run.is_at(path):
        return False
    run = Run.open(path)
    name = edit_of(unit, run)
    lacking = [stage for stage in unit.stages if not stage.is_there(run, name)]
    if any(stage.sometimes is None or _fits(stage, run, unit.subject) for stage in lacking):
        return False
    for kind in (kind for stage in unit.stages for kind in stage.makes):
        if run.has(kind, name):
            run.require(kind, name)
    return True


_fitting: dict[tuple[str, str], bool] = {}
"""Whether a stage has anything to do, by the run's digest and its name: many units share it."""


def _fits(stage: Stage, run: Run, subject: str) -> bool:
    """Whether a stage has anything to do, for which the subject is loaded and let go."""
    key = run.digest_of_run, stage.name
    if key not in _fitting:
        _fitting[key] = stage.fits(Session(run, subjects.load(subject)))
        _let_go()
    return _fitting[key]


def known_of(subject: str) -> tuple[str, str]:
    """Fingerprint and ``prefix_text`` of a subject as it is now: it is loaded for that and let go.

    Raises:
        MansuError: it cannot be loaded.
    """
    loaded = subjects.load(subject)
    known = loaded.fingerprint, loaded.prefix_text
    del loaded
    _let_go()
    return known


def _let_go() -> None:
    """Of a subject that nobody uses any more."""
    gc.collect()  # a subject's parts know each other
    torch.cuda.empty_cache()  # a worker needs the room


def refuse_other(unit: Unit, folder: Path, fingerprint: str, start: str) -> None:
    """Refuse the results of a unit that measured another subject than there is under its name now.

    Args:
        fingerprint, start: of the subject as it is now (``known_of``).

    Raises:
        MismatchError: they are of other weights, another config or another tokenizer, or of prompts
            with a second BOS (``Run.refuse_doubled``).
    """
    run = Run.open(folder / unit.name)
    if run.fingerprint != fingerprint:
        raise MismatchError(
            f"The run {run.name} measured another {unit.subject!r} than there is now: its weights, "
            f"config or tokenizer differ (fingerprint {fingerprint}, not {run.fingerprint}). Put "
            "the checkpoint back, or give the sweep another folder with --folder."
        )
    run.refuse_doubled(start)


def record(unit: Unit, folder: Path) -> dict[str, Any]:
    """What the store keeps of a unit that is done, read from its run folder.

    Raises:
        MansuError: something is missing or damaged.
    """
    run, before = Run.open(folder / unit.name), unit.before
    name, shared = edit_of(unit, run), before and folder / before.name
    took = Run.open(shared).seconds() if shared and Run.is_at(shared) else {}
    told = run.manifest  # an older one does not say which MANSU made it, or on which processor
    versions = {n: told[n] for n in ("mansu", "python", "cpu") if told.get(n)}
    of_edit = {}
    if name is not None and run.has("edit", name):
        of_edit = {
            "edit_digest": run.digest(name),
            "settings": run.history(name)["settings"],
            "verdict": run.verdict(name),
        }
    return {
        **identity(unit),
        "fingerprint": run.fingerprint,
        "settings": unit.settings,
        **of_edit,
        "seconds": round(sum(run.seconds().values()), 2),
        "shared_seconds": round(sum(took.values()), 2) if took else None,
        "memory_gib": run.timings().get("peak memory"),
        "threads": told["threads"],
        "versions": {**told["packages"], **versions},
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
