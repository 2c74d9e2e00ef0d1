"""A worker of a sweep: a process begun afresh, which does units and ends with the one that drives.

It imports nothing that takes long before it can do so without the garbage collector.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection

from mansu.room import unwatched


def serve(pipe: connection.Connection, folder: str, threads: int) -> None:
    """A worker's life: units come, outcomes go, until the other end is closed.

    Args:
        folder: of the run folders. threads: of this process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that drives
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with unwatched():
        from mansu.sweep.work import attempt
    try:
        while True:
            pipe.send(attempt(pipe.recv(), folder, threads))
    except (EOFError, OSError):
        return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
