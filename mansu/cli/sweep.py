"""``mansu sweep``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mansu.cli import common

if TYPE_CHECKING:
    from mansu.sweep.grid import Unit
    from mansu.sweep.sweep import Sweep


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = """a grid is a .toml (or .json) file:
  subjects = ["tiny"]
  tasks = ["tiny-colours"]
  seeds = [0, 1]
  attacked = ["mansu"]     # methods whose edits are attacked, too
  [methods.mansu]          # a value of a setting, or a list of those to try
  rate = [0.06, 0.12]
  [methods.graddiff]
  [run]                    # settings of each run, as of mansu run
  pairs = 16
What is done is not done again; `mansu app` shows it on the page Leaderboard."""
    parser.add_argument("grid", type=Path, help="a .toml or .json file")
    parser.add_argument(
        "--folder", type=Path, help="where the runs are (default: $MANSU_RUNS, else runs)"
    )
    add_workers(parser)
    parser.add_argument("--csv", type=Path, help="write the grid's results there, too")
    parser.add_argument("--parquet", type=Path, help="write the grid's results there, too")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Who does the units of a sweep, and where their results are kept."""
    parser.add_argument(
        "--store", type=Path, help="the file of results (default: results.sqlite in the folder)"
    )
    parser.add_argument(
        "--workers", type=common.count, help="units at once (1; with --ray as many as have room)"
    )
    parser.add_argument(
        "--threads",
        type=common.count,
        help="of each worker (the cores, divided among the workers, at most OMP_NUM_THREADS; with "
        "--ray 1); the same number gives the same numbers",
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="on a Ray cluster whose nodes see the folder; auto, local"
    )
    parser.add_argument(
        "--retries",
        type=int,
        choices=range(11),
        default=2,
        metavar="N",
        help="how often a unit is begun again whose worker was lost (%(default)s)",
    )


def sweep(options: argparse.Namespace) -> None:
    from mansu.job.runs import folder
    from mansu.sweep import store as stores
    from mansu.sweep.board import board
    from mansu.sweep.grid import read, units

    every = units(read(options.grid))
    if options.parquet is not None:
        stores.pyarrow()
    for path in filter(None, (options.csv, options.parquet)):
        common.refuse_place(path)
    work = swept(every, options.folder or folder(), options)
    rows = work.store.rows({unit.id for unit in every})
    print(board(rows).text())
    print(f"results: {work.store.path}", flush=True)
    for path, save in ((options.csv, stores.save_csv), (options.parquet, stores.save_parquet)):
        if path is not None:
            save(rows, path)
    work.refuse_failed()


def swept(units: Sequence[Unit], folder: Path, options: argparse.Namespace) -> Sweep:
    """Do units, as the options of ``add_workers`` say; SIGTERM raises ``Cancelled`` in it.

    Args:
        folder: of their runs; made where there is none.

    Returns:
        the sweep, ended: some units may have failed (``refuse_failed``).

    Raises:
        MansuError: there is no such cluster, or the store cannot be written; or one of the two
            places is in a run folder. OSError: the folder cannot be made.
    """
    from mansu.job.runs import Run
    from mansu.sweep.pools import OnRay, Processes
    from mansu.sweep.store import FILE, Store
    from mansu.sweep.sweep import Sweep

    signal.signal(signal.SIGTERM, common.cancel)
    place = Path(os.path.realpath(folder))  # Path's own raises where links lead in a circle
    for each in (place, options.store or place):
        Run.refuse_in_any(each)
    place.mkdir(parents=True, exist_ok=True)
    if options.ray:
        pool = OnRay(str(place), options.ray, options.workers, options.threads)
    else:
        pool = Processes(str(place), options.workers or 1, options.threads)
    try:
        store = Store(options.store or place / FILE)
        work = Sweep(units, place, store, pool, _tell, options.retries)
        work.run()
    finally:
        pool.close()
    return work


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
