"""Long work: the command line in a process of its own, which outlives pages and reloads.

The run folder's ``status.json`` is the only channel from the job to the page; SIGTERM is the only
one back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import streamlit as st

from mansu.errors import MansuError
from mansu.files import write_json
from mansu.job.runs import Run

LOG = "job.log"


def start(arguments: Sequence[str], run: Path) -> None:
    """Start ``mansu …`` in the background, working on the run folder ``run``.

    Args:
        arguments: of the command line, e.g. ``["unlearn", str(run), "--method", "npo"]``.
        run: the folder of an existing run.

    Raises:
        MansuError: a job is at work on this run already.
    """
    opened = Run.open(run)
    if state(opened) == "running":
        raise MansuError("A job is at work on this run already: wait for it, or cancel it.")
    with (run / LOG).open("w") as log:
        job = subprocess.Popen(
            [sys.executable, "-m", "mansu", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the server's terminal is not for the job
        )
    threading.Thread(target=job.wait, daemon=True).start()  # else it stays as a zombie
    now = time.time()
    status = {"state": "running", "share": 0.0, "message": "starting", "pid": job.pid}
    write_json(run / "status.json", {**status, "started": now, "updated": now})


def state(run: Run) -> str:
    """One of running, done, failed, cancelled, stopped (without a word) and none (no job yet)."""
    status = run.status()
    found = str(status.get("state", "none"))
    if found in ("running", "cancelling") and not _alive(status["pid"]):
        found = str(run.status()["state"])  # it may have ended between the two looks
        return {"running": "stopped", "cancelling": "cancelled"}.get(found, found)
    return "running" if found == "cancelling" else found


def cancel(run: Run) -> None:
    """Ask the job to stop; it keeps what it finished."""
    status = run.status()
    if state(run) == "running":
        # Said first, for a job so young that it dies of the signal without a word.
        write_json(run.path / "status.json", {**status, "state": "cancelling"})
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(status["pid"], signal.SIGTERM)


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
        _progress(run, _files(run))
        return True
    status = run.status()
    if found == "failed":
        st.error(f"The job failed: {status['message']}", icon=":material/error:")
    elif found == "cancelled":
        st.info("Cancelled. What was finished is kept: start it again to go on from there.")
    elif found == "stopped":
        st.warning("The job stopped unexpectedly. What was finished is kept: start it again.")
    if found in ("failed", "stopped") and run.has(LOG):
        with st.expander("What it printed last"):
            st.code("\n".join((run.path / LOG).read_text().splitlines()[-20:]), language=None)
    return False


def _files(run: Run) -> int:
    """How many results the run holds."""
    return sum(1 for path in run.path.rglob("*") if path.suffix in (".json", ".safetensors"))


@st.fragment(run_every=1)
def _progress(run: Run, shown: int) -> None:
    if state(run) != "running" or _files(run) != shown:
        st.rerun()  # the page has something new to show
    status = run.status()
    elapsed = int(time.time() - status["started"])
    with st.container(border=True):
        share = min(max(status["share"], 0.0), 1.0)
        st.progress(share, f"{share:.0%} · {status['message']}")
        left, right = st.columns([3, 1], vertical_alignment="center")
        left.caption(f"{elapsed // 60} min {elapsed % 60:02d} s so far. You may leave this page.")
        cancelling = status["state"] == "cancelling"
        right.button(
            "Cancelling …" if cancelling else "Cancel",
            key="cancel job",
            icon=":material/cancel:",
            disabled=cancelling,
            on_click=cancel,
            args=(run,),
            width="stretch",
        )


def _alive(pid: int) -> bool:
    """Whether a process of ours or of another session still runs."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0  # our own child: reaped here if it has ended
    except ChildProcessError:
        pass
    try:
        os.kill(pid, 0)
        command = Path(f"/proc/{pid}/cmdline")  # the number may be another process's by now
        return not command.exists() or b"mansu" in command.read_bytes()
    except (ProcessLookupError, FileNotFoundError, PermissionError):  # or another user's
        return False
