"""The server's garbage is collected without a page's asking."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from app import garbage


class Slow:
    """Refers to itself; is freed slowly, and lets other threads run meanwhile."""

    def __init__(self, begun: threading.Event) -> None:
        self.itself = self
        weakref.finalize(self, lambda: (begun.set(), time.sleep(0.2)))


class Knot:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self, freed: threading.Event) -> None:
        self.itself = self
        weakref.finalize(self, freed.set)


def test_what_refers_to_itself_is_freed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "PAUSE", 0.01)
    freed = threading.Event()
    gc.disable()  # as good as: Python's own collector seldom looks at what is old
    try:
        garbage.collect_now_and_then()
        Knot(freed)
        assert freed.wait(60)
    finally:
        gc.enable()


def test_what_is_there_is_settled_and_garbage_is_not() -> None:
    freed = threading.Event()
    gc.disable()
    try:
        Knot(freed)
        garbage.settle()
        assert freed.is_set() and gc.get_freeze_count()
    finally:
        gc.unfreeze()
        gc.enable()


def test_what_is_garbage_is_not_kept_while_another_thread_collects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(garbage, "PAUSE", 0.01)
    begun, freed = threading.Event(), threading.Event()
    gc.disable()
    try:
        Slow(begun)
        garbage.collect_now_and_then()
        assert begun.wait(60)
        Knot(freed)
        garbage.settle()
        assert freed.is_set()
    finally:
        gc.unfreeze()
        gc.enable()
