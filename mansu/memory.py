"""Values in memory, the last used last: what is made of the same thing again need not be."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Memory(Generic[T]):
    """Values by key; where they become too many, those used longest ago are let go of.

    A value is given to everybody who asks for it: nobody may change it.

    Args:
        most: what all values together may count; one that counts more than a quarter is not kept.
    """

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0
        self._kept: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T], counts: int = 1) -> T:
        """The value of a key; made where there is none. What ``make`` raises is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        value = make()  # by two threads at once, perhaps: they make the same
        if 4 * counts <= self.most:
            with self._lock:
                self.taken += counts - self._kept.pop(key, (value, 0))[1]
                self._kept[key] = value, counts
                while self.taken > self.most:
                    _, (_, freed) = self._kept.popitem(last=False)
                    self.taken -= freed
        return value
