"""The store keeps what it was given, from several writers at once, and says no in a sentence."""

from __future__ import annotations

import csv
import multiprocessing
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from mansu.errors import DamagedError, StorageError
from mansu.evidence.verdict import ABOUT, kept_groups, kept_loss
from mansu.job.runs import EXAMPLES, Run
from mansu.show.numbers import measured
from mansu.statistics import Interval
from mansu.sweep import store as stores
from mansu.sweep.board import board, interval
from mansu.sweep.store import COLUMNS, Store

RUN = Run.open(EXAMPLES / "tiny-colours")


def recorded(unit: str, method: str = "mansu") -> dict[str, Any]:
    """A record with the verdict of a run that ships."""
    return {
        "unit": unit,
        "run": RUN.name,
        "subject": RUN.subject,
        "task": RUN.about["name"],
        "method": method,
        "given": {"rate": 0.06},
        "seed": 0,
        "state": "done",
        "verdict": RUN.verdict(method),
        "seconds": 1.5,
    }


def test_a_row_is_the_verdict(tmp_path: Path) -> None:
    store, verdict = Store(tmp_path / "deep" / "r.sqlite"), RUN.verdict("graddiff")
    assert store.rows() == []
    for _ in range(2):  # the second takes the first one's place
        store.put(recorded("a", "graddiff"))
    (row,) = store.rows()
    assert row["verdict"] == verdict.status
    for name in ABOUT:
        found = getattr(verdict, name)
        assert row[name] == found.status
        assert row[f"{name}_by"] == found.worst.what
        told = [row[f"{name}_{part}"] for part in ("value", "low", "high", "threshold")]
        assert told == [*found.worst.value.to_json(), found.worst.threshold]
    assert row["forgotten"] == verdict.forgetting.checks[0].value.value
    falls = [
        old.accuracy - kept_groups(RUN.measurement("graddiff", nf4=nf4))[group].accuracy
        for nf4 in (False, True)
        for group, old in kept_groups(RUN.base(nf4=nf4)).items()
    ]
    judged = [c.value.value for c in verdict.retention.checks if c.unit == "share"]
    assert row["kept_fall"] == pytest.approx(max(falls)) and max(falls) > max(judged)
    every = [c for p in verdict.properties for c in p.checks]
    found = [(c["what"], c["status"], c["value"], c["low"]) for c in store.checks("a")]
    assert found == [(c.what, c.status, c.value.value, c.value.low) for c in every]
    store.put({"unit": "a", "state": "failed", "error": "No."})
    assert store.rows()[0]["forgetting"] is None and store.checks("a") == []


def test_of_one_fact_alone_no_bounds_are_stored(tmp_path: Path) -> None:
    store, verdict = Store(tmp_path / "r.sqlite"), RUN.verdict("mansu")
    first, *others = verdict.forgetting.checks
    lone = replace(first, value=Interval(0.5, 0.5, 0.5, alone=True))
    alone = replace(verdict.forgetting, status=lone.status, checks=(lone, *others))
    store.put({**recorded("a"), "verdict": replace(verdict, forgetting=alone)})
    ((row,), check) = store.rows(), store.checks("a")[0]
    assert (check["status"], check["low"], check["high"]) == ("undecided", None, None)
    assert row["forgotten_low"] is None and interval(row, "forgotten") == lone.value
    assert board([row]).columns["Forgotten, points"] == ["+50.0 (one fact alone)"]


def test_what_is_kept_is_told_in_nats_too(tmp_path: Path) -> None:
    """Accuracy stands still while kept answers become improbable, which the verdict sees."""
    store, verdict = Store(tmp_path / "r.sqlite"), RUN.verdict("mansu")
    store.put(recorded("a"))
    store.put({"unit": "b", "method": "npo", "task": "z", "state": "failed", "error": "No."})
    judged, failed = store.rows()
    falls = [c for c in verdict.retention.checks if c.unit == "nats" and "drift" not in c.what]
    worst = max(falls, key=lambda check: check.value.value)
    assert worst.status == "failed" and judged["kept_fall"] <= 0.05
    assert interval(judged, "kept_loss") == worst.value == kept_loss(verdict.retention.checks)
    assert failed["kept_loss"] is None
    shown = board([{**judged, "given": "{}"}, {**failed, "given": "{}", "subject": "tiny"}])
    assert shown.columns["Kept lost, nats"] == [measured(worst.value, "nats", behind=False), "–"]


