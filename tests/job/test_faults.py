"""A job killed at any event of the file system leaves what was before, or what comes after.

The work is done in a fork, which kills itself at its n-th event, for every n until it is through.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mansu import tasks
from mansu.errors import NotMeasuredError
from mansu.job.runs import Run
from mansu.job.settings import Settings
from mansu.subjects import Edit, Subject

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "fsync")
MOST = 400


def killed_at(n: int, work: Callable[[], object]) -> bool:
    """Whether the n-th event came, and the work was killed just before it."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        ended = os.waitstatus_to_exitcode(status)
        assert ended in (0, -signal.SIGKILL), "the work itself failed"
        return ended != 0
    try:
        left = n

        def seen(event: str, _: Any) -> None:
            nonlocal left
            if event in EVENTS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sync = os.fsync
        os.fsync = lambda file: (seen("fsync", ()), sync(file))[1]  # which is no event of its own
        sys.addaudithook(seen)
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


def each_kill(
    before: Path | None, here: Path, work: Callable[[], object], look: Callable[[], str]
) -> list[str]:
    """What is found after each kill, in order; at the last the work came through."""
    found = []
    for n in range(MOST):
        shutil.rmtree(here, ignore_errors=True)
        if before is not None:
            shutil.copytree(before, here)
        killed = killed_at(n, work)
        found.append(look())
        if not killed:
            return found
    raise AssertionError("the work does not end")


@pytest.fixture
def run(tiny: Subject, tmp_path: Path) -> Run:
    made = Run.create(tiny, tasks.load("tiny-colours"), Settings(pairs=8), tmp_path / "before")
    save(made, "old")
    return made


def save(run: Run, label: str) -> None:
    history = {"steps": [], "stopped": label, "settings": {}, "given": {}, "seconds": 0.0}
    history |= {"peak_memory": 0.0, "moved": 1, "fraction": 0.0}
    one = {"w": (torch.tensor([0]), torch.tensor([1.0]))}
    run.save({"edit": Edit(one, label), "history": history}, "ga")


def test_an_edit_is_the_old_one_none_or_the_new_one(run: Run, tmp_path: Path) -> None:
    here = tmp_path / "here"

    def look() -> str:
        again = Run.open(here)
        try:
            label = again.edit("ga").label
        except NotMeasuredError:
            assert again.edits() == ()
            return "none"
        assert again.history("ga")["stopped"] == label  # never of another edit
        return label

    found = each_kill(run.path, here, lambda: save(Run.open(here), "new"), look)
    assert list(dict.fromkeys(found)) == ["old", "none", "new"] and found == sorted(
        found, key=["old", "none", "new"].index
    )
    assert len(found) > 20


def test_a_result_and_a_status_are_the_old_ones_or_the_new_ones(run: Run, tmp_path: Path) -> None:
    here = tmp_path / "here"
    run.set_status("running", 0.5, begins=True)
    run.save({"timings": {"base": 1.0}})

    def work() -> None:
        again = Run.open(here)
        again.save({"timings": {"base": 2.0}})
        again.set_status("done", 1.0)

    def look() -> str:
        again = Run.open(here)
        status = again.status()
        assert status.error == "" and (status.state, status.share) in (
            ("running", 0.5),
            ("done", 1),
        )
        return f"{again.timings()['base']:.0f} {status.state}"

    found = each_kill(run.path, here, work, look)
    assert list(dict.fromkeys(found)) == ["1 running", "2 running", "2 done"]


def test_a_run_folder_is_there_whole_or_not_at_all(tiny: Subject, tmp_path: Path) -> None:
    here, task = tmp_path / "runs", tasks.load("tiny-colours")

    def look() -> str:
        if not (here / "run").exists():
            return "none"
        assert Run.open(here / "run").task().digest == task.digest
        return "whole"

    found = each_kill(None, here, lambda: Run.create(tiny, task, path=here / "run"), look)
    assert list(dict.fromkeys(found)) == ["none", "whole"] and len(found) > 10
