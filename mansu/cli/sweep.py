"""``mansu sweep``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from mansu.cli import common
from mansu.errors import MansuError


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = """a grid is a .toml (or .json) file:
  subjects = ["tiny"]
  tasks = ["tiny-colours"]
  seeds = [0, 1]
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
    parser.add_argument(
        "--store", type=Path, help="the file of results (default: results.sqlite in the folder)"
    )
    parser.add_argument(
        "--workers", type=common.count, help="units at once (1; with --ray as many as have room)"
    )
    parser.add_argument(
        "--threads",
        type=common.count,
        help="of each worker (the cores, divided among the workers; with --ray 1); the same number "
        "gives the same numbers",
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
    parser.add_argument("--csv", type=Path, help="write the grid's results there, too")
    parser.add_argument("--parquet", type=Path, help="write the grid's results there, too")


def sweep(options: argparse.Namespace) -> None:
    from mansu.job.runs import folder
    from mansu.sweep import store as stores
    from mansu.sweep.board import board
    from mansu.sweep.grid import read, units
    from mansu.sweep.pools import OnRay, Processes
    from mansu.sweep.sweep import Sweep

    every = units(read(options.grid))
    place = (options.folder or folder()).resolve()
    place.mkdir(parents=True, exist_ok=True)
    store = stores.Store(options.store or place / stores.FILE)
    signal.signal(signal.SIGTERM, common.cancel)
    if options.ray:
        pool = OnRay(str(place), options.ray, options.workers, options.threads)
    else:
        pool = Processes(str(place), options.workers or 1, options.threads)
    try:
        work = Sweep(every, place, store, pool, _tell, options.retries)
        work.run()
    finally:
        pool.close()
    rows = store.rows({unit.id for unit in every})
    for path, save in ((options.csv, stores.save_csv), (options.parquet, stores.save_parquet)):
        if path is not None:
            save(rows, path)
    print(board(rows).text())
    print(f"results: {store.path}")
    if work.failed:
        why = next(iter(work.failed.values()))
        n = sum(unit.id in work.failed for unit in every)
        raise MansuError(
            f"{n} of {len(every)} units failed, the first: {why} Mend it and start the sweep "
            "again: what is done is kept."
        )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
