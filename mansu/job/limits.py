"""How much of its machine a server may take: said once, for the variables and for the flags."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from mansu.room import GIB, machine_memory
from mansu.settings import configure, setting, settings_of, typed_in


@dataclass(frozen=True)
class Limits:
    """What a server may take; what nobody set goes by this machine."""

    memory: float | None = setting(
        None,
        "GiB that the models in the server's memory may take together (half of the machine's): "
        "those used longest ago make room, one in use never does.",
        low=0,
        above=True,
        high=1e6,
    )
    jobs: int | None = setting(
        None,
        "Jobs of the app that work at once (half of the processor's cores, at least one): the "
        "others wait for their turn.",
        low=1,
        high=1000,
    )


def variable(name: str) -> str:
    """The environment variable of a limit."""
    return f"MANSU_{name.upper()}"


def limits() -> Limits:
    """The limits that hold here, none of them None.

    Raises:
        BadInputError: a variable holds something else than its limit may be.
    """
    found = Limits()
    for name in settings_of(Limits):
        if text := os.environ.get(variable(name)):
            checked = configure(Limits, {name: typed_in(text)}, f"the server ({variable(name)})")
            found = replace(found, **{name: getattr(checked, name)})
    return replace(
        found,
        memory=found.memory or machine_memory() / 2 / GIB,
        jobs=found.jobs or max(1, n_cores() // 2),
    )


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
