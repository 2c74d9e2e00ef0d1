"""The main job as a table: attribute → circuit → unlearn → quantize → CAD → verdict.

Each ``Stage`` says what it needs and what it makes; ``perform`` does those whose results are not
there yet, times and saves them, so that an interrupted run goes on where it stopped::

    session = Session(run, subject)
    perform(session, (*CIRCUIT, unlearning("ga"), *MEASURE, *JUDGE), "ga", print)
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from mansu import methods, quant, tasks
from mansu.circuits.attribution import attribute
from mansu.circuits.gradients import Factors
from mansu.circuits.search import find_circuit
from mansu.circuits.trust import trust
from mansu.errors import BadInputError
from mansu.evidence import attacks, by_format, cad, controls
from mansu.evidence.bounds import bounds
from mansu.evidence.cad import PLACES, Scored
from mansu.evidence.relearning import Relearned, relearning, separable
from mansu.evidence.strengths import strengths
from mansu.job import pace
from mansu.job.artefacts import ARTEFACTS
from mansu.job.judging import judged
from mansu.job.runs import Run, peak_memory
from mansu.job.session import Session
from mansu.job.settings import Settings
from mansu.measure.answers import ASKED
from mansu.measure.scores import EVALUATED, Measurement
from mansu.methods import Problem
from mansu.methods.retrained import reference
from mansu.progress import OnStep, Step, part_of, silent
from mansu.room import give_back
from mansu.show.numbers import between, percent
from mansu.statistics import at_most
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.facts import CHANCE
from mansu.tasks.tokens import evenly

Make = Callable[[Session, str, OnStep], Sequence[Any]]
"""Does a stage's work: (session, name of the edit, where to report to) → values as in ``makes``."""


@dataclass(frozen=True)
class Stage:
    """One step of the job.

    Attributes:
        name: of its steps, and in ``timings.json``.
        needs, makes: kinds of ``ARTEFACTS``.
        weight: how long it takes, against the others.
        make: the work.
        always: done again even where its result is there.
        sometimes: whether there is anything to do, where that depends on the task and the subject;
            what it makes is lacking where there is not.
    """

    name: str
    needs: tuple[str, ...]
    makes: tuple[str, ...]
    weight: float
    make: Make
    always: bool = False
    sometimes: Callable[[Session], bool] | None = None

    @property
    def of_edit(self) -> bool:
        """Whether it is done once an edit; else once a run."""
        return ARTEFACTS[self.makes[0]].of_edit

    def fits(self, session: Session) -> bool:
        """Whether there is anything to do."""
        return self.sometimes is None or self.sometimes(session)

    def is_there(self, run: Run, method: str | None) -> bool:
        """Whether the run has its results, whatever they were measured on."""
        return all(run.has(kind, method) for kind in self.makes)

    def is_done(self, run: Run, method: str | None) -> bool:
        """Whether the run holds its results.

        Raises:
            MismatchError: it does, but they were measured on another edit.
            DamagedError: it does, but one is damaged.
        """
        if self.always or not self.is_there(run, method):
            return False
        for kind in self.makes:
            run.require(kind, method)
        return True


def perform(
    session: Session,
    stages: Iterable[Stage],
    method: str | None = None,
    on_step: OnStep = silent,
) -> None:
    """Do the stages that are not done yet, in order, and save what they make.

    What is lacking for any of them is said before the work of the first.

    Args:
        method: the name of the edit that the stages of an edit are about.

    Raises:
        NotMeasuredError: something that a stage needs was not made yet.
        MismatchError: something belongs to another edit.
    """
    run, stages = session.run, tuple(stages)
    coming: set[str] = set()
    for stage in stages:
        if (stage.always or not stage.is_there(run, method)) and stage.fits(session):
            for kind in stage.needs:
                if kind not in coming and not run.has(kind, method):
                    run.require(kind, method)
            coming |= set(stage.makes)
    for stage in stages:
        if stage.is_done(run, method) or not stage.fits(session):
            continue
        for kind in stage.needs:
            run.require(kind, method)
        whose = method if stage.of_edit else None

        def told(step: Step, whose: str | None = whose) -> None:
            on_step(replace(step, method=whose))

        start = time.perf_counter()
        told(Step(stage.name, 0, 1))
        made = stage.make(session, method or "", told)
        # The time first: a job killed in between makes the result again, but never its time.
        run.add_timing(pace.label(stage.name, whose), time.perf_counter() - start)
        run.save(dict(zip(stage.makes, made, strict=True)), whose)


