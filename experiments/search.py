"""The one small search that every method's defaults come from.

The grid is the same for every method: one, two and four times its authors' learning rate (they
train for hundreds of steps, we for a dozen), each trained once at a constant rate and measured
after 4, 8 and 12 steps; while none forgets, and no rate has a larger fall within the tolerance than
the largest, the rate is doubled once more, up to 32 times, and on to 4,096 times while a setting
of the largest costs no more than a verdict allows; while the best setting has the smallest, in the
fewest steps, and forgets, the rate is halved once more, down to an eighth. Where that would have
gone on, the record says so (``ended_at_limit``). The rows are split in half within each answer, so
that a fact with several phrasings is in both halves: the method trains on one half, the other
decides. The rephrasings and neighbours that a verdict asks for are in neither.

The rule is the verdict's own (``mansu.evidence.verdict``). Of the settings whose retain accuracy
fell by no more than the task's tolerance, those forget whose accuracy fell towards chance, which
counts as far below it as above it, by the verdict's margin or more: the one of them that costs
least. What it costs is the worse of two things that a verdict allows the same of: the fall of the
worst kept group's log-probability, and the drift on text of the unedited model's own. (Gradient
methods train on the kept facts, in other words, and raise the first; the second nobody trains on.)
Where none forgets, the one with the largest fall towards chance, of equal falls the cheapest; where
none is within the tolerance, the one with the smallest fall of retain accuracy, and the record says
so. A rate's run ends at the first measurement past the tolerance.

What differs between methods (the rate's name and origin, when to measure) is in each one's
``Search``. MANSU's rates are multiples of 0.03 bins a step, for want of its authors' code. Its
steps are cheaper in what they move, so that there are 12, 24 or 36, each a run of its own: its rate
falls towards the end, and it may end before. Its circuit is that of the rows it trains on.

MANSU's default is another of the settings tried, 0.12 bins and 36 steps. Its search, with half of
the rows to train on, finds the same rate and 24 steps (``docs/results.md``). The defaults of the
baselines are what their searches found.

``python -m experiments.search chemical-symbols graddiff`` writes
``experiments/results/search-graddiff.json``, whose best setting is the method's default. Several
methods are a sweep (``mansu.sweep``), one unit each: what is done is not done again, and
``--workers`` and ``--ray`` say who does it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mansu import subjects, tasks
from mansu.circuits.attribution import attribute
from mansu.circuits.mask import Mask
from mansu.circuits.search import find_circuit
from mansu.cli.commands import ending
from mansu.cli.sweep import add_workers, swept
from mansu.errors import BadInputError, MansuError
from mansu.evidence.verdict import Thresholds, towards_chance
from mansu.files import refuse_unwritable, replacing
from mansu.job.pipeline import Stage
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.job.settings import Settings, default_fraction
from mansu.measure.drift import Reference, texts
from mansu.measure.scores import Scores, measure, worst_nats
from mansu.methods import NAMES, Method, Problem, Search, named
from mansu.methods.keep import kept_text
from mansu.progress import OnStep, Step, silent
from mansu.settings import configure
from mansu.statistics import at_most
from mansu.subjects import shipped
from mansu.subjects.subject import Subject
from mansu.sweep import grid
from mansu.sweep.grid import Unit
from mansu.tasks.facts import Task
from mansu.tasks.tokens import Examples

RATES = (1.0, 2.0, 4.0)
"""Multiples of a method's ``Search.origin``."""


GROWTH = 8.0
"""A search goes on to so many times its grid's last rate at most, and to its first over as many."""

CHEAP_GROWTH = 1024.0
"""To so many times while a setting of the largest rate costs what a verdict allows: what has done
next to nothing yet cannot be chosen from, but a method that no rate moves must end."""


RESULTS = Path("experiments/results")


def record(folder: Path, method: str) -> Path:
    """The file in a folder that a method's search is written to."""
    return folder / f"search-{method.replace('_', '-')}.json"


