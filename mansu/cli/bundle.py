"""``mansu bundle``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mansu.errors import BadInputError, TakenError


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", type=Path, help="a run folder to pack, or a bundle to unpack")
    parser.add_argument(
        "--to", type=Path, help="the new .zip, or the new run folder (default: beside it, runs/…)"
    )
    parser.add_argument(
        "--method", action="append", default=[], help="whose edits go in (all); several times"
    )


def bundle(options: argparse.Namespace) -> None:
    from mansu import exports
    from mansu.files import answered, refuse_unwritable, with_end
    from mansu.job.runs import Run

    if answered(options.what.is_file):
        if options.method:
            raise BadInputError("--method chooses what goes into a bundle: leave it out here.")
        if options.to is not None:
            Run.refuse_in_any(options.to)
        run = exports.unpack(options.what, options.to)
        print(f"run folder: {run.path}")
        return
    run = Run.open(options.what)
    # Of the working folder, ".", the parent is itself; a link is packed beside itself.
    path = with_end(options.to or Path(os.path.abspath(run.path)), ".zip")
    Run.refuse_in_any(path)
    if answered(path.exists):
        raise TakenError(f"{path} is there already: give another --to, or delete it.")
    refuse_unwritable(path)
    exports.pack(run, path, options.method)
    print(f"bundle: {path} ({path.stat().st_size / 1e6:.1f} MB)")