@dataclass(frozen=True)
class Plan:
    """What a job is going to do, so that a step says how much of all is done.

    Attributes:
        parts: (stage, method, weight) in order.
    """

    parts: tuple[tuple[str, str | None, float], ...]

    @classmethod
    def of(cls, session: Session, work: Iterable[tuple[str | None, Iterable[Stage]]]) -> Plan:
        """The plan of stages, by method; without what is done already, or has nothing to do.

        Weights are seconds where earlier runs of the subject took them here.
        """
        parts: dict[tuple[str, str | None], float] = {}
        for method, stages in work:
            for stage in stages:
                whose = method if stage.of_edit else None
                to_do = stage.always or not stage.is_there(session.run, method)
                if to_do and stage.fits(session):
                    parts[stage.name, whose] = stage.weight
        labelled = [(pace.label(*part), weight) for part, weight in parts.items()]
        weights = pace.seconds(labelled, pace.recorded(session.run.subject))
        return cls(tuple((*p, w) for p, w in zip(parts, weights or parts.values(), strict=True)))

    def share(self, step: Step) -> float | None:
        """How much of all is done after a step, 0 to 1; None for a step that is not planned."""
        before = 0.0
        total = sum(weight for _, _, weight in self.parts)
        for name, method, weight in self.parts:
            if (name, method) == (step.stage, step.method):
                return (before + weight * step.share) / total
            before += weight
        return None


def _base(session: Session, method: str, on_step: OnStep) -> tuple[Measurement]:
    return (session.measured(nf4=False),)


def _base_nf4(session: Session, method: str, on_step: OnStep) -> tuple[Measurement]:
    with quant.quantized(session.subject, session.nf4):
        return (session.measured(nf4=True),)


def check_usable(task: tasks.Task, subject: Subject, settings: Settings) -> tuple[str, ...]:
    """Refuse a task that cannot be used with a subject, before a run folder is made.

    Returns:
        What of the task is left out with this subject and why, by line, a sentence each.

    Raises:
        BadInputError: no row of a needed split can be used, or none can be paired.
    """
    pairs = tasks.pairs(task, subject, n=settings.pairs, seed=settings.seed)
    found = (tasks.examples(task, subject, s, seed=settings.seed).notes for s in EVALUATED)
    return tuple(dict.fromkeys(chain(*found, pairs.notes)))


def refuse_unmakeable(method: str, subject: str, task: tasks.Task) -> None:
    """Refuse an edit that no work can make, before that on the circuit: of the retrained reference
    where none ships.

    Raises:
        BadInputError: it is one.
    """
    if method == "retrained":
        reference(subject, task)


def refuse_unknown(subject: Subject, base: Measurement) -> None:
    """A model at chance has nothing to forget: no verdict on it would mean anything."""
    forget = base.splits["forget"]
    found = forget.interval
    if at_most(found.low, CHANCE):
        raise BadInputError(
            f"{subject.name!r} does not know this task: its 4-way accuracy on the forget set is "
            f"{between(found)} and chance is {percent(CHANCE, 0)}, so "
            "there is nothing to forget. Give facts that it knows, or ask for them in another "
            "form (multiple choice: mansu task --form cloze --shots 1)."
        )


