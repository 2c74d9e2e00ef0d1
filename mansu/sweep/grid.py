"""A grid in a file: which methods and settings, on which tasks and subjects, from which seeds.

::

    subjects = ["tiny"]
    tasks = ["tiny-colours"]
    seeds = [0, 1]

    [run]              # settings of every run, if not the defaults
    pairs = 16

    [methods.mansu]    # a setting has one value, or a list of those to try
    rate = [0.06, 0.12]

    [methods.graddiff]

JSON holds the same. Each combination is a ``Unit``. The edits of the methods in a further list
``attacked`` are also attacked, and measured at parts of their strength.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from mansu import methods, tasks
from mansu.errors import BadInputError
from mansu.files import parsed_json, slug
from mansu.job import pipeline
from mansu.job.pipeline import Stage
from mansu.job.settings import Settings
from mansu.settings import configure, settings_of
from mansu.subjects import shipped

MOST = 10_000
"""Units of one grid: more are a slip, such as a list where a value was meant."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Value = bool | int | float | str | None
_VALUES: Mapping[int | str, int] = {"methods": 3, "run": 2}
"""How deep in which table of a grid the values of settings are."""


class Grid(BaseModel):
    """What a file asks for; see the module.

    Attributes:
        subjects, tasks: as for ``mansu run``.
        methods: by name, the values or lists of values of its settings; the others are defaults.
        seeds: of the run. run: its other settings.
        attacked: those of the methods whose edits are also attacked.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    subjects: list[Name] = Field(min_length=1)
    tasks: list[Name] = Field(min_length=1)
    methods: dict[str, dict[str, Value | list[Value]]] = Field(min_length=1)
    seeds: list[int] = Field([0], min_length=1)
    run: dict[str, Value] = {}
    attacked: list[Name] = []


CIRCUIT = (*pipeline.CIRCUIT, pipeline.BASE_NF4, pipeline.REFERENCE)
"""What the edits of one run's settings have in common: made once, and linked."""


