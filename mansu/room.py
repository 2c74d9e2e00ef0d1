"""How much memory there is, and giving back what is free of ours."""

from __future__ import annotations

import ctypes
from contextlib import suppress
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
