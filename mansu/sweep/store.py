"""The results of many units in one file, for the leaderboard, for SQL, and to take along.

It is SQLite, not DuckDB: several sweeps may write it at once, and DuckDB lets one process write
("Could not set lock on file", measured with 2.0.1 while another only had it open). Four processes
that write 250 units each, a transaction a unit: 2.3 s, the longest wait 1.4 s, with SQLite's
write-ahead log; 11.9 s and 8.5 s without. It is part of Python, too. DuckDB reads the file, if
that is wanted (``ATTACH 'results.sqlite' (TYPE sqlite)``).

A unit's run folder stays the owner of its results: the store can be deleted, and is made again from
the folders by the same ``mansu sweep``. Lock and log need a disk of this machine: on a folder of a
network, give another place (``mansu sweep --store``). Only the process that drives a sweep writes.

Tables: ``units``, a row a unit, with each property's status and the check that decides it;
``checks``, every check of every verdict.
"""

from __future__ import annotations

import csv
import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mansu.errors import BadInputError, DamagedError, StorageError
from mansu.evidence.verdict import ABOUT, FALL, Check, Verdict, kept_fall
from mansu.files import replacing
from mansu.statistics import Interval

FILE = "results.sqlite"
VERSION = 1
PATIENCE = 60.0
"""Seconds to wait for another writer, who takes milliseconds."""

_DECIDED = {"value": "REAL", "low": "REAL", "high": "REAL", "threshold": "REAL", "unit": "TEXT"}
_SPOTS = ("forgotten", "kept_fall")
_STORED: Mapping[str, str] = {
    "unit": "TEXT PRIMARY KEY",
    "run": "TEXT",
    "subject": "TEXT",
    "fingerprint": "TEXT",
    "task": "TEXT",
    "task_digest": "TEXT",
    "method": "TEXT",
    "given": "TEXT",
    "settings": "TEXT",
    "run_settings": "TEXT",
    "seed": "INTEGER",
    "state": "TEXT",
    "error": "TEXT",
    "verdict": "TEXT",
    **{
        f"{name}{end}": kind
        for name in ABOUT
        for end, kind in {
            "": "TEXT",
            "_by": "TEXT",
            **{f"_{part}": kind for part, kind in _DECIDED.items()},
        }.items()
    },
    **{f"{spot}{end}": "REAL" for spot in _SPOTS for end in ("", "_low", "_high")},
    "seconds": "REAL",
    "shared_seconds": "REAL",
    "memory_gib": "REAL",
    "threads": "INTEGER",
    "edit_digest": "TEXT",
    "versions": "TEXT",
    "recorded": "TEXT",
}
_LOSS = ("kept_loss", "kept_loss_low", "kept_loss_high")
COLUMNS: Mapping[str, str] = {**_STORED, **dict.fromkeys(_LOSS, "REAL")}
"""Of a row, with their types: those of ``units``, and ``kept_loss``, which is made of ``checks``.
``NAME`` is a property's status, ``NAME_by`` the check that decides it, then that check's value,
95 % interval, threshold and unit. ``forgotten``: the fall of 4-way accuracy on the forget rows
towards chance; ``kept_fall``: the largest fall of the accuracy of a kept group, in either format;
both in shares, with their intervals. ``kept_loss``: what the kept group loses that loses most of
its answers' log-probability, nats. ``seconds`` are the unit's own, ``shared_seconds`` those of the
circuit that it shares with others."""

CHECKS = ("unit", "number", "property", "status", "what", "value", "low", "high", "threshold")
CHECKS += ("at_least", "measured_in")