@dataclass(frozen=True)
class Unit:
    """One piece of a grid: plain values, so that any process on any node can do it.

    What else a sweep is to do (``experiments.search``) is a unit with other ``stages``.

    Attributes:
        subject, task: names or absolute paths.
        task_is: the task's digest and thresholds when the grid was read.
        run: every setting of its run, the seed among them.
        method: whose edit; None for the circuit, which the edits of one run's settings share.
        given: the settings of the method that were given. settings: all of them, and for those
            that are left empty what that stands for.
        attacked: also attack the edit, and measure it at parts of its strength; of a circuit: make
            what that needs of the unedited model.
    """

    subject: str
    task: str
    task_is: Mapping[str, Any]
    run: Mapping[str, Any]
    method: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    attacked: bool = False

    @property
    def id(self) -> str:
        """Of all that its edit depends on; its subject's weights its run folder knows."""
        what = [self.subject, self.task_is, self.run, self.method, self.settings]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """Of its run folder."""
        parts = Path(self.task).stem, Path(self.subject).name, self.method or "circuit"
        return f"{slug('-'.join(parts))[:60]}-{self.id}"

    @property
    def label(self) -> str:
        """For people."""
        given = ", ".join(f"{name} {value}" for name, value in self.given.items())
        seed = f"seed {self.run['seed']}"
        what = self.method or "circuit"
        place = f"{Path(self.task).stem} on {Path(self.subject).name}"
        return f"{what} ({', '.join(filter(None, [given, seed]))}), {place}"

    @property
    def before(self) -> Unit | None:
        """The unit that makes what this one begins with: the circuit."""
        if self.method is None:
            return None
        return Unit(self.subject, self.task, self.task_is, self.run, attacked=self.attacked)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is done for it, in its run folder."""
        if self.method is None:
            return (*CIRCUIT, pipeline.BASE_ATTACKS) if self.attacked else CIRCUIT
        stages = pipeline.whole(self.method, self.given)
        return (*stages, *pipeline.RECOVERY, pipeline.STRENGTHS) if self.attacked else stages


def read(path: Path) -> Grid:
    """A grid of a ``.toml`` or ``.json`` file.

    Raises:
        BadInputError: no such file, another ending, or something in it is not what it should be.
    """
    if path.suffix not in (".toml", ".json"):
        raise BadInputError(f"{path} is no grid: give a .toml or a .json file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        value = tomllib.loads(text) if path.suffix == ".toml" else parsed_json(text)
        return Grid.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, what = first["loc"], first["msg"]
        depth = _VALUES.get(where[0] if where else "")
        if depth is not None and len(where) > depth:  # of a value pydantic says what each type is
            where, what = where[:depth], "give a number, text, true or false"
            what += ", or a list of those" if where[0] == "methods" else ""
        why = f"{'.'.join(map(str, where)) or 'the whole'}: {what}"
    except OSError as error:
        why = error.strerror or str(error)
    except (ValueError, RecursionError) as error:
        why = f"it is no {path.suffix[1:].upper()}: {error}"
    raise BadInputError(
        f"The grid {path} cannot be used ({why:.200}): it has the lists subjects and tasks and a "
        "table methods, and may have the lists seeds and attacked and the table run."
    )


def units(grid: Grid) -> list[Unit]:
    """Every combination, each once; those that share a subject, then a circuit, together.

    Raises:
        BadInputError: no such task, method or setting, a bad value, too many combinations, or the
            retrained reference where none ships.
    """
    each = {name: list(_products(values)) for name, values in grid.methods.items()}
    n = len(grid.subjects) * len(grid.tasks) * len(grid.seeds) * sum(map(len, each.values()))
    if n > MOST:
        raise BadInputError(f"The grid has {n:,} units, and {MOST:,} are the most: divide it.")
    if "seed" in grid.run:
        raise BadInputError("The grid's table run has a seed: write it in the list seeds.")
    runs = [asdict(configure(Settings, {**grid.run, "seed": s}, "a run")) for s in grid.seeds]
    made = [(n, given, _settings(n, given)) for n, every in each.items() for given in every]
    if strange := set(grid.attacked) - grid.methods.keys():
        raise BadInputError(f"The grid has {min(strange)!r} in attacked, and no such method.")
    facts = {absolute(name): tasks.load(name) for name in grid.tasks}
    on = [*map(shipped.absolute, grid.subjects)]
    for subject, task, method in itertools.product(on, facts.values(), grid.methods):
        pipeline.refuse_unmakeable(method, subject, task)
    told = {name: about(task) for name, task in facts.items()}
    found = [
        Unit(subject, task, of_task, run, *what, attacked=what[0] in grid.attacked)
        for subject in on
        for task, of_task in told.items()
        for run in runs
        for what in made
    ]
    return list({unit.id: unit for unit in found}.values())


def _products(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    lists = [value if isinstance(value, list) else [value] for value in values.values()]
    if math.prod(map(len, lists)) > MOST:
        raise BadInputError(f"A method of the grid has more than {MOST:,} settings: divide it.")
    if any(not some for some in lists):
        raise BadInputError("A setting of the grid has an empty list: give a value, or leave it.")
    return (dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*lists))


def _settings(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting; one that is left empty by what it stands for, or a result of another default
    would be taken for this one's."""
    values = asdict(methods.named(method).configure(given))
    known = settings_of(methods.named(method).settings)
    return {n: known[n].empty if value is None else value for n, value in values.items()}


def about(task: tasks.Task) -> dict[str, Any]:
    """What a unit knows of its task, so that another one is told from it."""
    return {name: getattr(task, name) for name in ("digest", "margin", "tolerance")}


def absolute(name: str) -> str:
    """A task's file as it is found from every folder; a name stays one."""
    known = name in tasks.shipped()
    return str(Path(name).resolve()) if not known and Path(name).exists() else name


def circuits(units: Sequence[Unit]) -> list[Unit]:
    """The units that others begin with, each once, with what any of those needs."""
    found: dict[str, Unit] = {}
    for unit in filter(None, (unit.before for unit in units)):
        if unit.id not in found or unit.attacked:
            found[unit.id] = unit
    return list(found.values())
