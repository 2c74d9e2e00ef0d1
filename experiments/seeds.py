"""How much an edit depends on its seed: MANSU and the three strongest baselines, three seeds each.

::

    python -m experiments.seeds > docs/seeds.md                 # some eight hours of one core
    python -m experiments.seeds --subject tiny                  # two minutes
    python -m experiments.seeds --task antonyms --method kl     # one row of a table

A seed draws the pairs that the circuit is found on, the rows of each step, and the distractors of a
question. The units are those of ``experiments.reproduce`` where the seed is 0: in one folder they
are not done again.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.figures import commit
from experiments.reproduce import chosen, configured
from mansu import subjects
from mansu.cli.commands import ending
from mansu.cli.sweep import add_workers, swept
from mansu.evidence.verdict import ABOUT, STATUSES, kept_loss
from mansu.job.runs import Run
from mansu.methods import NAMES, named
from mansu.show.numbers import mark
from mansu.show.table import Table
from mansu.subjects import shipped
from mansu.sweep.grid import Unit
from mansu.sweep.work import edit_at

SEEDS = (0, 1, 2)
METHODS = ("mansu", "kl", "npo", "sure")
GEMMA = "gemma-3-270m"
SUBJECTS = (subjects.TINY, subjects.DEFAULT, GEMMA)
PLANS = (
    *((subject, shipped.TABLE[subject].task, (*METHODS, "graddiff")) for subject in SUBJECTS[:2]),
    *((subjects.DEFAULT, task, METHODS) for task in ("capitals", "languages", "antonyms")),
    (GEMMA, "gemma-symbols", ("mansu",)),
)
"""Subject, task, methods: MANSU, and what leaves the fewest rephrasings (docs/results.md)."""

HEAD = """# Three seeds

Made by `python -m experiments.seeds`: the mean over the seeds, and in brackets the least and the
most. Accuracies are in percent, full precision / NF4; the worst kept group in the worse of the two.
A property's marks are counted, by the intervals of the day. An edit that was done is not done
again, so that it may be of an earlier commit than its table."""
"""What stands above the tables."""


def planned(subject: str, task: str, methods: Sequence[str]) -> list[Unit]:
    """Every method and seed on one subject and task, as the reproduction does its one seed."""
    (experiment,) = chosen(configured(), subject, [task])
    return experiment.units(methods, SEEDS)


def table(done: Mapping[str, Sequence[tuple[Run, str]]]) -> Table:
    """A row a method: the mean over its seeds, and the least and the most.

    Args:
        done: method → run and edit of each seed.
    """
    rows = []
    for method, edits in done.items():
        measured = [
            (run.measurement(e, nf4=False), run.measurement(e, nf4=True)) for run, e in edits
        ]
        verdicts = [run.verdict(e) for run, e in edits]
        accuracies = [
            " / ".join(
                _spread([100 * pair[nf4].splits[split].accuracy for pair in measured], ".0f")
                for nf4 in (False, True)
            )
            for split in ("forget", "paraphrase")
        ]
        kept = [lost.value for v in verdicts if (lost := kept_loss(v.retention.checks))]
        counted = [Counter(getattr(v, name).status for v in verdicts) for name in ABOUT]
        marks = [" ".join(f"{c[s]} {mark(s)}" for s in STATUSES if c[s]) for c in counted]
        title = named(method).title
        rows.append((title, str(len(edits)), *accuracies, _spread(kept, "+.2f"), *marks))
    head = ("Method", "Seeds", "Forget rows", "Rephrasings", "Worst kept, nats", *ABOUT.values())
    return Table(head, rows)


def _spread(values: Sequence[float], form: str) -> str:
    """The mean, and in brackets the least and the most of several."""
    mean = format(sum(values) / len(values), form)
    return f"{mean} [{min(values):{form}}, {max(values):{form}}]" if len(values) > 1 else mean


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.seeds", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/reproduce"), help="of the runs")
    parser.add_argument("--subject", choices=SUBJECTS, help="only on this model")
    parser.add_argument("--task", choices=[task for _, task, _ in PLANS], help="only on this task")
    parser.add_argument("--method", action="append", choices=NAMES, help="only these methods")
    add_workers(parser)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    plans = [
        (subject, task, asked)
        for subject, task, methods in PLANS
        if options.subject in (None, subject) and options.task in (None, task)
        if (asked := [m for m in methods if m in (options.method or methods)])
    ]
    if not plans or {*(options.method or ())} - {m for *_, asked in plans for m in asked}:
        parser.error("not all of that is planned: PLANS in experiments/seeds.py says what is")

    def work() -> None:
        print(HEAD)
        for subject, task, methods in plans:
            todo = planned(subject, task, methods)
            swept(todo, options.folder, options).refuse_failed()
            done: dict[str, list[tuple[Run, str]]] = {name: [] for name in methods}
            for unit in todo:
                done[unit.method or ""].append(edit_at(unit, options.folder))
            print(f"\n## {task} on {subject}\n\nAt commit {commit()}.", flush=True)
            print(f"\n{table(done).markdown()}", flush=True)

    return ending("seeds", given, work)


if __name__ == "__main__":
    sys.exit(main())
