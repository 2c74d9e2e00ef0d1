"""A process's memory while it works."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from experiments.benchmarks.attribution import resident


@contextmanager
def watched(peak: list[float]) -> Iterator[None]:
    """Private memory at its peak; a mapped file's pages are not in it: they can be let go."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.01):
            peak.append(resident("RssAnon"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
