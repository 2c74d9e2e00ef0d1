"""Who is at work on a run folder: one process at a time, and nobody else is believed to be.

A job holds ``job.lock`` of its run with ``flock``; the kernel lets go of it when the job ends,
however it ends. So whoever can take the lock knows that no job is at work; a process number alone
may be another process's by now. What the file says (number, start time, machine) is for people,
and for the signal that cancels: it goes to no process that did not begin at that time.

The app takes the lock, and its job inherits it open: no other job comes between the two.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from mansu.errors import MansuError, MismatchError, TakenError
from mansu.files import made_of, writing
from mansu.job.held import held

FILE, FLAG = "job.lock", "cancel"
INHERITED = "MANSU_JOB_LOCK"
"""The environment variable by which the app tells its job the number of the open lock."""
PATIENCE = 0.3
"""Seconds to try again: whoever only looks (``holder``) has the lock for a moment."""
SAME = 2.0
"""Seconds by which two processes may differ on when one began: the clock may have been set."""
GRACE = 1.5
"""Seconds from the signal that asks a job to end to the one that ends it."""


@dataclass(frozen=True)
class Holder:
    """The process that is at work.

    Attributes:
        pid, began: its number and when it started (seconds since 1970): together its identity.
        machine, command: where it runs, and what, for people.
    """

    pid: int = 0
    began: float = 0.0
    machine: str = ""
    command: str = ""

    @classmethod
    def of(cls, pid: int, command: Sequence[str]) -> Holder:
        """A process of this machine."""
        began = psutil.Process(pid).create_time()
        return cls(pid, began, platform.node(), shlex.join(command))

    @property
    def process(self) -> psutil.Process | None:
        """The process, if it is on this machine and still the one that began then."""
        if self.pid <= 1 or self.machine != platform.node():
            return None
        with suppress(psutil.Error):
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.began) < SAME
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        return None

    def __str__(self) -> str:
        if not self.pid:
            return "Another job"
        where = "" if self.machine == platform.node() else f" on {self.machine}"
        return f"Job {self.pid}{where} (`{self.command:.100}`)"


@dataclass(frozen=True)
class Lock:
    """A run folder's lock, taken.

    Attributes:
        folder: of the run. file: the descriptor that holds it.
    """

    folder: Path
    file: int

    def say(self, who: Holder) -> None:
        """Write down who holds it."""
        with writing(self.folder / FILE):
            os.ftruncate(self.file, 0)
            os.pwrite(self.file, json.dumps(asdict(who)).encode(), 0)

    def check(self) -> None:
        """Refuse to go on where the folder is not there any more.

        Raises:
            MismatchError: it was deleted or moved while the job was at work.
        """
        if not _same(self.folder, self.file):
            raise MismatchError(
                f"The run folder {self.folder} was deleted or moved while a job was at work on "
                "it: the job ends here."
            )

    @property
    def cancelled(self) -> bool:
        """Whether this process, and not one before it, was asked to stop."""
        with suppress(OSError):
            return (self.folder / FLAG).read_bytes() == os.pread(self.file, 1 << 16, 0)
        return False


def _same(folder: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(folder / FILE), os.fstat(file))
    except OSError:
        return False


@contextmanager
def hold(folder: Path) -> Iterator[Lock]:
    """Be the only one at work on a run folder; a job that the app started is it already.

    Raises:
        TakenError: a job is at work on it; says which.
        StorageError: the folder cannot be written.
    """
    lock = _inherited(folder)
    if lock is None:
        lock = _taken(folder)
        lock.say(Holder.of(os.getpid(), _command()))
    try:
        yield lock
    finally:
        os.close(lock.file)


def _command() -> list[str]:
    """How this process was started: ``mansu …``, or ``python …``."""
    script, *given = sys.argv or [""]
    if Path(script).name == "mansu" or Path(script).parts[-2:] == ("mansu", "__main__.py"):
        return ["mansu", *given]
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # of what python -m runs
    return ["python", *(["-m", spec.name.removesuffix(".__main__")] if spec else [script]), *given]


@contextmanager
def handing_on(folder: Path) -> Iterator[Lock]:
    """Take the lock for a process that is started inside the block, to which ``file`` is passed.

    Raises:
        TakenError, StorageError: as ``hold``.
    """
    lock = _taken(folder)
    try:
        yield lock
    finally:
        os.close(lock.file)  # the job, if there is one, has it open, too


def _inherited(folder: Path) -> Lock | None:
    """The lock that the app has passed on, if it is this folder's."""
    number = os.environ.pop(INHERITED, "")
    if not number.isdecimal() or not _same(folder, int(number)):
        return None
    os.set_inheritable(int(number), False)  # not for what this job starts
    return Lock(folder, int(number))


def _taken(folder: Path) -> Lock:
    with writing(folder / FILE):
        file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    ended = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(folder, file):
                with writing(folder / FLAG):
                    (folder / FLAG).unlink(missing_ok=True)  # it was for the last job
                return Lock(folder, file)
            why = MansuError(f"The run folder {folder} is being moved or deleted: try again.")
        except BlockingIOError:
            who = _said(os.pread(file, 1 << 16, 0))
            why = TakenError(f"{who} is at work on the run {folder}: wait for it, or cancel it.")
        if time.monotonic() > ended:
            os.close(file)
            raise why
        time.sleep(0.02)


def _said(content: bytes) -> Holder:
    with suppress(ValueError):
        return made_of(Holder, json.loads(content))
    return Holder()


def holder(folder: Path) -> Holder | None:
    """Who is at work on a run folder now; None where nobody is."""
    said = held(folder / FILE)
    return None if said is None else _said(said)


def asked_to_stop(folder: Path) -> bool:
    """Whether the job at work, or the last one, was asked to stop."""
    return (folder / FLAG).is_file()


def ask_to_stop(folder: Path) -> Holder | None:
    """Ask the job at work to stop: by a flag, which it looks at with every step, and a signal.

    Returns:
        who was asked, for ``end`` to see that it does; None where nobody is at work.
    """
    who = holder(folder)
    if who is None:
        return None
    with writing(folder / FLAG):
        (folder / FLAG).write_bytes((folder / FILE).read_bytes())
    if process := who.process:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
    return who


def end(who: Holder, seconds: float = GRACE) -> None:
    """Wait so long for a process that was asked to stop, then kill it: results stay whole."""
    if process := who.process:
        with suppress(psutil.Error):
            try:
                process.wait(seconds)
            except psutil.TimeoutExpired:
                if process := who.process:
                    process.kill()
