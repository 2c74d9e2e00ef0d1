"""Who does the units: processes of this machine, or Ray's on many. Both do ``work.attempt``.

A worker that is killed, or whose node goes down, loses the unit that it was at and nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Protocol

from mansu.errors import BadInputError
from mansu.job.limits import n_cores
from mansu.sweep.grid import Unit
from mansu.sweep.work import Outcome, attempt
from mansu.sweep.worker import serve

LOST = Outcome("lost", "its worker ended before it did (killed, or out of memory)")


class Pool(Protocol):
    """Where units are done.

    Attributes:
        size: how many at once.
    """

    @property
    def size(self) -> int: ...

    def give(self, unit: Unit) -> None:
        """Begin a unit; fewer than ``size`` are at work."""
        ...

    def ended(self, timeout: float) -> list[tuple[Unit, Outcome]]:
        """The units that have ended; waits at most so many seconds for the first."""
        ...

    def close(self) -> None:
        """End every worker, and what it is at."""
        ...


@dataclass
class _Worker:
    process: Any
    pipe: connection.Connection
    unit: Unit | None = None
    last: str = ""


class Processes:
    """A pool of processes of this machine, begun afresh (spawned), each with its own threads.

    Args:
        folder: of the run folders. size: how many at most; each begins when there is work for it.
        threads: of each; by default the machine's cores, divided among them, at most what
            ``OMP_NUM_THREADS`` allows: two threads on one core wait for each other.
    """

    def __init__(self, folder: str, size: int, threads: int | None = None) -> None:
        self.folder, self.size = folder, size
        self.threads = threads or max(1, min(n_cores() // size, _allowed()))
        self._workers: list[_Worker] = []

    def _begun(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self.folder, self.threads))
        process.daemon = True
        process.start()
        theirs.close()  # so that its end shows here when the process has ended
        return _Worker(process, ours)

    def give(self, unit: Unit) -> None:
        idle = [worker for worker in self._workers if worker.unit is None]
        worker = next((w for w in idle if w.last == unit.subject), None)  # it has it loaded
        if worker is None and len(self._workers) < self.size:
            worker = self._begun()
            self._workers.append(worker)
        worker = worker or idle[0]
        worker.unit, worker.last = unit, unit.subject
        with suppress(OSError):  # it ended while it was idle: ``ended`` says so
            worker.pipe.send(unit)

    def ended(self, timeout: float) -> list[tuple[Unit, Outcome]]:
        found = []
        busy = {w.pipe: (w, w.unit) for w in self._workers if w.unit is not None}
        for pipe in connection.wait(list(busy), timeout):
            worker, unit = busy[pipe]  # pyright: ignore[reportArgumentType]
            worker.unit = None
            try:
                found.append((unit, worker.pipe.recv()))
            except (EOFError, OSError):
                found.append((unit, LOST))
                _end(worker)
                self._workers.remove(worker)
        return found

    def close(self) -> None:
        for worker in self._workers:
            _end(worker)


def _end(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.terminate()
    worker.process.join(5)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()


def _allowed() -> int:
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # one number a level of nesting
    return int(said) if said.isdigit() else n_cores()


class OnRay:
    """A pool of Ray tasks on every node of a cluster; each needs MANSU, and sees the folder.

    Ray gives units of one kind to worker processes that it keeps, so that their subject stays
    loaded there.

    Args:
        folder: of the run folders, the same on every node. address: of the cluster, ``auto`` for
            one that runs on this machine, ``local`` to begin one.
        size: how many units at once; by default as many as the cluster has cores for.
        threads: of each, which are also the cores that it takes.

    Raises:
        BadInputError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self, folder: str, address: str, size: int | None = None, threads: int | None = None
    ) -> None:
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise BadInputError(
                "--ray needs the package ray: run `pip install 'mansu[ray]'`, here and on each "
                "node."
            ) from error
        self._ray: Any = ray
        self.folder, self.threads, self._most = folder, threads or 1, size
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            what = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BadInputError(
                f"There is no Ray cluster at {address!r} ({what:.200}): start one (`ray start "
                "--head`), and give its address."
            ) from error
        # Begun again by ``Sweep``, which counts how often; never by Ray, which would not say so.
        task: Callable[[Any], Any] = ray.remote(
            num_cpus=self.threads, max_retries=0, retry_exceptions=False
        )
        self._attempt: Any = task(attempt)
        self._at: dict[Any, Unit] = {}

    @property
    def size(self) -> int:
        room = int(self._ray.cluster_resources().get("CPU", 0) // self.threads)
        return max(1, min(room, self._most or room))

    def give(self, unit: Unit) -> None:
        self._at[self._attempt.remote(unit, self.folder, self.threads)] = unit

    def ended(self, timeout: float) -> list[tuple[Unit, Outcome]]:
        ready, _ = self._ray.wait(list(self._at), num_returns=1, timeout=timeout)
        found = []
        for ref in ready:
            unit = self._at.pop(ref)
            try:
                found.append((unit, self._ray.get(ref)))
            except self._ray.exceptions.RayTaskError as error:  # MANSU is not on that node
                what = str(error).strip().splitlines()[-1]
                found.append((unit, Outcome("failed", f"Ray could not begin it: {what:.300}")))
            except self._ray.exceptions.RayError:
                found.append((unit, LOST))
        return found

    def close(self) -> None:
        for ref in self._at:
            self._ray.cancel(ref, force=True)
        self._ray.shutdown()