def _attribution(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
    refuse_unknown(session.subject, session.run.base(nf4=False))
    factors: list[Factors] = []
    found = attribute(
        session.subject,
        session.pairs,
        steps=session.settings.steps,
        memory=session.settings.budget,
        on_step=on_step,
        keep=factors,
    )
    session.keep(factors)
    return (found,)


def _circuit(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
    subject, settings = session.subject, session.settings
    found = find_circuit(
        subject,
        session.pairs,
        session.run.attribution(),
        max_fraction=settings.fraction(subject),
        tau=settings.tau,
        memory=settings.budget,
        on_step=on_step,
    )
    return replace(found, mask=None), found.mask  # each is a file of its own


def _trust(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
    found = trust(
        session.subject,
        session.pairs,
        session.run.circuit(),
        session.run.mask(),
        session.others,
        steps=session.settings.steps,
        memory=session.settings.budget,
        on_step=on_step,
    )
    return (found,)


def reset_peak_memory() -> None:
    """Let the process's peak count from here, without what was freed before (Linux and glibc)."""
    gc.collect()
    give_back()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def unlearning(method: str, given: Mapping[str, Any] | None = None) -> Stage:
    """The stage that makes a method's edit.

    Args:
        given: settings of the method that are not its defaults.

    Raises:
        BadInputError: there is no method of that name, or a setting is bad.
    """
    unlearn, given = methods.named(method), dict(given or {})
    unlearn.configure(given)  # refused before any work

    def make(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
        session.release()
        reset_peak_memory()
        start, mask = time.perf_counter(), session.run.mask()
        problem = Problem(
            subject=session.subject,
            task=session.task,
            forget=session.rows("forget"),
            retain=session.rows("retain"),
            text=session.kept_text,
            mask=mask.tensors(),
            candidates=mask.candidate_tensors(),
            seed=session.settings.seed,
            on_step=on_step,
        )
        outcome = unlearn(problem, **given)
        history = {
            "steps": [step.to_json() for step in outcome.history],
            "stopped": outcome.stopped,
            "settings": dict(outcome.settings),
            "given": given,
            "seconds": round(time.perf_counter() - start, 2),
            "peak_memory": peak_memory(),
            "moved": outcome.edit.n_moved,
            "fraction": outcome.edit.fraction(session.subject),
        }
        return outcome.edit, history

    return Stage("unlearn", ("mask",), ("edit", "history"), 45, make)


def _quantize(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
    subject, edit = session.subject, session.run.edit(method)
    references = [session.reference(nf4=nf4) for nf4 in (False, True)]
    with edit.applied(subject):
        on_step(Step("quantize", 0, 3, part="the edited model in full precision"))
        full = session.measured(nf4=False, edit=edit, reference=references[0])
        on_step(Step("quantize", 1, 3, part="the edited model in NF4"))
        with quant.quantized(subject, session.nf4_for(edit)):
            nf4 = session.measured(nf4=True, edit=edit, reference=references[1])
    on_step(Step("quantize", 2, 3, part="each update beside its bin"))
    return full, nf4, quant.report(subject, edit)


def _formats(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
    found = quant.kept_by_format(session.subject, session.run.edit(method))
    return ({str(format): kept for format, kept in found.items()},)


def _by_format(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
    measured = session.run.measurement(method, nf4=False).splits
    rows = {split: session.rows(split) for split in ASKED if split in measured}
    edit, formats = session.run.edit(method), by_format.others()
    return (by_format.by_format(session.subject, edit, rows, formats, on_step),)


BOUND_FACTS, BOUND_TEXTS = 32, 8
"""At most so many retain examples, evenly taken, for the bounds: a dense edit costs most."""


def _bounds(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
    retain, (tokens, length) = session.rows("retain"), session.text
    retain, some = retain.some(BOUND_FACTS), evenly(len(tokens), BOUND_TEXTS)
    text, movable = (tokens[some], length[some]), session.run.mask().movable.tensors()
    return (bounds(session.subject, session.run.edit(method), retain, text, movable),)


def _cad(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
    """What does not depend on the edit stays in the run for the next method: its controls."""
    run, subject = session.run, session.subject
    run.circuit().refuse_other(subject, session.pairs)

    def telling(i: int, what: str) -> OnStep:
        return part_of(on_step, "cad", i, 4, f"attribution of {what}")

    signals = session.signals(telling(0, "the unedited model"))
    # An earlier MANSU made the suppressor in the middle on a part of the rows, and dealt each pair
    # alone, so that one fact was in several groups.
    had: Scored | None = run.read("ablation") if run.has("ablation") else None
    if had is None or not signals.in_my_groups(had):
        zeroed = controls.ablation(subject, run.mask().tensors())
        run.save({"ablation": signals.of(zeroed, telling(1, "the ablated circuit"))})
    accuracy = run.measurement(method, nf4=False).splits["forget"].accuracy
    percent = controls.suppressed_percent(accuracy)
    parts = dict(zip(PLACES, (f"{percent}", f"{percent}-middle"), strict=True))
    for place, part in parts.items():
        had = run.read("suppressor", part=part) if run.has("suppressor", part=part) else None
        rows = None if had is None else had.about.get("rows")
        if had is None or rows != len(session.rows("forget")) or not signals.in_my_groups(had):
            hiding, first = session.suppression(place).reaching(percent / 100), place == PLACES[0]
            telling(2, f"the suppressor {place}")(Step("cad", 0, 1))
            scored: Scored = signals.of(hiding) if first else signals.signal_of(hiding)
            run.save({"suppressor": scored}, part=part)
    edit = run.edit(method)
    found = cad.diverge(
        signals,
        edit,
        run.circuit().edge_mask,
        suppressors={place: run.read("suppressor", part=part) for place, part in parts.items()},
        ablation=run.read("ablation"),
        nf4=session.nf4_for(edit),
        on_step=telling(3, "the edited model"),
    )
    return found, found.scores


def _can_relearn(session: Session) -> bool:
    return separable(session.rows("forget"))


def _reference(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
    """Relearning of the model whose circuit is ablated."""
    zeroed = controls.ablation(session.subject, session.run.mask().tensors())
    return (_relearned(session, zeroed, "reference", on_step),)


def _relearning(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
    return (_relearned(session, session.run.edit(method), "relearning", on_step),)


def _relearned(session: Session, edit: Edit, stage: str, on_step: OnStep) -> Relearned:
    return relearning(
        session.subject,
        session.task,
        edit,
        session.halves,
        seed=session.settings.seed,
        on_step=lambda step: on_step(replace(step, stage=stage)),
    )


def _verdict(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
    return (judged(session.run, method),)


def _base_attacks(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
    return _attacked(session, session.run.base(nf4=False), on_step)


def _attacks(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
    with session.run.edit(method).applied(session.subject):
        return _attacked(session, session.run.measurement(method, nf4=False), on_step)


def _attacked(session: Session, measured: Measurement, on_step: OnStep) -> Sequence[Any]:
    found = attacks.attack(
        session.subject,
        session.task,
        paraphrase=measured.splits.get("paraphrase"),
        seed=session.settings.seed,
        on_step=on_step,
    )
    return (found,)


def _strengths(session: Session, method: str, on_step: OnStep) -> Sequence[Any]:
    run, edit = session.run, session.run.edit(method)
    found = strengths(
        session.subject,
        edit,
        {split: session.rows(split) for split in tasks.NEEDED},
        before=(run.base(nf4=False), run.base(nf4=True)),
        after=(run.measurement(method, nf4=False), run.measurement(method, nf4=True)),
        nf4=session.nf4_for(edit),
        seed=session.settings.seed,
        on_step=on_step,
    )
    return (found,)


BASE = Stage("base", (), ("base",), 2, _base)
ATTRIBUTION = Stage("attribution", ("base",), ("attribution",), 4, _attribution)
MINIMAL = Stage("circuit", ("attribution",), ("circuit", "mask"), 14, _circuit)
TRUST = Stage("trust", ("circuit", "mask"), ("trust",), 10, _trust)
BASE_NF4 = Stage("base_nf4", (), ("base_nf4",), 2, _base_nf4)
QUANTIZE = Stage("quantize", ("edit",), ("full", "nf4", "survival"), 4, _quantize)
FORMATS = Stage("formats", ("edit",), ("formats",), 2, _formats)
BY_FORMAT = Stage("by_format", ("edit", "base", "full"), ("by_format",), 15, _by_format)
BOUNDS = Stage("bounds", ("edit", "mask"), ("bounds",), 3, _bounds)
CAD = Stage("cad", ("circuit", "mask", "edit", "full"), ("cad", "edges"), 25, _cad)
REFERENCE = Stage("reference", ("mask",), ("reference",), 6, _reference, sometimes=_can_relearn)
RELEARNING = Stage("relearning", ("edit",), ("relearned",), 6, _relearning, sometimes=_can_relearn)
VERDICT = Stage(
    "verdict",
    ("base", "base_nf4", "full", "nf4", "cad"),  # of one fact nothing is relearned
    ("verdict",),
    0.1,
    _verdict,
    always=True,
)
BASE_ATTACKS = Stage("base_attacks", ("base",), ("base_attacks",), 10, _base_attacks)
ATTACKS = Stage("attacks", ("edit", "full"), ("attacks",), 10, _attacks)
STRENGTHS = Stage(
    "strengths", ("edit", "full", "nf4", "base", "base_nf4"), ("strengths",), 8, _strengths
)

CIRCUIT = (BASE, ATTRIBUTION, MINIMAL)
MEASURE = (BASE_NF4, QUANTIZE, FORMATS, BOUNDS)
JUDGE = (CAD, REFERENCE, RELEARNING, VERDICT)
RECOVERY = (BASE_ATTACKS, ATTACKS)


def whole(method: str, given: Mapping[str, Any] | None = None) -> tuple[Stage, ...]:
    """Every stage from the task to the verdict on one method."""
    return (*CIRCUIT, unlearning(method, given), *MEASURE, *JUDGE)


def expected(subject: str, names: Iterable[str]) -> float | None:
    """Seconds that a new run's whole job takes here, by earlier runs of the subject.

    Args:
        subject: its name. names: of the methods.

    Returns:
        None where no run of it was timed here.
    """
    parts = {
        pace.label(stage.name, name if stage.of_edit else None): stage.weight
        for name in names
        for stage in whole(name)
    }
    took = pace.seconds(parts.items(), pace.recorded(subject))
    return None if took is None else sum(took)