@dataclass(frozen=True)
class Split:
    """A task in halves: one trains the method, the other decides.

    Attributes:
        problem: what the method is given. forget, retain: the rows that decide.
        before: the unedited model's scores on them. reference: its own text, to drift from.
    """

    problem: Problem
    forget: Examples
    retain: Examples
    before: tuple[Scores, Scores]
    reference: Reference

    @classmethod
    def of(cls, subject: Subject, task: Task, seed: int) -> Split:
        """Split a task's rows within each answer.

        Raises:
            BadInputError: a set with fewer than two rows.
        """
        forget, retain = (tasks.examples(task, subject, s, seed=seed) for s in tasks.NEEDED)
        if min(len(forget), len(retain)) < 2:
            raise BadInputError(
                f"The task {task.name!r} has {len(forget)} forget and {len(retain)} retain rows: a "
                "search needs two of each, one to train on and one to validate on."
            )
        forget_train, forget_valid = map(forget.select, halves(forget, seed))
        retain_train, retain_valid = map(retain.select, halves(retain, seed))
        text = kept_text(subject, tasks.text(task, subject), forget_train, seed=seed)
        problem = Problem(subject, task, forget_train, retain_train, text, seed=seed)
        with subject.lock:
            before = measure(subject, forget_valid), measure(subject, retain_valid)
            reference = Reference.of(subject, *texts(subject, task, seed=seed))
        return cls(problem, forget_valid, retain_valid, before, reference)

    def judged(self) -> dict[str, float]:
        """What the subject as it now is would be chosen by."""
        subject = self.problem.subject
        forget, retain = measure(subject, self.forget), measure(subject, self.retain)
        kept_fall = worst_nats(self.before[1], retain)
        drift = float(self.reference.divergences(subject).mean())
        return {
            "forget": forget.accuracy,
            "fall": towards_chance(self.before[0], forget).value,
            "retain": retain.accuracy,
            "retain_fall": self.before[1].accuracy - retain.accuracy,
            "kept_fall": kept_fall,
            "drift": drift,
            "cost": max(kept_fall, drift),
        }


def halves(rows: Examples, seed: int) -> tuple[list[int], list[int]]:
    """Split the rows in half, within each answer where it has several rows.

    Returns:
        indices to train on, indices to validate on, both ascending.
    """
    rng = random.Random(seed)
    of_answer: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, (group, answer) in enumerate(zip(rows.groups, rows.answer.tolist(), strict=True)):
        of_answer[group, answer].append(i)
    order = [
        i for rows_of_one in of_answer.values() for i in rng.sample(rows_of_one, len(rows_of_one))
    ]
    return sorted(order[::2]), sorted(order[1::2])


def best(
    tried: Sequence[Mapping[str, Any]], *, margin: float, tolerance: float
) -> Mapping[str, Any]:
    """The rule of this module on measured settings, as ``Split.judged`` has them."""
    allowed = [t for t in tried if at_most(t["retain_fall"], tolerance)]
    if not allowed:
        return min(tried, key=lambda t: (t["retain_fall"], -t["fall"], t["cost"]))
    enough = min(margin, max(t["fall"] for t in allowed))
    return min((t for t in allowed if at_most(enough, t["fall"])), key=lambda t: t["cost"])


