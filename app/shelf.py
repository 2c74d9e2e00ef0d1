"""What is large and in memory for all sessions: models, and what is made of them.

It is counted by its bytes. Where the next thing would go beyond the budget, what was used longest
ago is let go of. What somebody still uses then stays in memory, is counted until they are done, and
is given to whoever asks for it meanwhile: nothing is there twice.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import streamlit as st
from torch import Tensor

from app.garbage import settle
from mansu.errors import MansuError
from mansu.job.limits import limits, variable
from mansu.room import GIB
from mansu.subjects import Subject

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds to wait for memory that others use now."""


class Shelf:
    """Values by key, the last used last.

    Args:
        budget: bytes that all together may take.
        patience: seconds to wait for those in use, where only they are left.
    """

    def __init__(self, budget: float, patience: float = PATIENCE) -> None:
        self.budget, self.patience = budget, patience
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._alive: dict[Hashable, tuple[weakref.ref[Any], int]] = {}
        self._coming: dict[Hashable, int] = {}
        self._making: defaultdict[Hashable, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], T], what: str, expected: int = 0) -> T:
        """The value of a key; made, by one thread, where there is none in memory.

        Args:
            make: gives it. what: it is, for people.
            expected: bytes that it will take, as far as they are known before; they are counted
                once it is there.

        Raises:
            MansuError: there is no room for it beside what others use. Besides, what ``make``
                raises.
        """
        with self._lock:
            making = self._making[key]
        with making:
            if (found := self._find(key)) is not None:
                return found
            with st.spinner(f"{what} …", show_time=True):
                self._wait_for_room(key, what, expected)
                try:
                    value = make()
                finally:
                    with self._lock:
                        self._coming.pop(key, None)
            with self._lock:
                self._kept[key] = value
                self._alive[key] = weakref.ref(value), bytes_of(value)
            self._make_room(0, key)
            if isinstance(value, Subject):
                settle()
            return value

    def taken(self) -> int:
        """Bytes of all that is in memory, in use or not, and of what is being made."""
        with self._lock:
            self._alive = {k: each for k, each in self._alive.items() if each[0]() is not None}
            return sum(n for _, n in self._alive.values()) + sum(self._coming.values())

    def keys(self) -> list[Hashable]:
        """Of what is kept, the last used last."""
        with self._lock:
            return list(self._kept)

    def _find(self, key: Hashable) -> Any:
        with self._lock:
            value = self._alive[key][0]() if key in self._alive else None
            if value is not None:
                self._kept[key] = value  # also what was let go of and is still in use
                self._kept.move_to_end(key)
            return value

    def _wait_for_room(self, key: Hashable, what: str, needed: int) -> None:
        until = time.monotonic() + self.patience
        while not self._make_room(needed, key):
            if needed > self.budget or time.monotonic() > until:
                used, wait = "", ""
                if needed <= self.budget:  # else no waiting helps
                    used = f", of which {_size(self.taken())} are in use by others"
                    wait = "Try again in a moment, or have"
                raise MansuError(
                    f"{what}: it takes {_size(needed)}, and models may take {_size(self.budget)} "
                    f"here{used}. {wait or 'Have'} the server started with more (`mansu app "
                    f"--memory`, {variable('memory')})."
                )
            time.sleep(0.2)

    def _make_room(self, needed: int, key: Hashable) -> bool:
        """Let go of what was used longest ago until so many bytes fit in; whether they do.

        They are set aside for the key then.
        """
        with self._lock:
            dropped = False
            while needed <= self.budget and self.taken() + needed > self.budget:
                oldest = next((each for each in self._kept if each != key), None)
                if oldest is None:
                    break
                del self._kept[oldest]
                dropped = True
            if dropped or self.taken() + needed > self.budget:
                settle()  # a model's modules refer to each other
            fits = self.taken() + needed <= self.budget
            if fits and needed:
                self._coming[key] = needed
            return fits


def _size(n_bytes: float) -> str:
    return f"{n_bytes / GIB:.1f} GiB" if n_bytes >= GIB / 10 else f"{n_bytes / 2**20:.1f} MiB"


def bytes_of(value: Any) -> int:
    """Bytes of the tensors behind a value of ours, each once; without a subject's it refers to."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    ahead = [value]
    while ahead:
        one = ahead.pop()
        if id(one) in seen or (isinstance(one, Subject) and one is not value):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(one, Mapping):
            ahead += one.values()
        elif isinstance(one, list | tuple):
            ahead += one
        elif type(one).__module__.startswith("mansu."):
            ahead += vars(one).values()
    return sum(storages.values())


@st.cache_resource(show_spinner=False)
def _shelf(budget: float) -> Shelf:
    return Shelf(budget)


def shelf() -> Shelf:
    """The one of this server.

    Raises:
        BadInputError: the variable of its budget holds no number.
    """
    return _shelf((limits().memory or 0.0) * GIB)
