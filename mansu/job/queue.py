"""Whose turn it is: jobs of the app wait for each other, first come, first served.

Each holds a ticket, a file with a number and the kernel's lock on it, which dies with the job
however it ends, as that of a run does (``lock``). A job works once fewer live tickets are before
its own than jobs may work at once. What waits has loaded nothing yet: this module imports no torch.

A job that somebody starts in a terminal has no ticket, and begins at once.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mansu.job.held import held
from mansu.job.limits import limits

FOLDER, DOOR = ".queue", "door"
INHERITED = "MANSU_JOB_TICKET"
"""The environment variable by which the app tells its job the number of the open ticket."""
NICE = 10
"""By how much the app's jobs step back: a page is drawn before a job goes on."""
LOOKS = 0.5
"""Seconds between two looks at the tickets."""


@dataclass(frozen=True)
class Ticket:
    """A place in the queue, held.

    Attributes:
        path: of its file, named by its number. file: the descriptor that holds it.
    """

    path: Path
    file: int

    @property
    def inherited(self) -> str:
        """What ``INHERITED`` says of it."""
        return f"{self.file} {self.path.resolve()}"


@contextmanager
def ticket(home: Path, run: Path) -> Iterator[Ticket]:
    """Take the next number, for a process that is started in the block and given ``file``.

    Args:
        home: the folder of runs, which has one queue. run: the folder that the job works on.

    Raises:
        StorageError: it cannot be written.
    """
    from mansu.files import writing

    folder = home / FOLDER
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        door = os.open(folder / DOOR, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(door, fcntl.LOCK_EX)  # one at a time is given a number
        for _, path in _numbered(folder):
            if held(path) is None:
                path.unlink(missing_ok=True)
        last = max((number for number, _ in _numbered(folder)), default=0)
        path = folder / str(last + 1)
        with writing(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            os.write(file, os.fsencode(run.resolve()))
        fcntl.flock(file, fcntl.LOCK_EX)
    finally:
        os.close(door)
    try:
        yield Ticket(path, file)
    finally:
        os.close(file)  # the job, if there is one, has it open, too


def order(home: Path) -> list[Path]:
    """The run folders whose jobs have a ticket, in the order of their turns."""
    told = (held(path) for _, path in _numbered(home / FOLDER))
    return [Path(os.fsdecode(run)) for run in told if run is not None]


def places(home: Path, runs: Iterable[Path]) -> list[int]:
    """How many turns each run's job is away from its own; 0 where it works, or does not wait.

    Raises:
        BadInputError: the variable of the jobs at once holds no number.
    """
    turns = {run: i for i, run in enumerate(order(home))}
    at_once = limits().jobs or 1
    return [max(0, turns.get(run.resolve(), 0) + 1 - at_once) for run in runs]


def wait_for_turn() -> None:
    """In a job that the app started, at its very beginning: step back, and wait.

    A signal that cancels it ends it here and now: it has nothing to put right yet.
    """
    mine = _inherited()
    if mine is None:
        return
    _step_back()
    at_once, number = limits().jobs or 1, int(mine.path.name)
    while _live(mine.path.parent, number) >= at_once:
        time.sleep(LOOKS)


def _step_back() -> None:
    os.nice(NICE)
    if os.getsid(0) == os.getpid():  # where Linux shares the processor by session, so must that
        with suppress(OSError):  # what has no such groups
            Path("/proc/self/autogroup").write_text(str(NICE))


def _live(folder: Path, before: int) -> int:
    """How many tickets of smaller numbers somebody holds."""
    return sum(held(path) is not None for n, path in _numbered(folder) if n < before)


def _inherited() -> Ticket | None:
    number, _, path = os.environ.pop(INHERITED, "").partition(" ")
    with suppress(OSError, ValueError):
        if os.path.samestat(os.stat(path), os.fstat(int(number))):
            os.set_inheritable(int(number), False)  # not for what this job starts
            return Ticket(Path(path), int(number))
    return None


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """Every ticket, held or not, by its number."""
    return sorted((int(p.name), p) for p in folder.glob("[0-9]*") if p.name.isdecimal())
