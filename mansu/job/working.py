"""Work on a run in this process: its status says how far it is, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mansu.errors import MansuError
from mansu.files import sweep
from mansu.interrupts import Cancelled
from mansu.job.lock import Lock, hold
from mansu.job.machine import threads_of
from mansu.job.pipeline import Plan
from mansu.job.runs import Run, State
from mansu.progress import Step


class Work:
    """What every job does around its own work, be it a command's or a sweep's.

    Attributes:
        run: as given. plan: what the job is going to do, once it is known.
        share: of the whole job that is done, 0 to 1; it never falls.

    Use: ``with work.held(): perform(session, stages, on_step=work.on_step)``.
    """

    lock: Lock

    def __init__(self, run: Run) -> None:
        self.run, self.plan, self.share = run, Plan(()), 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the one at work on the run, as ``threads_of`` it; its status is true whatever happens.

        Raises:
            TakenError: another job is at work on it. BadInputError: it is an example.
        """
        self.run.refuse_example()
        with threads_of(self.run.manifest), hold(self.run.path) as self.lock:
            try:
                self.run.set_status("running", 0.0, begins=True)
                sweep(self.run.path)
                yield
            except (Cancelled, KeyboardInterrupt):
                self._end("cancelled")
                raise
            except Exception as error:
                self._end("failed", str(error))
                raise
            self._end("done")

    def on_step(self, step: Step) -> None:
        """Keep a step.

        Raises:
            Cancelled: somebody asked for it. MismatchError: the run folder is gone.
        """
        self.lock.check()
        if self.lock.cancelled:
            raise Cancelled
        self.share = max(self.share, self.plan.share(step) or 0.0)
        self.run.record(step, self.share)

    def _end(self, state: State, error: str = "") -> None:
        """Say how it ended, where that can be written: a full disk hides no other error."""
        with suppress(MansuError, OSError):
            self.lock.check()
            self.run.set_status(state, 1.0 if state == "done" else None, error=error)
