"""When the server frees memory: now and then, and never what was there from the start.

Streamlit would look after each run of each page and fragment, before the browser hears that it has
ended: with twenty sessions, and all that a model is, that took four fifths of the server's time.
"""

from __future__ import annotations

import gc
import threading
import time

from mansu.room import give_back

PAUSE = 5.0
"""Seconds between two collections, at least."""
SHARE = 0.02
"""Of the time, at most, that collections take: longer ones are rarer."""

_one = threading.Lock()
"""A second collection meanwhile does nothing, and what it left would then be kept for good."""


def settle() -> None:
    """Free what is garbage, and have the collector look no more at what is then there.

    After the imports, and after a model was loaded: it, and torch, take long to look through.
    """
    with _one:
        gc.unfreeze()
        gc.collect()
        gc.freeze()


def collect_now_and_then() -> None:
    """Start the thread that frees what pages leave behind, and gives it back to the machine."""

    def collect() -> None:
        took = 0.0
        while True:
            time.sleep(max(PAUSE, took / SHARE))
            begun = time.perf_counter()
            with _one:
                gc.collect()
            give_back()
            took = time.perf_counter() - begun

    threading.Thread(target=collect, name="garbage", daemon=True).start()
