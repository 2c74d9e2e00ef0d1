"""What more workers bring a sweep, and what a killed one costs.

    python -m experiments.benchmarks.sweeps           # a minute or two on two free cores

The same eight edits of the tiny subject are made by one process, by two, by two of which one is
killed in the middle of a unit, and by a Ray cluster of two nodes of one core each, on this machine;
one thread a worker, each time in a new folder. The rows of the results are compared: who did the
work changes nothing in them.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mansu.job.lock import holder
from mansu.job.runs import Run
from mansu.show.numbers import NOTHING
from mansu.show.table import Table
from mansu.sweep.grid import Grid, Unit, units
from mansu.sweep.pools import OnRay, Pool, Processes
from mansu.sweep.store import COLUMNS, FILE, Store
from mansu.sweep.sweep import Sweep

COST = ("seconds", "shared_seconds", "memory_gib", "recorded")
"""The columns that say what a unit cost, which may differ."""
GRID = Grid(
    subjects=["tiny"],
    tasks=["tiny-colours"],
    seeds=[0],
    run={"pairs": 8},
    methods={
        "graddiff": {"learning_rate": [1e-5, 2e-5, 4e-5, 8e-5], "steps": 8},
        "mansu": {"rate": [0.06, 0.12, 0.18, 0.24], "steps": 6},
    },
)


def processes(n: int) -> Callable[[str], Pool]:
    return lambda folder: Processes(folder, n, 1)


@contextmanager
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of two nodes on this machine."""
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    found: Any = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.add_node(num_cpus=1)
    try:
        yield found.address
    finally:
        found.shutdown()


def kill_once(unit: Unit, folder: Path, after: float = 0.5) -> None:
    """Kill whoever is at work on a unit, once more than a share of it is done."""

    def kill() -> None:
        run = folder / unit.name
        while not (Run.is_at(run) and Run.open(run).status().share > after):
            time.sleep(0.05)
        if (who := holder(run)) and who.process:
            who.process.kill()

    threading.Thread(target=kill, daemon=True).start()


def timed(pool: Callable[[str], Pool], *, kill: bool = False) -> tuple[float, int, list[Any]]:
    """Seconds, workers that were lost, and the results without what they cost."""
    every = units(GRID)
    with tempfile.TemporaryDirectory() as folder:
        store, at_work = Store(Path(folder) / FILE), pool(folder)
        if kill:
            kill_once(every[0], Path(folder))
        start = time.perf_counter()
        try:
            sweep = Sweep(every, Path(folder), store, at_work, lambda text: None)
            sweep.run()
        finally:
            at_work.close()
        seconds = time.perf_counter() - start
        sweep.refuse_failed()
        kept = [name for name in COLUMNS if name not in COST]
        return seconds, sweep.lost.total(), [{n: row[n] for n in kept} for row in store.rows()]


def main() -> int:
    found = {
        "one process": timed(processes(1)),
        "two processes": timed(processes(2)),
        "two, one of them killed": timed(processes(2), kill=True),
    }
    try:
        with cluster() as address:
            found["Ray, two nodes"] = timed(lambda folder: OnRay(folder, address))
    except ModuleNotFoundError:
        print("Ray is not installed: pip install 'mansu[ray]'.", file=sys.stderr)
    first, _, rows = found["one process"]
    lines = [
        (
            name,
            f"{seconds:.1f}",
            f"{first / seconds:.2f}",
            str(lost or NOTHING),
            "the same" if there == rows else "others",
        )
        for name, (seconds, lost, there) in found.items()
    ]
    head = ("Who does it", "Seconds", "Speed-up", "Workers lost", "Results")
    print(Table(head, lines, align="<>>><").markdown())
    print(f"\n{len(rows)} edits and their circuit, on {os.cpu_count()} cores, ", end="")
    print(f"at a load of {os.getloadavg()[0]:.1f} at the end.")
    return int(any(there != rows for _, _, there in found.values()))


if __name__ == "__main__":
    sys.exit(main())
