"""Jobs take turns: first come, first served, whatever becomes of the others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app import jobs
from mansu import tasks
from mansu.job import lock, queue
from mansu.job.runs import Run
from mansu.job.settings import Settings
from mansu.subjects.subject import Subject

TURN = """
import os, sys, time
from mansu.job.queue import wait_for_turn
wait_for_turn()
assert "torch" not in sys.modules
with open(sys.argv[1], "a") as told:
    group = "/proc/self/autogroup"
    shared = open(group).read().split()[-1] if os.path.exists(group) else "none"
    told.write(f"{sys.argv[2]} {os.nice(0)} {shared}\\n")
time.sleep(600)
"""

Start = Callable[[str], "subprocess.Popen[bytes]"]


def until(right: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not right():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """What jobs write when their turn comes, a line each."""
    (tmp_path / "told").touch()
    return tmp_path / "told"


@pytest.fixture
def start(tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a job of a name as the app does; two work at once."""
    monkeypatch.setenv("MANSU_JOBS", "2")
    begun: list[subprocess.Popen[bytes]] = []

    def started(name: str) -> subprocess.Popen[bytes]:
        with queue.ticket(tmp_path, tmp_path / name) as mine:
            job = subprocess.Popen(
                [sys.executable, "-c", TURN, str(told), name],
                pass_fds=[mine.file],
                env={**os.environ, queue.INHERITED: mine.inherited},
                start_new_session=True,
            )
        begun.append(job)
        return job

    yield started
    for job in begun:
        job.kill()
        job.wait()


def test_jobs_take_turns_and_a_killed_one_gives_its_place_away(
    tmp_path: Path, told: Path, start: Start
) -> None:
    def names() -> list[str]:
        return [line.split()[0] for line in told.read_text().splitlines()]

    jobs = {name: start(name) for name in "abcde"}
    until(lambda: len(names()) == 2)
    assert queue.order(tmp_path) == [tmp_path / name for name in "abcde"]
    assert queue.places(tmp_path, [tmp_path / name for name in "abcdex"]) == [0, 0, 1, 2, 3, 0]
    jobs["c"].kill()  # while it waits
    jobs["c"].wait()
    assert queue.places(tmp_path, [tmp_path / name for name in "abde"]) == [0, 0, 1, 2]
    jobs["a"].kill()  # at work
    jobs["a"].wait()
    until(lambda: names() == ["a", "b", "d"] or names() == ["b", "a", "d"])
    late = start("f")  # nobody who comes later is before those who wait
    assert queue.places(tmp_path, [tmp_path / "f"]) == [2] and late.poll() is None
    jobs["b"].kill()
    jobs["d"].kill()
    until(lambda: names()[3:] in (["e", "f"], ["f", "e"]))
    nice = {line.split()[1] for line in told.read_text().splitlines()}
    assert nice == {str(min(19, os.nice(0) + queue.NICE))}
    # A session of its own, which Linux may schedule as one: it steps back as a whole.
    assert {line.split()[2] for line in told.read_text().splitlines()} <= {str(queue.NICE), "none"}


def test_tickets_taken_at_once_have_each_a_number(tmp_path: Path) -> None:
    taken = threading.Barrier(8)

    def take(i: int) -> None:
        with queue.ticket(tmp_path, tmp_path / str(i)):
            taken.wait()
            assert len(queue.order(tmp_path)) == 8
            taken.wait()

    threads = [threading.Thread(target=take, args=[i]) for i in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not taken.broken and queue.order(tmp_path) == []
    with queue.ticket(tmp_path, tmp_path / "x") as mine:
        assert mine.path.name == "1"  # what is left of others is swept
        names = sorted(p.name for p in (tmp_path / queue.FOLDER).iterdir())
        assert names == ["1", queue.DOOR]


@pytest.fixture
def runs(tiny: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Run]:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    monkeypatch.setenv("MANSU_JOBS", "1")
    monkeypatch.setenv("MANSU_PASSWORD", "secret")
    settings = Settings(pairs=8, steps=1)
    first = Run.create(tiny, tasks.load("tiny-colours"), settings, tmp_path / "first")
    return first, Run.open(shutil.copytree(first.path, tmp_path / "second"))


def test_a_job_of_the_app_waits_and_is_cancelled_while_it_does(runs: tuple[Run, Run]) -> None:
    first, second = runs
    with queue.ticket(first.path.parent, first.path):  # a job at work
        jobs.start(["attribute", "--folder", str(second.path)], second.path)
        assert jobs.state(second) == "running" and jobs.place(second) == 1
        who = lock.holder(second.path)
        assert who is not None and who.process is not None
        assert "MANSU_PASSWORD" not in who.process.environ()  # it is no job's business
        time.sleep(1)
        assert jobs.place(second) == 1 and not second.log()  # it has not begun
        jobs.cancel(second)
        until(lambda: jobs.state(second) == "cancelled")
        assert jobs.place(second) == 0
        jobs.start(["attribute", "--folder", str(second.path)], second.path)
        assert jobs.place(second) == 1
    until(lambda: jobs.state(second) == "done")
    assert second.has("attribution")