def search(
    subject: Subject,
    task: Task,
    name: str,
    *,
    rates: Sequence[float] = RATES,
    steps: Sequence[int] | None = None,
    batch: int = 20,
    seed: int = 0,
    on_step: OnStep = silent,
) -> dict[str, Any]:
    """Search learning rate × steps for one method.

    Args:
        name: of a method that says what its search varies. rates: multiples of its origin.
        steps: when to measure, ascending; by default as the method says.
        batch: forget rows a step, where the method has such a setting.
        on_step: hears of each step; its total grows where a rate is added to the grid.

    Returns:
        JSON values: ``best`` (learning rate, steps and its measurements), ``tried`` (each setting
        in order, with what ``Split.judged`` found on the validation half), ``before`` (of the
        unedited model), whether the best ``forgets``, whether the search ``ended_at_limit``, and
        the rule's parameters.

    Raises:
        BadInputError: an unknown method, one without a search, or a set with fewer than two rows.
    """
    method = named(name)
    plan = method.search
    if plan is None:
        raise BadInputError(f"{name} has nothing to search for: give one of {', '.join(NAMES)}.")
    start = time.perf_counter()
    split = Split.of(subject, task, seed)
    if method.kind == "mansu":
        mask = _mask(split.problem)
        given = {"mask": mask.tensors(), "candidates": mask.candidate_tensors()}
        split = replace(split, problem=replace(split.problem, **given))
    tried, limited = _tried(method, plan, split, rates, steps or plan.steps, batch, on_step)
    if not tried:
        raise MansuError(f"No setting of {name} gave a finite loss: nothing to choose from.")
    chosen = best(tried, margin=task.margin, tolerance=task.tolerance)
    return {
        "method": name,
        "subject": subject.name,
        "task": task.name,
        "task_digest": task.digest,
        "rule": "with a fall of validation retain accuracy within the tolerance: of those whose "
        "fall towards chance is the margin or more the least cost (nats, the worse of kept_fall "
        "and drift), else the largest fall, of equal falls the least cost",
        "margin": task.margin,
        "tolerance": task.tolerance,
        "forgets": at_most(task.margin, chosen["fall"]),
        "within_tolerance": at_most(chosen["retain_fall"], task.tolerance),
        "ended_at_limit": limited,
        "batch": batch,
        "seed": seed,
        "rows": {
            "train_forget": len(split.problem.forget),
            "train_retain": len(split.problem.retain),
            "valid_forget": len(split.forget),
            "valid_retain": len(split.retain),
        },
        "before": {"forget": split.before[0].accuracy, "retain": split.before[1].accuracy},
        "best": dict(chosen),
        "tried": tried,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _tried(
    method: Method,
    plan: Search,
    split: Split,
    rates: Sequence[float],
    steps: Sequence[int],
    batch: int,
    on_step: OnStep,
) -> tuple[list[dict[str, Any]], bool]:
    """Each setting with its measurements: the grid's, and of rates past its ends while the best is
    at the end. And whether it is there still, at the last rate that is tried."""
    task = split.problem.task
    values = {"batch": batch} if "batch" in method.options() else {}
    tried: list[dict[str, Any]] = []
    ahead, limited = list(rates), False
    for number in itertools.count():
        multiple = ahead.pop(0)
        rate = multiple * plan.origin

        def tell(step: Step, at: int = number, rate: float = rate) -> None:
            done, total = at * step.total + step.done, (at + 1 + len(ahead)) * step.total
            part = f"{plan.rate.replace('_', ' ')} {rate:g}, step {step.done}"
            on_step(replace(step, stage="search", done=done, total=total, part=part))

        found = _of_rate(method, split, {**values, plan.rate: rate}, steps, plan.apart, tell)
        tried += [{"learning_rate": rate, **setting} for setting in found]
        if tried and not ahead:
            now = best(tried, margin=task.margin, tolerance=task.tolerance)
            forgets = at_most(task.margin, now["fall"])
            slowest = min(t["learning_rate"] for t in tried)
            allowed = [t for t in found if at_most(t["retain_fall"], task.tolerance)]
            if not forgets and any(at_most(now["fall"], t["fall"]) for t in allowed):
                cheap = any(at_most(t["cost"], Thresholds.nats) for t in found)
                ahead.append(2 * multiple)
                limited = ahead[0] > rates[-1] * (CHEAP_GROWTH if cheap else GROWTH)
            elif forgets and (now["learning_rate"], now["steps"]) == (slowest, steps[0]):
                ahead.append(slowest / plan.origin / 2)
                limited = ahead[0] < rates[0] / GROWTH
        if limited or not ahead:
            break
    return tried, limited


def _of_rate(
    method: Method,
    split: Split,
    given: Mapping[str, Any],
    steps: Sequence[int],
    apart: bool,
    on_step: OnStep,
) -> list[dict[str, Any]]:
    """The settings of one rate with their measurements, to the first past the tolerance."""
    problem, found = split.problem, []

    def look(step: int) -> bool:
        if step not in steps:
            return False
        found.append({"steps": step, **split.judged()})
        return not at_most(found[-1]["retain_fall"], problem.task.tolerance)

    if not apart:
        method(replace(problem, on_step=on_step, watch=look), **given, steps=steps[-1])
        return found
    for before, most in zip(itertools.accumulate(steps, initial=0), steps, strict=False):

        def tell(step: Step, before: int = before) -> None:
            on_step(replace(step, done=before + step.done, total=sum(steps)))

        outcome = method(replace(problem, on_step=tell), **given, steps=most)
        with outcome.edit.applied(problem.subject):
            if look(most):
                break
    return found


def _doubt(found: Mapping[str, Any]) -> str:
    """What speaks against the best of a record, for people; nothing where nothing does."""
    doubts = {
        "no setting tried loses as little as the tolerance": not found["within_tolerance"],
        "no setting tried forgets by the margin": not found["forgets"],
        "the search ended at its limit": found.get("ended_at_limit"),  # older ones do not say
    }
    told = "; ".join(what for what, holds in doubts.items() if holds)
    return told and f" ({told})"


def _mask(problem: Problem) -> Mask:
    """The parameters of the circuit of the forget rows that the method trains on."""
    subject = problem.subject
    every = tasks.pairs(problem.task, subject)
    known = set(problem.forget.rows)
    pairs = every.select(
        [i for i, row in enumerate(every.rows) if row in known][: Settings().pairs]
    )
    found = attribute(subject, pairs)
    circuit = find_circuit(subject, pairs, found, max_fraction=default_fraction(subject))
    assert circuit.mask is not None
    return circuit.mask


@dataclass(frozen=True)
class Searched(Unit):
    """The search for one method's settings, as a unit of a sweep, which begins with no circuit."""

    @classmethod
    def of(cls, subject: str, task: str, method: str, batch: int = 20, seed: int = 0) -> Searched:
        """As ``search`` takes them.

        Raises:
            BadInputError: no such task, or a bad seed.
        """
        about = grid.about(tasks.load(task))
        run = asdict(configure(Settings, {"seed": seed}, "a search"))
        where = shipped.absolute(subject), grid.absolute(task)
        return cls(*where, about, run, method, settings={"batch": batch})

    @property
    def before(self) -> None:
        return None

    @property
    def stages(self) -> tuple[Stage, ...]:
        method, batch, seed = self.method or "", self.settings["batch"], self.run["seed"]

        def make(session: Session, _: str, on_step: OnStep) -> Sequence[Any]:
            subject, task = session.subject, session.task
            return (search(subject, task, method, batch=batch, seed=seed, on_step=on_step),)

        return (Stage("search", (), ("search",), 1, make),)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m experiments.search")
    parser.add_argument("task", help="a shipped task or a .jsonl file")
    parser.add_argument("method", choices=NAMES, nargs="+")
    parser.add_argument("--subject", default=subjects.DEFAULT)
    parser.add_argument("--batch", type=int, default=20, help="forget rows a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/search"),
        help="where the runs are; what is done there is not done again (%(default)s)",
    )
    parser.add_argument(
        "--to", type=Path, default=RESULTS, help="where search-METHOD.json is written (%(default)s)"
    )
    add_workers(parser)
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = parser.parse_args(words)

    def work() -> None:
        every = [
            Searched.of(given.subject, given.task, method, given.batch, given.seed)
            for method in dict.fromkeys(given.method)
        ]
        for method in given.method:
            refuse_unwritable(record(given.to, method))
        done = swept(every, given.folder, given)
        for unit in (unit for unit in every if unit.id in done.done):
            assert unit.method is not None
            found = Run.open(done.folder / unit.name).read("search")
            with replacing(record(given.to, unit.method)) as temporary:
                temporary.write_text(json.dumps(found, indent=1) + "\n")
            print(unit.method, json.dumps(found["best"]) + _doubt(found))
        done.refuse_failed()

    return ending("search", words, work)


if __name__ == "__main__":
    raise SystemExit(main())