def test_a_store_of_before_opens_and_has_what_is_lost(tmp_path: Path) -> None:
    """What is read is made of the checks that it holds; it has no column of it."""
    store = Store(tmp_path / "r.sqlite")
    store.put(recorded("a"))
    with sqlite3.connect(store.path) as base:
        columns = [row[1] for row in base.execute("PRAGMA table_info(units)")]
        assert base.execute("PRAGMA user_version").fetchone() == (1,)
    assert columns == [name for name in COLUMNS if not name.startswith("kept_loss")]
    assert len(columns) == 55 and store.rows()[0]["kept_loss"] > 0


def _write(path: Path, who: int) -> None:
    for i in range(25):
        Store(path).put(recorded(f"{who}-{i}"))


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    path, context = tmp_path / "r.sqlite", multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(path, who)) for who in range(4)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert [each.exitcode for each in writers] == [0] * 4
    assert {row["unit"] for row in Store(path).rows()} == {
        f"{who}-{i}" for who in range(4) for i in range(25)
    }
    each = len([c for p in RUN.verdict("mansu").properties for c in p.checks])
    with sqlite3.connect(path) as base:
        assert base.execute("SELECT count(*) FROM checks").fetchone() == (100 * each,)


def test_csv_and_parquet_hold_the_rows(tmp_path: Path) -> None:
    store = Store(tmp_path / "r.sqlite")
    store.put(recorded("a"))
    store.put({"unit": "b", "method": "npo", "state": "failed", "error": "No, “not” this."})
    rows = store.rows()
    stores.save_csv(rows, tmp_path / "r.csv")
    stores.save_parquet(rows, tmp_path / "r.parquet")
    assert parquet.read_table(tmp_path / "r.parquet").to_pylist() == rows
    with (tmp_path / "r.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [list(row) for row in read] == [list(COLUMNS)] * 2
    assert [row["error"] or None for row in read] == [row["error"] for row in rows]
    done = next(i for i, row in enumerate(rows) if row["unit"] == "a")
    assert float(read[done]["gap_low"]) == rows[done]["gap_low"]
    assert [row["unit"] for row in store.rows({"b"})] == ["b"]


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    rows = [{"unit": "a", "task": "=1+1", "error": "-x", "subject": "@x", "gap_low": -0.5}]
    stores.save_csv(rows, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(encoding="utf-8", newline="") as file:
        (read,) = csv.DictReader(file)
    assert [read[name] for name in rows[0]] == ["a", "'=1+1", "'-x", "'@x", "-0.5"]


def test_a_file_that_nobody_has_made_tables_in_is_an_empty_store(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    for what in ("", "PRAGMA journal_mode = WAL"):
        path.touch()
        with closing(sqlite3.connect(path)) as base:
            base.execute(what)
        assert Store(path).rows() == Store(path).checks("a") == []
    Store(path).put(recorded("a"))
    assert len(Store(path).rows()) == 1


@pytest.mark.parametrize(
    "code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR | 3 << 8, sqlite3.SQLITE_BUSY]
)
def test_what_the_machine_says_is_not_the_file_s_fault(code: int, tmp_path: Path) -> None:
    error = sqlite3.OperationalError("no")
    error.sqlite_errorcode = code
    with pytest.raises(StorageError, match="make room"), Store(tmp_path / "r")._open(writes=True):
        raise error


def test_what_is_no_store_is_said(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    path.write_text("not a database, but long enough to be taken for one" * 20)
    with pytest.raises(DamagedError, match="move it away"):
        Store(path).put(recorded("a"))
    path.unlink()
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE other (a)")
    for use in (Store(path).rows, lambda: Store(path).put(recorded("a"))):
        with pytest.raises(DamagedError, match="no store of this MANSU"):
            use()
    path.unlink()
    Store(path).put(recorded("a"))
    for change in ("ALTER TABLE units DROP COLUMN threads", "DROP TABLE checks"):
        with sqlite3.connect(path) as base:
            base.execute(change)
        for use in (Store(path).rows, lambda: Store(path).put(recorded("a"))):
            with pytest.raises(DamagedError, match="move it away"):
                use()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="--store"):
        Store(tmp_path / "file" / "r.sqlite").put(recorded("a"))
