"""The paper's claims (arXiv 2605.15138), held against what is measured here.

::

    python -m experiments.reproduce                   # every method on seven tasks: hours
    python -m experiments.reproduce --subject tiny    # the same in a minute or two

It is a sweep (``mansu.sweep``) of what ``reproduce.toml`` lists, a run folder an edit; what is done
is not done again, and ``--workers`` and ``--ray`` say who does it. The folders give the figures
(``reproduce.json``), the figures the claims and tables, which are printed;
``python scripts/readme.py`` writes them into the README and ``docs/results.md``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from experiments import tables
from experiments.claims import separation
from experiments.figures import Measured, added, results
from mansu import methods
from mansu.cli.commands import ending
from mansu.cli.sweep import add_workers, swept
from mansu.errors import BadInputError
from mansu.files import read_json, refuse_unwritable, write_json
from mansu.job.runs import Run
from mansu.methods import ALL, NAMES
from mansu.subjects.shipped import REFERENCES
from mansu.sweep.grid import Grid, Unit, Value, circuits, units
from mansu.sweep.work import edit_at, is_done

CONFIG = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class Experiment:
    """One subject and one task, an entry of the configuration.

    Attributes:
        methods: what runs on it, MANSU first: the random control makes as many moves. Given none,
            it is all that can.
        attacked: the methods that are also attacked, and measured at parts of their strength.
        settings: of methods, by name, where they are not the defaults: what a search on this
            subject found.
    """

    subject: str
    task: str
    methods: tuple[str, ...] = ()
    attacked: tuple[str, ...] = NAMES
    settings: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ships = (self.subject, self.task) in REFERENCES
        everything = tuple(name for name in ALL if name != "retrained" or ships)
        object.__setattr__(self, "methods", self.methods or everything)

    @property
    def name(self) -> str:
        return f"{self.task}-{self.subject}"

    def units(
        self, names: Collection[str], seeds: Sequence[int] = (0,), **given: Value
    ) -> list[Unit]:
        """What is to be done for those of its methods that are named, with the given settings."""
        grid = Grid(
            subjects=[self.subject],
            tasks=[self.task],
            seeds=[*seeds],
            methods={
                name: {**self.settings.get(name, {}), **given}
                for name in self.methods
                if name in names
            },
            attacked=[name for name in self.attacked if name in names],
        )
        return units(grid)


def configured(path: Path = CONFIG) -> tuple[Experiment, ...]:
    """The experiments that a TOML file lists.

    Raises:
        BadInputError: no such file, not TOML, or an entry with an unknown key, method or type.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8-sig"))["experiments"]
        return tuple(_experiment(entry) for entry in entries)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise BadInputError(f"{path} lists no experiments: {error}.") from error


def _experiment(entry: dict[str, Any]) -> Experiment:
    unknown = entry.keys() - {known.name for known in fields(Experiment)}
    if unknown:
        raise TypeError(f"unknown key {min(unknown)!r}")
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    experiment = Experiment(**{**entry, **lists})
    for name in (*experiment.methods, *experiment.attacked):
        methods.named(name)
    for name, given in experiment.settings.items():
        methods.named(name).configure(given)
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
    sweep: Callable[[Sequence[Unit]], None],
    only: Sequence[str] = ALL,
) -> list[Measured]:
    """Do what is not yet done of every experiment, and say where it is.

    Args:
        folder: of the run folders. sweep: does units there.
        only: of each experiment's methods, those to run.

    Raises:
        MansuError: a unit failed, the random control is asked for before MANSU, or nothing was
            measured.
    """
    first = set(only) - {CONTROL}
    sweep([unit for e in experiments if first & {*e.methods} for unit in e.units(first)])
    asked = [e for e in experiments if CONTROL in only and CONTROL in e.methods]
    sweep([_control(e, folder) for e in asked])
    done = [(e, _done(e, folder)) for e in experiments]
    found = [_measured(e, units, folder) for e, units in done if units]
    if not found:
        raise BadInputError(f"Nothing was measured in {folder}: ask for another --method.")
    return found


CONTROL = "random_moves"
"""As many moves as MANSU makes, so that it is done after it."""


def _control(experiment: Experiment, folder: Path) -> Unit:
    (unit,) = experiment.units(["mansu"])
    if not is_done(unit, folder):
        raise BadInputError(
            f"{CONTROL} makes as many moves as MANSU, of which {folder} has no edit for "
            f"{experiment.name}: add --method mansu."
        )
    (found,) = experiment.units([CONTROL], moves=Run.edit(*edit_at(unit, folder)).n_moved)
    return found


def _done(experiment: Experiment, folder: Path) -> list[Unit]:
    """Every unit of an experiment that is done, also by an earlier command."""
    plain = experiment.units({*experiment.methods} - {CONTROL})
    done = [unit for unit in plain if is_done(unit, folder)]
    if CONTROL in experiment.methods and "mansu" in {unit.method for unit in done}:
        done += [unit for unit in [_control(experiment, folder)] if is_done(unit, folder)]
    return sorted(done, key=lambda unit: ALL.index(unit.method or ""))


def _measured(experiment: Experiment, done: Sequence[Unit], folder: Path) -> Measured:
    (circuit,) = circuits(done)
    edits = {unit.method or "": edit_at(unit, folder) for unit in done}
    return Measured(experiment.name, Run.open(folder / circuit.name), edits)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, measure, write ``reproduce.json`` and print the report; see ``ending`` for the code."""
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
    parser.add_argument(
        "--add",
        action="store_true",
        help="keep what reproduce.json there says of what --folder does not have",
    )
    parser.add_argument("--subject", help="only the experiments on this subject, e.g. tiny")
    parser.add_argument("--task", action="append", help="only the experiments on these tasks")
    parser.add_argument("--method", action="append", help="only these methods; by default all")
    add_workers(parser)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)

    def sweep(units: Sequence[Unit]) -> None:
        if units:
            swept(units, options.folder, options).refuse_failed()

    def work() -> None:
        experiments = chosen(configured(options.config), options.subject, options.task)
        names = options.method or ALL
        for name in names:
            methods.named(name)
        if strange := {*(options.method or ())}.difference(*(e.methods for e in experiments)):
            raise BadInputError(
                f"No experiment on that subject and task is of {min(strange)}: {options.config} "
                "says which methods each has."
            )
        earlier = read_json(options.to / "reproduce.json") if options.add else None
        refuse_unwritable(options.to / "reproduce.json")
        measured = measure(options.folder, experiments, sweep, names)
        found = results(measured, shlex.join(["python", "-m", "experiments.reproduce", *given]))
        if earlier is not None:
            found = added(found, earlier)
        write_json(options.to / "reproduce.json", found)
        print(tables.report(found, separation(options.to)))

    return ending("reproduce", given, work)


if __name__ == "__main__":
    sys.exit(main())
