"""A checkpoint's files whose pages are a model's weights: what is written into them is in it."""

from __future__ import annotations

import os
import weakref
from pathlib import Path


class Mapped:
    """A file as it was when a model's weights were mapped from it.

    It is held open: a new file in its place leaves the old one, and the weights, as they were.

    Attributes:
        path: where it was.

    Use: ``Mapped(path).rewritten`` is False until somebody writes into the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self._was = self._now()

    @property
    def rewritten(self) -> bool:
        """Whether it is no longer what it was."""
        return self._now() != self._was

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns
