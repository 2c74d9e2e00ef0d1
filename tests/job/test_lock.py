"""One job a run: whoever comes second is told who is there, and no other process is signalled."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from app import jobs
from mansu import cli, tasks
from mansu.cli.common import Job
from mansu.errors import MismatchError, NotMeasuredError, TakenError
from mansu.interrupts import Cancelled
from mansu.job import lock
from mansu.job.runs import Run
from mansu.job.settings import Settings
from mansu.progress import Step
from mansu.subjects.subject import Subject

HOLD = """
import signal, sys, time
from pathlib import Path
from mansu.job.lock import hold
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def run(tiny: Subject, tmp_path: Path) -> Run:
    return Run.create(tiny, tasks.load("tiny-colours"), Settings(pairs=8), tmp_path / "run")


@pytest.fixture
def other(run: Run) -> Iterator[subprocess.Popen[str]]:
    """A job of another process, which ignores the signal that asks it to stop."""
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout and job.stdout.readline() == "held\n"
        yield job
        job.kill()


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_second_job_is_refused_and_a_killed_one_leaves_no_lock(
    run: Run, other: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    started = rf"`python -c {re.escape(str(run.path))}"
    told = rf"Job {other.pid} \({started}.* is at work on the run .*: wait for it, or cancel it\.$"
    with pytest.raises(TakenError, match=told), lock.hold(run.path):
        pass
    with pytest.raises(TakenError, match=told):
        jobs.start(["circuit", str(run.path)], run.path)
    run.set_status("running", 0.5, begins=True)
    assert cli.main(["run", "--folder", str(run.path), "--again"]) == cli.BAD_INPUT
    assert f"mansu: Job {other.pid} " in capsys.readouterr().err
    assert run.status().share == 0.5  # the job that was refused says nothing of the other one's
    assert jobs.state(run) == "running"
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert jobs.state(run) == "stopped"
    with lock.hold(run.path):
        assert lock.holder(run.path) is not None


@pytest.mark.parametrize(
    ("script", "module", "command"),
    [
        ("/env/bin/mansu", None, "mansu run"),
        ("/tree/mansu/__main__.py", "mansu.__main__", "mansu run"),
        ("/tree/experiments/search.py", "experiments.search", "python -m experiments.search run"),
        ("/env/pytest/__main__.py", "pytest.__main__", "python -m pytest run"),
        ("mine.py", None, "python mine.py run"),
    ],
)
def test_who_is_at_work_is_called_as_it_was_started(
    script: str, module: str | None, command: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = module and ModuleSpec(module, None)
    monkeypatch.setattr(sys, "argv", [script, "run"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    with lock.hold(run.path):
        found = lock.holder(run.path)
    assert found is not None and found.command == command


def test_a_job_that_does_not_listen_is_ended(run: Run, other: subprocess.Popen[str]) -> None:
    run.set_status("running", 0.5, begins=True)
    jobs.cancel(run)
    assert run.status().state == "cancelling" and jobs.state(run) == "running"
    assert other.wait(timeout=30) == -signal.SIGKILL
    assert jobs.state(run) == "cancelled"
    with lock.hold(run.path):  # the flag was for that job
        assert run.status().state == "running"


def test_the_flag_alone_ends_a_job_with_its_next_step(run: Run, tiny: Subject) -> None:
    def work(job: Job) -> None:
        flag = run.path / lock.FLAG
        flag.write_text("of another job")
        job.on_step(Step("circuit", 1, 4))
        flag.write_bytes((run.path / lock.FILE).read_bytes())
        job.on_step(Step("circuit", 2, 4))

    with pytest.raises(Cancelled):
        Job(run, tiny).do(work)
    assert jobs.state(run) == "cancelled" and run.status().step == Step("circuit", 1, 4)


def test_no_process_but_the_job_is_signalled(run: Run) -> None:
    with subprocess.Popen(["sleep", "600"]) as stranger:
        here = lock.Holder.of(stranger.pid, ["mansu"])
        assert here.process is not None
        for found in (
            lock.Holder(stranger.pid, here.began - 60, here.machine),  # the number, used again
            lock.Holder(stranger.pid, here.began, "another-machine"),
            lock.Holder(1, lock.Holder.of(1, []).began, here.machine),
            lock.Holder(0, 0.0, here.machine),
            lock.Holder(-1, 0.0, here.machine),
        ):
            assert found.process is None
        (run.path / lock.FILE).write_text(json.dumps(asdict(here)))  # nobody holds it
        run.set_status("running", 0.4, begins=True)
        assert jobs.state(run) == "stopped"
        jobs.cancel(run)
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize(
    "away",
    [shutil.rmtree, lambda path: path.rename(path.with_name("moved"))],
    ids=["deleted", "moved"],
)
def test_a_run_that_goes_away_ends_its_job_and_does_not_come_back(
    run: Run, tiny: Subject, away: Callable[[Path], object]
) -> None:
    def work(job: Job) -> None:
        away(run.path)
        with pytest.raises(MismatchError, match="not there any more"):
            run.save({"timings": {}})
        with pytest.raises(NotMeasuredError, match="not there any more"):
            run.mask()
        job.on_step(Step("circuit", 1, 4))

    with pytest.raises(MismatchError, match="was deleted or moved while a job was at work"):
        Job(run, tiny).do(work)
    assert not run.path.exists()


def test_runs_that_are_made_in_one_second_are_each_a_folder(
    tiny: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    task, made = tasks.load("tiny-colours"), []
    threads = [
        threading.Thread(target=lambda: made.append(Run.create(tiny, task))) for _ in range(6)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len({run.path for run in made}) == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(run.name for run in made)
    for run in made:
        assert Run.open(run.path).task().digest == task.digest


def test_a_job_of_the_app_has_its_lock_from_the_first_moment(run: Run) -> None:
    with lock.handing_on(run.path) as held:
        job = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(run.path)],
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[held.file],
            env={**os.environ, lock.INHERITED: str(held.file)},
        )
        held.say(lock.Holder.of(job.pid, ["mansu", "circuit"]))
    try:
        who = lock.holder(run.path)  # before Python has even begun there
        assert who is not None and (who.pid, who.command) == (job.pid, "mansu circuit")
        assert job.stdout and job.stdout.readline() == "held\n"
        assert lock.holder(run.path) == who
    finally:
        job.kill()
        job.wait()
        assert job.stdout
        job.stdout.close()
    assert lock.holder(run.path) is None
