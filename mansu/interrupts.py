"""Putting back what was changed for a while, whatever signal arrives meanwhile.

A Ctrl-C in the middle of putting weights back would leave the shared subject changed for good.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Cancelled(BaseException):  # no "except Exception" may take it for a fault
    """Raised in the middle of work that somebody asked to stop."""


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


@contextmanager
def waiting() -> Iterator[None]:
    """Signals that a Python handler takes wait until the block ends (main thread only)."""
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main one
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Any] = {}
    try:
        for number in SIGNALS:
            if callable(signal.getsignal(number)):
                handlers[number] = signal.getsignal(number)
                signal.signal(number, lambda n, frame: arrived.append((n, frame)))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in arrived:
            handlers[number](number, frame)


def put_back(undo: Callable[[], None]) -> None:
    """Call ``undo``, which may be called twice, and let signals wait for it.

    For a ``finally``: what arrives before signals wait is raised again, once ``undo`` is done.
    """
    try:
        with waiting():
            undo()
    except BaseException:
        with waiting():
            undo()
        raise