@dataclass(frozen=True)
class Store:
    """A file of results.

    Attributes:
        path: where it is, or will be with the first unit.
    """

    path: Path

    def put(self, record: Mapping[str, Any]) -> None:
        """Write a unit's row, and its verdict's checks; what was there of the unit is replaced.

        Args:
            record: values of ``COLUMNS``; ``verdict`` is a ``Verdict``, or left out.

        Raises:
            StorageError: it cannot be written. DamagedError: the file is no store.
        """
        verdict = record.get("verdict")
        row = {**dict.fromkeys(_STORED), **record, **(_told(verdict) if verdict else {})}
        row["recorded"] = datetime.now(UTC).isoformat(timespec="seconds")
        values = [
            json.dumps(v, sort_keys=True) if isinstance(v, Mapping) else v
            for v in map(row.get, _STORED)
        ]
        with self._open(writes=True) as base:
            base.execute("BEGIN IMMEDIATE")
            base.execute(f"INSERT OR REPLACE INTO units VALUES ({_marks(_STORED)})", values)
            base.execute("DELETE FROM checks WHERE unit = ?", [row["unit"]])
            base.executemany(
                f"INSERT INTO checks VALUES ({_marks(CHECKS)})",
                [] if verdict is None else _checks(row["unit"], verdict),
            )
            base.execute("COMMIT")

    def rows(self, units: Collection[str] | None = None) -> list[dict[str, Any]]:
        """The rows of ``units`` by column, sorted; none where there is no file.

        Args:
            units: their ids; all by default.

        Raises:
            DamagedError: the file is no store, or of another version.
        """
        if not self.path.is_file():
            return []
        with self._open() as base:
            if _is_empty(base):
                return []
            order = "ORDER BY task, subject, method, given, seed, unit"
            found = base.execute(f"SELECT {', '.join(_STORED)} FROM units {order}").fetchall()
            # Beside max(), SQLite's other columns are those of the row that has it.
            losses = base.execute(
                "SELECT unit, max(value), low, high FROM checks WHERE property = 'retention' AND "
                "measured_in = 'nats' AND what LIKE ? GROUP BY unit",
                [f"{FALL}%"],
            ).fetchall()
        lost = {unit: loss for unit, *loss in losses}
        rows = [
            dict(zip(COLUMNS, (*row, *lost.get(row[0], (None, None, None))), strict=True))
            for row in found
        ]
        return rows if units is None else [row for row in rows if row["unit"] in units]

    def checks(self, unit: str) -> list[dict[str, Any]]:
        """Every check of a unit's verdict, by column, in the verdict's order.

        Raises:
            DamagedError: the file is no store, or of another version.
        """
        with self._open() as base:
            if _is_empty(base):
                return []
            query = f"SELECT {', '.join(CHECKS)} FROM checks WHERE unit = ? ORDER BY number"
            return [dict(zip(CHECKS, row, strict=True)) for row in base.execute(query, [unit])]

    @contextmanager
    def _open(self, *, writes: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            if writes:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(
                sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
            ) as base:
                if writes:
                    _prepare(base)
                found = base.execute("PRAGMA user_version").fetchone()[0]
                if found != VERSION and not _is_empty(base):
                    raise DamagedError(
                        f"{self.path} is no store of this MANSU (version {found}, not {VERSION}): "
                        "move it away, and start the sweep again, which makes it anew."
                    )
                yield base
        except OSError as error:
            raise StorageError(
                f"The store {self.path} cannot be made ({error.strerror}): give another place with "
                "--store."
            ) from error
        except sqlite3.DatabaseError as error:
            if _is_of_the_machine(error):
                raise StorageError(
                    f"The store {self.path} cannot be used ({error}): make room, or give another "
                    "place with --store. What was there before is kept."
                ) from error
            raise DamagedError(
                f"{self.path} is damaged or no store ({error}): move it away, and start the sweep "
                "again, which makes it anew."
            ) from error


def _prepare(base: sqlite3.Connection) -> None:
    """Make the tables in a new file, once, whoever else is about to."""
    if not _is_empty(base):
        return
    _patiently(base, "PRAGMA journal_mode = WAL")
    base.execute("BEGIN IMMEDIATE")
    if _is_empty(base):
        columns = ", ".join(f"{name} {kind}" for name, kind in _STORED.items())
        base.execute(f"CREATE TABLE units ({columns})")
        base.execute(f"CREATE TABLE checks ({', '.join(CHECKS)}, PRIMARY KEY (unit, number))")
        base.execute(f"PRAGMA user_version = {VERSION}")
    base.execute("COMMIT")


def _is_empty(base: sqlite3.Connection) -> bool:
    """Whether there are no tables yet: whoever makes the file is killed, or about to."""
    return not base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _is_of_the_machine(error: sqlite3.DatabaseError) -> bool:
    """Whether it is full, read-only, locked for too long, …: the file may be as it should be.

    A table or a column that is not there is SQLITE_ERROR; text that is none has no code.
    """
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the primary one
    return isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR


def _patiently(base: sqlite3.Connection, what: str) -> None:
    """Changing the journal's mode does not wait for other writers by itself."""
    ended = time.monotonic() + PATIENCE
    while True:
        try:
            base.execute(what)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > ended:
                raise
            time.sleep(0.02)


def _marks(columns: Collection[str]) -> str:
    return ", ".join("?" * len(columns))


def _told(verdict: Verdict) -> dict[str, Any]:
    """A verdict as columns."""
    found: dict[str, Any] = {"verdict": verdict.status}
    for each in verdict.properties:
        found[each.name] = each.status
        if (check := each.worst) is not None:
            found[f"{each.name}_by"] = check.what
            found |= _parts(check.value, f"{each.name}_value", f"{each.name}")
            found |= {f"{each.name}_threshold": check.threshold, f"{each.name}_unit": check.unit}
    if verdict.forgetting.checks:
        found |= _parts(verdict.forgetting.checks[0].value, "forgotten", "forgotten")
    if (fall := kept_fall(verdict.retention.details)) is not None:
        found |= _parts(fall, "kept_fall", "kept_fall")
    return found


def _parts(interval: Interval, name: str, of: str) -> dict[str, float | None]:
    return dict(zip((name, f"{of}_low", f"{of}_high"), _bounded(interval), strict=True))


def _bounded(interval: Interval) -> tuple[float | None, ...]:
    """Value and bounds, which one fact alone has none of."""
    value, *bounds = interval.to_json()
    return value, *(bounds or (None, None))


def _checks(unit: str, verdict: Verdict) -> list[tuple[Any, ...]]:
    every: list[tuple[str, Check]] = [(p.name, c) for p in verdict.properties for c in p.checks]
    return [
        (unit, i, name, c.status, c.what, *_bounded(c.value), c.threshold, c.at_least, c.unit)
        for i, (name, c) in enumerate(every)
    ]


def save_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of a store as CSV, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    with replacing(path) as new, new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({name: _no_formula(value) for name, value in row.items()} for row in rows)


def _no_formula(value: Any) -> Any:
    """Text with an apostrophe before it where a spreadsheet would compute it: a task's file, say,
    can be called anything."""
    is_one = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_one else value


def pyarrow() -> tuple[Any, Any]:
    """The modules ``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        BadInputError: it is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise BadInputError(
            "Parquet needs the package pyarrow: run `pip install 'mansu[hub]'`, or take --csv."
        ) from error
    return pyarrow, parquet


def save_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of a store as Parquet, whole or not at all.

    Raises:
        BadInputError: pyarrow is not installed. StorageError: it cannot be written.
    """
    pa, parquet = pyarrow()
    kinds = {"TEXT": pa.string(), "REAL": pa.float64(), "INTEGER": pa.int64()}
    schema = pa.schema([(name, kinds[kind.split()[0]]) for name, kind in COLUMNS.items()])
    with replacing(path) as new:
        parquet.write_table(pa.Table.from_pylist(list(rows), schema), new)
