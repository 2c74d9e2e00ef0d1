"""A sweep: every unit of a grid done once, by whoever has time, and kept in the store."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from mansu.errors import MansuError
from mansu.job.lock import asked_to_stop
from mansu.job.runs import Run
from mansu.show.numbers import NOTHING, duration
from mansu.sweep.grid import CIRCUIT, Unit, circuits
from mansu.sweep.pools import Pool
from mansu.sweep.store import Store
from mansu.sweep.work import (
    EDIT,
    Outcome,
    cancelled,
    identity,
    is_done,
    known_of,
    record,
    refuse_other,
)

RETRIES = 2
"""How often a unit is begun again whose worker was lost."""
AGAIN = 5.0
"""Seconds before a unit is tried again that another job is at work on."""
QUIET = 60.0
"""Seconds without a word, after which the time left is said again."""

Kind = tuple[str, str, str | None]
"""What units take alike: subject, task, method."""


def kind(unit: Unit) -> Kind:
    return unit.subject, unit.task, unit.method


@dataclass
class Sweep:
    """The state of a sweep; ``run`` does it. A finished unit is recorded, not repeated.

    Attributes:
        units: of the grid. folder: of all run folders. store: of the results.
        pool: who does them. tell: hears a sentence of each step.
        retries: how often a unit is begun again whose worker was lost.
        done, failed: ids of the units that ended, and why. lost: how often each lost its worker.
    """

    units: Sequence[Unit]
    folder: Path
    store: Store
    pool: Pool
    tell: Callable[[str], None]
    retries: int = RETRIES
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)
    _records: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _subjects: dict[str, tuple[str, str] | MansuError] = field(default_factory=dict)
    _took: dict[Kind, list[float]] = field(default_factory=dict)
    _at: dict[str, Unit] = field(default_factory=dict)
    _begun: dict[str, float] = field(default_factory=dict)
    _not_before: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        """Do every unit that is not done; those that fail do not keep the others.

        Raises:
            StorageError: the store cannot be written.
        """
        waiting = self._waiting()
        self.tell(
            f"{len(self.units)} units: {len(self._edits & self.done)} are done, {len(waiting)} to "
            f"do with their circuits, {self.pool.size} at once."
        )
        said = time.monotonic()
        while waiting or self._at:
            self._hand_out(waiting)
            for unit, outcome in self.pool.ended(1.0) if self._at else _pause():
                del self._at[unit.id]
                self._end(unit, outcome, waiting)
                self.tell(f"{self._where(waiting)}: {unit.label} {self._said(unit, outcome)}")
                said = time.monotonic()
            if time.monotonic() - said > QUIET:
                self.tell(self._where(waiting))
                said = time.monotonic()

    def refuse_failed(self) -> None:
        """Say so where units failed, once all has ended.

        Raises:
            MansuError: some did; says how many, and why the first.
        """
        if self.failed:
            why = next(iter(self.failed.values()))
            n = sum(unit.id in self.failed for unit in self.units)
            raise MansuError(
                f"{n} of {len(self.units)} units failed, the first: {why} Mend it and start the "
                "sweep again: what is done is kept."
            )

    @property
    def _edits(self) -> set[str]:
        """Ids of the grid's own units: their circuits, which are made, too, are none."""
        return {unit.id for unit in self.units}

    def _waiting(self) -> deque[Unit]:
        """What is to be done: each subject's circuits, then its edits; the rest is recorded."""
        edits = [unit for unit in self.units if not self._recorded(unit)]
        some = [unit for unit in circuits(edits) if not self._recorded(unit)]
        subjects = list(dict.fromkeys(unit.subject for unit in self.units))
        return deque(sorted([*some, *edits], key=lambda unit: subjects.index(unit.subject)))

    def _recorded(self, unit: Unit) -> bool:
        """Whether a unit is done, or cannot be: then it is in the store."""
        try:
            if not is_done(unit, self.folder):
                return False
            refuse_other(unit, self.folder, *self._known(unit.subject))
            self._keep(unit)
        except MansuError as error:
            self._fail(unit, str(error))
        return True

    def _known(self, subject: str) -> tuple[str, str]:
        """``known_of`` it: its folder may hold other weights now than when a unit was done.

        Loaded once, and not for each of its units; the workers check what they do themselves.
        """
        if subject not in self._subjects:
            try:
                self._subjects[subject] = known_of(subject)
            except MansuError as error:
                self._subjects[subject] = error
        found = self._subjects[subject]
        if isinstance(found, MansuError):
            raise found
        return found

    def _keep(self, unit: Unit) -> None:
        found = record(unit, self.folder)
        if unit.method is not None:
            self.store.put(found)
        self._records[unit.id] = found
        begun = self._begun.get(unit.id)  # here the subject was loaded, too
        took = found["seconds"] if begun is None else time.monotonic() - begun
        self._took.setdefault(kind(unit), []).append(took)
        self.done.add(unit.id)

    def _fail(self, unit: Unit, why: str) -> None:
        self.failed[unit.id] = why
        if unit.method is not None:
            self.store.put({**identity(unit), "state": "failed", "error": why})

    def _hand_out(self, waiting: deque[Unit]) -> None:
        """Give the pool what can begin now, in order."""
        for unit in [*waiting]:
            if len(self._at) >= self.pool.size:
                return
            before = unit.before and unit.before.id
            if before in self.failed:
                waiting.remove(unit)
                self._fail(unit, self.failed[before])
                self.tell(f"{self._where(waiting)}: {unit.label} failed with its circuit")
            elif before is not None and before not in self.done:
                continue
            elif self._not_before.get(unit.id, 0.0) <= time.monotonic():
                waiting.remove(unit)
                if not (unit.id in self._not_before and self._recorded(unit)):
                    self._at[unit.id] = unit
                    self._begun[unit.id] = time.monotonic()
                    self.pool.give(unit)

    def _end(self, unit: Unit, outcome: Outcome, waiting: deque[Unit]) -> None:
        if outcome.state == "done":
            try:
                self._keep(unit)
            except MansuError as error:
                self._fail(unit, str(error))
        elif outcome.state == "taken":
            self._not_before[unit.id] = time.monotonic() + AGAIN
            waiting.append(unit)
        elif outcome.state == "lost" and asked_to_stop(self.folder / unit.name):
            self._fail(unit, cancelled(unit))
        elif outcome.state == "lost" and self.lost[unit.id] < self.retries:
            self.lost[unit.id] += 1
            waiting.appendleft(unit)
        else:
            self._fail(unit, outcome.why)

    def _said(self, unit: Unit, outcome: Outcome) -> str:
        """How a unit ended, in some words, with what it cost."""
        if outcome.state == "taken":
            return f"waits: {outcome.why}"
        if unit.id in self.failed:
            return f"failed: {self.failed[unit.id]}"
        if outcome.state == "lost":
            return "is begun again: its worker was lost"
        found = self._records[unit.id]
        verdict = f", verdict {found['verdict'].status}" if found.get("verdict") else ""
        memory = found["memory_gib"]
        cost = f"{self._took[kind(unit)][-1]:.1f} s"
        return f"took {cost}, {NOTHING if memory is None else f'{memory:.2f}'} GiB{verdict}"

    def _where(self, waiting: Sequence[Unit]) -> str:
        edits = self._edits
        done, failed = len(edits & self.done), len(edits & self.failed.keys())
        at_work = [(kind(unit), self._share(unit)) for unit in self._at.values()]
        seconds = left(self._took, [kind(u) for u in waiting], at_work, self.pool.size)
        text = f"{done} of {len(edits)} done" + (f", {failed} failed" if failed else "")
        return f"{text}, about {duration(seconds)} left" if seconds else text

    def _share(self, unit: Unit) -> float:
        """How much of a unit at work is done: by what its run folder says."""
        path = self.folder / unit.name
        return Run.open(path).status().share if Run.is_at(path) else 0.0


def _pause() -> list[tuple[Unit, Outcome]]:
    """Where everything waits for another job's work."""
    time.sleep(0.2)
    return []


def left(
    took: Mapping[Kind, Sequence[float]],
    waiting: Sequence[Kind],
    at_work: Sequence[tuple[Kind, float]],
    size: int,
) -> float | None:
    """Seconds until a sweep ends, by what its units took so far.

    Args:
        took: seconds of those that ended. A kind that none ended of yet takes as long, for its
            stages, as others of its subject, else as all others.
        waiting: what has not begun. at_work: what has, and the share of it that is done.
        size: how many are at work at once.

    Returns:
        None before the first has ended.
    """
    if not took:
        return None
    circuit = sum(stage.weight for stage in CIRCUIT)

    def weight(one: Kind) -> float:
        return circuit if one[2] is None else EDIT

    def expected(one: Kind) -> float:
        if one in took:
            return fmean(took[one])
        alike = {k: some for k, some in took.items() if k[0] == one[0]} or took
        rate = fmean(s / weight(k) for k, some in alike.items() for s in some)
        return rate * weight(one)

    rest = [expected(one) * (1 - share) for one, share in at_work]
    total = sum(rest) + sum(map(expected, waiting))
    return max([total / size, *rest])
