"""``mansu circuit``."""

from __future__ import annotations

import argparse

from mansu.cli import common


def add_to(parser: argparse.ArgumentParser) -> None:
    common.add_folder(parser)


def circuit(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import CIRCUIT
    from mansu.job.runs import Run

    run = Run.open(options.folder)
    common.perform(run, [(None, CIRCUIT)])
    found, mask = run.circuit(), run.mask()
    print(
        f"circuit: {len(found):,} of {found.layout.n_edges:,} edges, faithfulness "
        f"{found.faithfulness:.1%}; mask: {mask.size:,} parameters ({mask.fraction:.3%})"
    )
