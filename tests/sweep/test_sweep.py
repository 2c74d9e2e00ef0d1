"""A sweep does each unit once, whoever does it, and a killed worker costs its unit only."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made import one_fact

import mansu
from experiments.benchmarks.sweeps import COST, kill_once
from experiments.benchmarks.sweeps import cluster as two_nodes
from mansu import files
from mansu.cli import main
from mansu.errors import MismatchError
from mansu.files import SUM
from mansu.job import names
from mansu.job.lock import FLAG, hold
from mansu.job.pipeline import BASE_ATTACKS
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.subjects import shipped
from mansu.subjects.subject import Subject
from mansu.sweep.grid import Unit, circuits, read, units
from mansu.sweep.pools import LOST, OnRay, Processes
from mansu.sweep.store import Store
from mansu.sweep.sweep import Sweep, left
from mansu.sweep.work import Outcome, attempt, is_done, makes, record, refuse_other
from mansu.tasks.facts import Task

GRID = """
subjects = ["tiny"]
tasks = ["tiny-colours"]
[run]
pairs = 8
steps = 1
[methods.mansu]
steps = 2
[methods.graddiff]
steps = 2
"""


class Here:
    """A pool of this process alone, which keeps the order."""

    size = 1

    def __init__(self, folder: Path) -> None:
        self.folder, self.given = folder, list[Unit]()

    def give(self, unit: Unit) -> None:
        self.given.append(unit)

    def ended(self, timeout: float) -> list[tuple[Unit, Outcome]]:
        unit = self.given[-1]
        return [(unit, attempt(unit, str(self.folder), 1))]

    def close(self) -> None: ...


class Losing(Here):
    """Each of its workers is lost."""

    def ended(self, timeout: float) -> list[tuple[Unit, Outcome]]:
        return [(self.given[-1], LOST)]


def circuit_of(unit: Unit) -> Unit:
    (found,) = circuits([unit])
    return found


def copied(name: str, grid: list[Unit], swept: Path, to: Path) -> Unit:
    """The unit of a method, whose folders are in ``to`` then, its circuit's too."""
    unit = next(u for u in grid if u.method == name)
    for folder in (unit.name, circuit_of(unit).name):
        shutil.copytree(swept / folder, to / folder)
    return unit


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> list[Unit]:
    path = tmp_path_factory.mktemp("grid") / "grid.toml"
    path.write_text(GRID)
    return units(read(path))


@pytest.fixture(scope="module")
def swept(grid: list[Unit], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep, done in this process."""
    folder = tmp_path_factory.mktemp("here")
    store = Store(folder / "results.sqlite")
    Sweep(grid, folder, store, Here(folder), lambda _: None).run()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("where", ["processes", "ray"])
def test_a_killed_worker_costs_its_unit_only(
    where: str, grid: list[Unit], swept: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    circuit = circuit_of(grid[0]).name
    shutil.copytree(swept / circuit, tmp_path / circuit)  # made once is enough for this file
    pool: Processes | OnRay = (
        Processes(str(tmp_path), 2, 1)
        if where == "processes"
        else OnRay(str(tmp_path), request.getfixturevalue("cluster"))
    )
    said: list[str] = []
    done = Sweep(grid, tmp_path, Store(tmp_path / "r.sqlite"), pool, said.append)
    assert grid[0].method == "mansu"
    kill_once(grid[0], tmp_path, after=0)
    try:
        done.run()
    finally:
        pool.close()
    assert done.lost == Counter({grid[0].id: 1}) and not done.failed
    assert sum("begun again" in text for text in said) == 1
    # The same results as from one process that nobody killed.
    here, there = (Store(p).rows() for p in (swept / "results.sqlite", tmp_path / "r.sqlite"))
    for row in (*here, *there):
        assert row["state"] == "done" and row["seconds"] > 0 and row["memory_gib"] > 0
        assert row["shared_seconds"] > 0
        for name in COST:  # which may differ
            del row[name]
    assert here == there and len(here) == 2


def test_workers_have_no_more_threads_than_the_environment_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mansu.sweep.pools.n_cores", lambda: 8)
    for said, size, threads in (("1", 1, 1), ("4,2", 1, 4), ("16", 2, 4), ("", 2, 4), ("", 16, 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert Processes(str(tmp_path), size).threads == threads
    assert Processes(str(tmp_path), 1, 2).threads == 2  # asked for


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of two nodes on this machine."""
    pytest.importorskip("ray.cluster_utils")  # an extra: mansu[ray]
    with two_nodes() as address:
        yield address


def test_the_row_is_what_the_run_folder_holds(grid: list[Unit], swept: Path, tiny: Subject) -> None:
    for unit in grid:
        (row,) = Store(swept / "results.sqlite").rows({unit.id})
        assert unit.method is not None
        run = Run.open(swept / unit.name)
        verdict = run.verdict(unit.method)
        assert row["run"] == run.name and row["fingerprint"] == run.fingerprint
        assert row["verdict"] == verdict.status and row["erasure"] == verdict.erasure.status
        assert row["edit_digest"] == run.digest(unit.method)
        circuit = Run.open(swept / circuit_of(unit).name)
        assert circuit.status().state == run.status().state == "done"
        for kind in makes(
            circuit_of(unit), Session(circuit, tiny)
        ):  # one file, which no one changes in its place
            assert os.path.samefile(run.file(kind), circuit.file(kind))


def test_of_one_fact_nothing_is_relearned_and_it_is_done_once(
    tiny_task: Task, tmp_path: Path
) -> None:
    """Relearning has nothing to split: what it would make is not waited for."""
    task = tmp_path / "one.jsonl"
    task.write_text(one_fact(tiny_task).to_jsonl())
    path = tmp_path / "grid.toml"
    path.write_text(GRID.split("[methods")[0].replace("tiny-colours", str(task)) + "[methods.ga]")
    for given in (2, 0):  # the circuit and the edit; nothing
        grid, pool = units(read(path)), Here(tmp_path)
        found = Sweep(grid, tmp_path, Store(tmp_path / "r.sqlite"), pool, lambda _: None)
        found.run()
        assert not found.failed and len(pool.given) == given and found.done >= {grid[0].id}
        run = Run.open(tmp_path / grid[0].name)
        assert run.verdict("ga").erasure.status == "unknown"
        assert not run.has("reference") and not run.has("relearned", "ga")


def test_what_is_lacking_and_can_be_made_is_not_done(
    grid: list[Unit], swept: Path, tmp_path: Path
) -> None:
    unit = copied("graddiff", grid, swept, tmp_path)
    Run.open(tmp_path / circuit_of(unit).name).file("reference").unlink()
    assert is_done(unit, tmp_path) and not is_done(circuit_of(unit), tmp_path)
    Run.open(tmp_path / unit.name).file("relearned", "graddiff").unlink()
    assert not is_done(unit, tmp_path)


def test_what_is_done_is_recorded_and_not_repeated(grid: list[Unit], swept: Path) -> None:
    pool, store = Here(swept), Store(swept / "again.sqlite")
    again = Sweep(grid, swept, store, pool, lambda _: None)
    again.run()
    assert not pool.given and len(store.rows()) == len(grid)
    assert {u.id for u in grid} <= again.done


def test_a_circuit_is_not_counted_among_the_units(
    grid: list[Unit], swept: Path, tmp_path: Path
) -> None:
    copied("mansu", grid, swept, tmp_path)
    said: list[str] = []
    pool, store = Losing(tmp_path), Store(tmp_path / "r.sqlite")
    Sweep(grid, tmp_path, store, pool, said.append, retries=0).run()
    assert said[0].startswith("2 units: 1 are done, 1 to do with their circuits")


def test_results_of_other_weights_are_not_those_of_the_subject_as_it_is_now(
    grid: list[Unit], swept: Path, tmp_path: Path
) -> None:
    """A checkpoint is trained on, in its folder, after the sweep."""
    place = tmp_path / "sub"
    shutil.copytree(shipped.TINY_FOLDER, place)
    every = [replace(unit, subject=str(place)) for unit in grid]
    for had, has in zip([*grid, circuit_of(grid[0])], [*every, circuit_of(every[0])], strict=True):
        shutil.copytree(swept / had.name, tmp_path / has.name)
    weights = place / "model.safetensors"
    other = shipped.TABLE[shipped.RETRAINED].folder / weights.name
    for source, n_done in ((shipped.TINY_FOLDER / weights.name, 2), (other, 0)):
        shutil.copyfile(source, weights)
        pool, store = Here(tmp_path), Store(tmp_path / "results.sqlite")
        found = Sweep(every, tmp_path, store, pool, lambda _: None)
        found.run()
        assert not pool.given and len(found.done) == n_done
        assert [row["state"] == "done" for row in store.rows()] == [bool(n_done)] * 2
    for unit in every:
        assert f"measured another {str(place)!r} than there is now" in found.failed[unit.id]
    shutil.rmtree(place)
    gone = Sweep(every, tmp_path, store, pool, lambda _: None)
    gone.run()
    assert len(gone.failed) == 2 and not pool.given


def test_results_of_prompts_with_a_second_bos_are_not_taken_for_done(
    grid: list[Unit], swept: Path
) -> None:
    fingerprint = Run.open(swept / grid[0].name).fingerprint
    refuse_other(grid[0], swept, fingerprint, "")
    with pytest.raises(MismatchError, match="begin with 'The', before which an earlier MANSU"):
        refuse_other(grid[0], swept, fingerprint, "The")


def test_the_row_says_which_mansu_made_it(grid: list[Unit], swept: Path, tmp_path: Path) -> None:
    unit = copied("graddiff", grid, swept, tmp_path)
    manifest = tmp_path / unit.name / "manifest.json"
    told = json.loads(manifest.read_text())
    assert told["mansu"] == mansu.__version__
    for version in ("0.1.0", None):  # None: of a run that was made before it was recorded
        told["mansu"] = version
        manifest.write_text(json.dumps({n: v for n, v in told.items() if v is not None}))
        versions = record(unit, tmp_path)["versions"]
        assert versions.get("mansu") == version
        assert versions["torch"] == told["packages"]["torch"] and "cpus" not in versions


def test_another_edit_of_a_unit_s_name_is_not_its_result(
    grid: list[Unit], swept: Path, tmp_path: Path
) -> None:
    """The app deletes a unit's edit and makes one with other settings: it has the same name."""
    unit = copied("graddiff", grid, swept, tmp_path)
    history = tmp_path / unit.name / "edits" / "graddiff" / "history.json"
    told = json.loads(history.read_text())
    told["given"] = {"steps": 2, "retain_weight": 7.0}  # more than the unit was given
    del told[SUM]
    history.write_text(json.dumps(told))
    pool, store = Here(tmp_path), Store(tmp_path / "results.sqlite")
    found = Sweep([unit], tmp_path, store, pool, lambda _: None)
    found.run()
    assert not pool.given and "made with other settings" in found.failed[unit.id]
    assert [(row["state"], row["verdict"]) for row in store.rows()] == [("failed", None)]
    outcome = attempt(unit, str(tmp_path), 1)
    assert outcome.state == "failed" and "made with other settings" in outcome.why


def test_a_unit_s_edit_is_found_under_the_name_that_the_app_gave_it(
    grid: list[Unit], swept: Path, tmp_path: Path
) -> None:
    unit = copied("graddiff", grid, swept, tmp_path)
    names.rename(Run.open(tmp_path / unit.name), "graddiff", "slow")
    pool, store = Here(tmp_path), Store(tmp_path / "results.sqlite")
    Sweep([unit], tmp_path, store, pool, lambda _: None).run()
    assert not pool.given and Run.open(tmp_path / unit.name).edits() == ("slow",)
    (before,) = Store(swept / "results.sqlite").rows({unit.id})
    (after,) = store.rows()
    assert {**after, "recorded": ""} == {**before, "recorded": ""}


def test_an_attacked_edit_is_the_same_unit_with_more_to_do(grid: list[Unit], swept: Path) -> None:
    unit = replace(grid[1], attacked=True)
    assert unit.name == grid[1].name and is_done(grid[1], swept) and not is_done(unit, swept)
    for both in ([grid[0], unit], [unit, grid[0]]):  # they share a circuit
        (circuit,) = circuits(both)
        assert circuit.name == circuit_of(grid[0]).name and BASE_ATTACKS in circuit.stages


def test_a_unit_that_the_app_cancels_is_not_begun_again(grid: list[Unit], tmp_path: Path) -> None:
    class Cancelled(Losing):
        def ended(self, timeout: float) -> list[tuple[Unit, Outcome]]:
            run = self.folder / self.given[-1].name
            run.mkdir()
            (run / FLAG).touch()  # as ``ask_to_stop`` leaves it
            return super().ended(timeout)

    pool = Cancelled(tmp_path)
    found = Sweep(grid, tmp_path, Store(tmp_path / "r.sqlite"), pool, lambda _: None)
    found.run()
    assert [u.method for u in pool.given] == [None]
    assert all("was cancelled" in why for why in found.failed.values())


def test_a_unit_that_another_job_is_at_work_on_waits(grid: list[Unit], swept: Path) -> None:
    with hold(swept / grid[0].name):
        found = attempt(grid[0], str(swept), 1)
    assert found.state == "taken" and "is at work on the run" in found.why


def test_a_run_that_another_sweep_makes_meanwhile_is_gone_on_with(
    grid: list[Unit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sweeps on one folder both find no run, and both make it."""
    circuit, create = circuit_of(grid[0]), Run.create

    def other_first(*given: Any, **named: Any) -> Run:
        create(*given, **named)
        if theirs:
            held.enter_context(hold(tmp_path / circuit.name))
        return create(*given, **named)

    monkeypatch.setattr(Run, "create", other_first)
    with ExitStack() as held:
        theirs = True  # it is at work on it already
        found = attempt(circuit, str(tmp_path), 1)
        assert found.state == "taken" and "is at work on the run" in found.why
    shutil.rmtree(tmp_path / circuit.name)
    theirs = False
    assert attempt(circuit, str(tmp_path), 1).state == "done"
    (tmp_path / grid[1].name).mkdir()
    (tmp_path / grid[1].name / "mine").touch()
    monkeypatch.undo()
    assert "is not an empty folder" in attempt(grid[1], str(tmp_path), 1).why


def test_a_unit_that_fails_is_a_row_with_its_reason(tmp_path: Path, swept: Path) -> None:
    task = tmp_path / "mine.jsonl"
    line = '{"prompt": "The", "answer": " nowordofit", "split": "forget"}\n'
    task.write_text(line + line.replace("forget", "retain"))
    (tmp_path / "grid.toml").write_text(GRID.replace("tiny-colours", str(task)))
    every = units(read(tmp_path / "grid.toml"))
    store = Store(tmp_path / "r.sqlite")
    found = Sweep(every, tmp_path, store, Here(tmp_path), lambda _: None)
    found.run()
    assert {row["state"] for row in store.rows()} == {"failed"} and len(store.rows()) == 2
    assert all(row["error"] == found.failed[row["unit"]] for row in store.rows())
    assert not list(tmp_path.glob("*/manifest.json"))


def test_a_worker_that_is_always_lost_ends(grid: list[Unit], tmp_path: Path) -> None:
    pool = Losing(tmp_path)
    found = Sweep(grid, tmp_path, Store(tmp_path / "r.sqlite"), pool, lambda _: None, retries=1)
    found.run()
    assert [u.method for u in pool.given] == [None, None]  # its circuit, twice
    assert set(found.failed) == {u.id for u in grid} | {circuit_of(grid[0]).id}
    assert all("out of memory" in why for why in found.failed.values())


def test_the_time_left_follows_what_was_measured() -> None:
    a, b = ("tiny", "colours", "mansu"), ("tiny", "colours", "npo")
    assert left({}, [a], [], 2) is None
    assert left({a: [4.0, 8.0]}, [a, a], [(a, 0.5)], 2) == pytest.approx(7.5)
    assert left({a: [6.0]}, [b, b], [], 1) == pytest.approx(12.0)  # as long as another edit
    circuit = left({a: [6.0]}, [("tiny", "colours", None)], [], 1)
    assert circuit is not None and 0 < circuit < 6  # it has fewer stages
    assert left({a: [6.0]}, [], [(a, 0.5)], 8) == pytest.approx(3.0)  # no unit is divided


def test_the_command_exports_and_refuses(
    swept: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    command = ["sweep", str(path), "--folder", str(swept), "--threads", "1"]
    assert main([*command, "--csv", str(tmp_path / "r.csv")]) == 0
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 3
    assert "mansu" in capsys.readouterr().out
    for place in ("/proc/r.csv", str(tmp_path)):  # known before the sweep begins
        new = tmp_path / "new"
        assert main([*command[:3], str(new), "--csv", place]) == 2
        assert f"mansu: {place} was not written (" in capsys.readouterr().err
        assert not new.exists()
    monkeypatch.setattr(files, "refuse_unwritable", lambda path: None)  # as on a disk that fills
    assert main([*command, "--csv", "/proc/r.csv"]) == 2
    told = capsys.readouterr()
    assert "mansu" in told.out and "mansu: /proc/r.csv was not written (" in told.err
    path.write_text("subjects = 3")
    assert main(command) == 2
    assert "cannot be used" in capsys.readouterr().err
