"""Long work: the command line in a process of its own, which outlives pages and reloads.

The run's status and events are the only channel from the job to the page; a flag and a signal
(``mansu.job.lock``) are the only one back.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import streamlit as st

from mansu.errors import MansuError
from mansu.files import confined
from mansu.job import lock, queue
from mansu.job.limits import limits
from mansu.job.pace import left
from mansu.job.pipeline import expected
from mansu.job.runs import Run, Status, folder
from mansu.launch import SECRETS
from mansu.show.numbers import duration, percent
from mansu.show.sentences import sentence

MOMENT = 5.0
"""Seconds between two moments at which the time left is estimated."""


def start(arguments: Sequence[str], run: Path) -> None:
    """Start ``mansu …`` in the background, working on the run folder ``run`` when its turn comes.

    Args:
        arguments: of the command line, e.g. ``["unlearn", str(run), "--method", "npo"]``.
        run: the folder of an existing run.

    Raises:
        MansuError: a job is at work on this run already, or a limit of the server is none.
    """
    opened = Run.open(run)
    opened.refuse_example()
    limits()  # a job that cannot read them ends without a word
    with (
        lock.handing_on(run) as held,
        opened.new_log() as log,
        queue.ticket(folder(), run) as ticket,
    ):
        opened.set_status("running", 0.0, begins=True)  # no step: it has not begun
        job = subprocess.Popen(
            [sys.executable, "-m", "mansu", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the server's terminal is not for the job
            pass_fds=[held.file, ticket.file],
            env={
                **{name: v for name, v in os.environ.items() if name not in SECRETS},
                lock.INHERITED: str(held.file),
                queue.INHERITED: ticket.inherited,
            },
        )
        held.say(lock.Holder.of(job.pid, ["mansu", *arguments]))
    threading.Thread(target=job.wait, daemon=True).start()  # else it stays as a zombie


def state(run: Run) -> str:
    """One of running, done, failed, cancelled, stopped (without a word) and none (no job yet)."""
    if lock.holder(run.path):
        return "running"
    found = run.status().state  # asked for after the job is known to have ended
    return {"running": "stopped", "cancelling": "cancelled"}.get(found, found)


def place(run: Run) -> int:
    """How many turns its job is away from its own; 0 for one that works, and where there is none.

    Raises:
        BadInputError: the number of jobs at once is none.
    """
    return places([run])[0]


def places(runs: Sequence[Run]) -> list[int]:
    """The same of some runs: the queue is looked at once."""
    return queue.places(folder(), [run.path for run in runs])


def cancel(run: Run) -> None:
    """Ask the job to stop; it keeps what it finished. What does not stop is ended."""
    if who := lock.ask_to_stop(run.path):
        threading.Thread(target=lock.end, args=[who], daemon=True).start()


def panel(run: Run) -> bool:
    """Progress of the job on ``run`` and a button that cancels it, or how the last one ended.

    Returns:
        Whether a job is at work now.
    """
    with st.container():  # one place on the page, so that what follows does not move when it ends
        return _panel(run)


def _panel(run: Run) -> bool:
    found = state(run)
    if found == "running":
        _progress(run, run.n_files())
        return True
    status = run.status()
    if found == "failed":
        st.error(f"The job failed: {status.error}", icon=":material/error:")
    elif found == "cancelled":
        st.info("Cancelled. What was finished is kept: start it again to go on from there.")
    elif found == "stopped":
        st.warning("The job stopped unexpectedly. What was finished is kept: start it again.")
    printed = run.log().splitlines()[-20:]
    if found in ("failed", "stopped") and printed:
        with st.expander("What it printed last"):
            st.code("\n".join(printed), language=None)
    return False


@st.fragment(run_every=1)
def _progress(run: Run, shown: int) -> None:
    if state(run) != "running" or run.n_files() != shown:
        st.rerun()  # the page has something new to show
    status, waits = run.status(), place(run)
    with st.container(border=True):
        far = waiting(waits) if waits else f"{percent(status.share, 0)} · {doing(status)}"
        st.progress(status.share, far)
        told, button = st.columns([3, 1], vertical_alignment="center")
        said = turns() if waits else _clock(run, status)
        told.caption(f"{said} You may leave this page.".strip())
        cancelling = status.state == "cancelling"
        button.button(
            "Cancelling …" if cancelling else "Cancel",
            key="cancel job",
            icon=":material/cancel:",
            disabled=cancelling,
            on_click=cancel,
            args=(run,),
            width="stretch",
        )


def _clock(run: Run, status: Status) -> str:
    """How long a job has worked and still will, as a sentence; empty before its first step, as
    ``started`` may be when it came into the queue."""
    if status.step is None:
        return ""
    return f"{duration(time.time() - status.started)} so far, {time_left(run)}."


def doing(status: Status) -> str:
    """What a job is at, in a few words."""
    if status.state == "cancelling":
        return "cancelling"
    return sentence(status.step) if status.step else "starting"


def waiting(place: int) -> str:
    """Where in the queue a job stands, in words."""
    return "waits for its turn: next" if place == 1 else f"waits for its turn: number {place}"


def turns() -> str:
    """How jobs take turns on this server, as a sentence."""
    n = limits().jobs or 1
    several = "one job" if n == 1 else f"{n} jobs"
    return f"This server works on {several} at a time, in the order in which they were started."


def time_left(run: Run) -> str:
    """How long the job at work still takes, in words: the same on every page of every session.

    Pages ask at their own moments; the estimate is made at the server's.
    """
    found = left(run, time.time() // MOMENT * MOMENT)
    if found is None:
        return "the time left is being measured"
    return f"about {duration(found)} left" if found >= 2 else "nearly done"


def takes(subject: str, names: Sequence[str]) -> str:
    """How long a new run's whole job takes on this machine, as a sentence.

    Args:
        subject: its name. names: of the methods.
    """
    found = expected(subject, names)
    if found is None:
        return (
            "No run of this model was timed on this machine yet: the time left is shown soon "
            "after the start."
        )
    return f"The whole job takes about {duration(found)} here, going by earlier runs."


def working() -> list[Run]:
    """Every run that a job is at work on, the newest first."""
    found = []
    for path in folder().glob(f"*/{lock.FILE}"):  # every page asks, every 2 s: no other is opened
        with suppress(MansuError, OSError):  # a damaged run is said where runs are listed
            if lock.holder(path.parent):
                found.append(Run.open(confined(path.parent, folder())))
    return sorted(found, key=lambda run: run.manifest["created"], reverse=True)
