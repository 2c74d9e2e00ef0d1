"""The paper's claims (arXiv 2605.15138), held against what is measured here.

::

    python -m experiments.reproduce                   # every method on four tasks: hours
    python -m experiments.reproduce --subject tiny    # the same in a minute or two

Each subject and task of ``reproduce.toml`` has a run folder that goes on where it stopped. The
folders give the figures (``reproduce.json``), the figures the claims and tables, which are printed;
``python scripts/readme.py`` writes them into the README and ``docs/results.md``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from experiments import tables
from experiments.claims import separation
from experiments.figures import results
from experiments.search import search
from mansu import methods, subjects, tasks
from mansu.errors import BadInputError, MansuError
from mansu.files import write_json
from mansu.job import pipeline
from mansu.job.lock import hold
from mansu.job.pipeline import perform
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.methods import ALL, NAMES
from mansu.progress import OnStep, Step, silent
from mansu.show.sentences import sentence
from mansu.subjects.shipped import REFERENCES

CONFIG = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class Experiment:
    """One subject and one task, an entry of the configuration.

    Attributes:
        methods: what runs on it, MANSU first: the random control makes as many moves. Given none,
            it is all that can.
        attacked: the methods that are also attacked, and measured at parts of their strength.
        in_detail: those whose updates are also held against other formats and Theorem 1's bounds.
        rates: multiples of each baseline's published learning rate that a search tries first;
            none where the methods' own defaults already are the search's result.
    """

    subject: str
    task: str
    methods: tuple[str, ...] = ()
    attacked: tuple[str, ...] = NAMES
    in_detail: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        ships = (self.subject, self.task) in REFERENCES
        everything = tuple(name for name in ALL if name != "retrained" or ships)
        object.__setattr__(self, "methods", self.methods or everything)

    @property
    def name(self) -> str:
        return f"{self.task}-{self.subject}"


def configured(path: Path = CONFIG) -> tuple[Experiment, ...]:
    """The experiments that a TOML file lists.

    Raises:
        BadInputError: no such file, not TOML, or an entry with an unknown key, method or type.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["experiments"]
        return tuple(_experiment(entry) for entry in entries)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise BadInputError(f"{path} lists no experiments: {error}.") from error


def _experiment(entry: dict[str, Any]) -> Experiment:
    unknown = entry.keys() - {field.name for field in fields(Experiment)}
    if unknown:
        raise TypeError(f"unknown key {min(unknown)!r}")
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    experiment = Experiment(**{**entry, **lists})
    for name in (*experiment.methods, *experiment.attacked, *experiment.in_detail):
        methods.named(name)
    return experiment


def chosen(
    experiments: Sequence[Experiment], subject: str | None, named: Sequence[str] | None
) -> list[Experiment]:
    """Those on this subject and these tasks; None is all.

    Raises:
        BadInputError: there is none.
    """
    found = [
        e for e in experiments if subject in (None, e.subject) and e.task in (named or [e.task])
    ]
    if not found:
        known = ", ".join(f"{e.task} on {e.subject}" for e in experiments)
        raise BadInputError(f"No experiment is on that subject and task: there are {known}.")
    return found


def measure(
    folder: Path,
    experiments: Sequence[Experiment],
    on_step: OnStep = silent,
    only: Sequence[str] = ALL,
) -> list[Run]:
    """Do what is not yet done of every experiment, one run folder each in ``folder``.

    Args:
        only: of each experiment's methods, those to run.
    """
    runs = []
    for experiment in experiments:
        path = folder / experiment.name
        subject = subjects.load(experiment.subject)
        if Run.is_at(path):
            run = Run.open(path)
        else:
            task = tasks.load(experiment.task)
            run = Run.create(subject, task, path=path, asked=experiment.methods)
        with hold(run.path):
            for name in experiment.methods:
                if name not in only:
                    continue
                # One a method, so that what it leaves is not in the next one's peak of memory.
                session = Session(run, subject)
                perform(session, pipeline.CIRCUIT, on_step=on_step)
                stages = [pipeline.unlearning(name, _settings(experiment, session, name, on_step))]
                if name in experiment.in_detail:
                    stages += pipeline.MEASURE
                stages += [pipeline.BASE_NF4, pipeline.QUANTIZE, *pipeline.JUDGE]
                if name in experiment.attacked:
                    stages += [*pipeline.RECOVERY, pipeline.STRENGTHS]
                perform(session, stages, name, on_step)
        runs.append(run)
    return runs


def _settings(
    experiment: Experiment, session: Session, name: str, on_step: OnStep
) -> dict[str, Any]:
    run = session.run
    if name == "random_moves":
        return {"moves": run.edit("mansu").n_moved}
    if methods.named(name).kind != "baseline" or not experiment.rates:
        return {}
    if not run.has("search", part=name):
        rates = experiment.rates
        found = search(session.subject, session.task, name, rates=rates, on_step=on_step)
        run.save({"search": found}, part=name)
    best = run.read("search", part=name)["best"]
    return {"learning_rate": best["learning_rate"], "steps": best["steps"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, measure, write ``reproduce.json`` and print the report; 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reproduce",
        description="Hold the paper's claims against every method on several tasks.",
    )
    parser.add_argument(
        "--config", type=Path, default=CONFIG, help="what to run, as TOML (%(default)s)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/reproduce"),
        help="where the runs are; what is done there is not done again (%(default)s)",
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("experiments/results"),
        help="where reproduce.json is written (%(default)s)",
    )
    parser.add_argument("--subject", help="only the experiments on this subject, e.g. tiny")
    parser.add_argument("--task", action="append", help="only the experiments on these tasks")
    parser.add_argument("--method", action="append", help="only these methods; by default all")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)

    def on_step(step: Step) -> None:
        print(sentence(step), file=sys.stderr, flush=True)

    try:
        experiments = chosen(configured(options.config), options.subject, options.task)
        names = options.method or ALL
        for name in names:
            methods.named(name)
        runs = measure(options.folder, experiments, on_step, names)
        found = results(runs, shlex.join(["python", "-m", "experiments.reproduce", *given]))
        options.to.mkdir(parents=True, exist_ok=True)
        write_json(options.to / "reproduce.json", found)
        print(tables.report(found, separation(options.to)))
    except MansuError as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
