"""How much memory there is, giving back what is free of ours, and not looking for it in vain."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

GIB = 2**30
_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory() -> int:
    """Bytes of memory that this machine has, or that its container may take of it."""
    found = psutil.virtual_memory().total
    for path in map(Path, _CGROUP):
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            found = min(found, int(text))
    return found


def give_back() -> None:
    """Give the machine back what this process has freed: glibc keeps gigabytes, a heap a thread."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def unwatched() -> Iterator[None]:
    """The garbage collector waits for the block, and never looks through what is there then.

    For imports: torch's and transformers' make a million objects and no garbage, which it looks
    through again and again, for a third of the time that a process of ours takes to start. In
    somebody else's process what is garbage already would be kept for good. ::

        with unwatched():
            import mansu.job.session
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
