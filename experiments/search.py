"""The one small search that every method's defaults come from.

The grid is the same for every method: one, two and four times its authors' learning rate (they
train for hundreds of steps, we for a dozen), each trained once at a constant rate and measured
after 4, 8 and 12 steps; while the best setting has the largest rate and is not near chance, the
rate is doubled once more, up to 32 times. The rows are split in half within each answer, so that a
fact with several phrasings is in both halves: the method trains on one half, the other decides. The
rule: the largest fall of the forget set's 4-way accuracy among the settings whose retain accuracy
fell by no more than the task's tolerance; of equals, the higher retain log-probability. A rate's
run ends at the first measurement past the tolerance. If no setting is within it, the one with the
smallest fall of retain accuracy is taken, and the record says so.

MANSU goes through the same: its rates are multiples of ``ORIGIN`` bins a step, for want of its
authors' code; its steps are cheaper in what they move, so that it is measured after 12, 24 and 36;
it does not stop at its target; and its circuit is that of the rows it trains on.

``python -m experiments.search chemical-symbols graddiff`` writes
``experiments/results/search-graddiff.json``, whose best setting is the method's default.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from mansu import subjects, tasks
from mansu.circuits.attribution import attribute
from mansu.circuits.mask import parameter_mask
from mansu.circuits.search import minimal_circuit
from mansu.errors import MansuError
from mansu.files import replacing
from mansu.job.pipeline import DEFAULTS, default_fraction
from mansu.measure.scores import Scores, measure
from mansu.methods import NAMES, Problem, Progress, silent
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task
from mansu.tasks.tokens import Examples

BASELINES = NAMES[1:]


ORIGIN = 0.03
"""Of MANSU's rates, in NF4 bins a step."""


RATES = (1.0, 2.0, 4.0)


GROWTH = 8.0
"""The largest rate tried is at most this many times the last of the grid."""


NEAR_CHANCE = 0.3


STEPS = (4, 8, 12)


MANSU_STEPS = (12, 24, 36)


RESULTS = Path("experiments/results")


class _PastToleranceError(Exception):
    """Raised from progress to end a rate's run."""


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


def best(tried: Sequence[Mapping[str, Any]], tolerance: float) -> Mapping[str, Any]:
    """The rule of this module on measured settings (each with forget, retain_fall, retain_nll)."""
    allowed = [t for t in tried if t["retain_fall"] <= tolerance]
    if not allowed:
        return min(tried, key=lambda t: (t["retain_fall"], t["forget"], t["retain_nll"]))
    return min(allowed, key=lambda t: (t["forget"], t["retain_nll"]))


def search(
    subject: Subject,
    task: Task,
    method: str,
    *,
    rates: Sequence[float] = RATES,
    steps: Sequence[int] | None = None,
    batch: int = 20,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Search learning rate × steps for one method.

    Args:
        method: one of ``NAMES``. rates: multiples of its authors' learning rate (``ORIGIN`` for
            MANSU).
        steps: when to measure, ascending; ``STEPS`` or ``MANSU_STEPS`` by default.
        batch: forget rows a step; MANSU has its own number.

    Returns:
        JSON values: ``best`` (learning rate, steps and its measurements), ``tried`` (each setting
        in order, with forget and retain accuracy on the validation half and the mean negative
        log-likelihood of the retain answers in nats), ``before`` (of the unedited model), and the
        rule's parameters.

    Raises:
        MansuError: an unknown method, or a set with fewer than two rows.
    """
    if method not in NAMES:
        raise MansuError(f"Unknown method {method!r}: give one of {', '.join(NAMES)}.")
    module = importlib.import_module(f"mansu.methods.{method}")
    ours = method == "mansu"
    steps = steps or (MANSU_STEPS if ours else STEPS)
    origin = ORIGIN if ours else module.PUBLISHED_RATE
    forget, retain = (tasks.examples(task, subject, s, seed=seed) for s in tasks.NEEDED)
    if min(len(forget), len(retain)) < 2:
        raise MansuError(
            f"The task {task.name!r} has {len(forget)} forget and {len(retain)} retain rows: a "
            "search needs two of each, one to train on and one to validate on."
        )
    (train_forget, valid_forget), (train_retain, valid_retain) = (
        halves(forget, seed),
        halves(retain, seed),
    )
    problem = Problem(
        subject,
        task,
        forget.select(train_forget),
        retain.select(train_retain),
        tasks.text(task, subject),
        seed=seed,
    )
    if ours:
        problem = dataclasses.replace(problem, mask=_mask(problem))

    def validate() -> tuple[Scores, Scores]:
        valid = forget.select(valid_forget), retain.select(valid_retain)
        return measure(subject, valid[0]), measure(subject, valid[1])

    start = time.perf_counter()
    with subject.lock:
        before = validate()
    tried: list[dict[str, Any]] = []
    ahead, most = list(rates), GROWTH * rates[-1]
    number = 0
    while ahead:
        multiple = ahead.pop(0)
        rate = multiple * origin

        def watch(share: float, message: str, rate: float = rate, number: int = number) -> None:
            step = round(share * steps[-1])
            whole = number + 1 + len(ahead)
            progress((number + share) / whole, f"learning rate {rate:g}: {message}")
            if step not in steps:
                return
            now_forget, now_retain = validate()
            tried.append(
                {
                    "learning_rate": rate,
                    "steps": step,
                    "forget": now_forget.accuracy,
                    "retain": now_retain.accuracy,
                    "retain_fall": before[1].accuracy - now_retain.accuracy,
                    "forget_nll": -float(now_forget.log_probability.mean()),
                    "retain_nll": -float(now_retain.log_probability.mean()),
                }
            )
            if tried[-1]["retain_fall"] > task.tolerance:
                raise _PastToleranceError

        with suppress(_PastToleranceError):
            watched = dataclasses.replace(problem, progress=watch)
            if ours:
                module.unlearn(watched, rate=rate, steps=steps[-1], target=-1.0)
            else:
                module.unlearn(watched, learning_rate=rate, steps=steps[-1], batch=batch)
        number += 1
        if tried and not ahead and 2 * multiple <= most:
            now = best(tried, task.tolerance)
            if now["learning_rate"] == rate and now["forget"] > NEAR_CHANCE:
                ahead.append(2 * multiple)
    if not tried:
        raise MansuError(f"No setting of {method} gave a finite loss: nothing to choose from.")
    chosen = best(tried, task.tolerance)
    return {
        "method": method,
        "subject": subject.name,
        "task": task.name,
        "task_digest": task.digest,
        "rule": "largest fall of validation forget 4-way accuracy with a fall of validation "
        "retain accuracy within the tolerance; of equals, the lowest retain_nll",
        "tolerance": task.tolerance,
        "within_tolerance": chosen["retain_fall"] <= task.tolerance,
        "batch": batch,
        "seed": seed,
        "rows": {
            "train_forget": len(train_forget),
            "train_retain": len(train_retain),
            "valid_forget": len(valid_forget),
            "valid_retain": len(valid_retain),
        },
        "before": {"forget": before[0].accuracy, "retain": before[1].accuracy},
        "best": dict(chosen),
        "tried": tried,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _mask(problem: Problem) -> Mapping[str, Tensor]:
    """The parameters of the circuit of the forget rows that the method trains on."""
    subject = problem.subject
    every = tasks.pairs(problem.task, subject)
    known = set(problem.forget.rows)
    pairs = every.select(
        [i for i, row in enumerate(every.rows) if row in known][: DEFAULTS["pairs"]]
    )
    found = attribute(subject, pairs)
    circuit = minimal_circuit(subject, pairs, found)
    fraction = default_fraction(subject)
    return parameter_mask(subject, circuit, found, max_fraction=fraction).tensors()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m experiments.search")
    parser.add_argument("task", help="a shipped task or a .jsonl file")
    parser.add_argument("method", choices=NAMES)
    parser.add_argument("--subject", default=subjects.DEFAULT)
    parser.add_argument("--batch", type=int, default=20, help="forget rows a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, help="default: experiments/results/search-METHOD.json"
    )
    given = parser.parse_args(arguments)
    output = given.output or RESULTS / f"search-{given.method.replace('_', '-')}.json"
    try:
        task = tasks.load(given.task)
        subject = subjects.load(given.subject)
        found = search(
            subject,
            task,
            given.method,
            batch=given.batch,
            seed=given.seed,
            progress=lambda share, message: print(f"{share:4.0%} {message}", file=sys.stderr),
        )
    except MansuError as error:
        print(error, file=sys.stderr)
        return 2
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["best"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
