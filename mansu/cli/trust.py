"""``mansu trust``."""

from __future__ import annotations

import argparse

from mansu.cli import common


def add_to(parser: argparse.ArgumentParser) -> None:
    common.add_folder(parser)


def trust(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import TRUST
    from mansu.job.runs import Run

    run = Run.open(options.folder)
    run.require("mask")
    common.perform(run, [(None, (TRUST,))])
    found = run.trust()
    overlap, low, high = found.overlap
    print(f"stability: overlap {overlap:.2f} [{low:.2f}, {high:.2f}] of resamples' best edges; ")
    print(f"  {found.always:.0%} of the edges are in more than 95 % of the resamples")
    if found.held_out_faithfulness is not None:
        value, low, high = found.held_out_faithfulness
        n = found.held_out_pairs
        print(f"faithfulness on {n} other pairs: {value:.3f} [{low:.3f}, {high:.3f}]")
    print(f"incompleteness {found.incompleteness:.3f}; {len(found.spare)} of ", end="")
    print(f"{len(found.minimality)} nodes could go: {', '.join(found.spare) or 'none'}")
    others = ", ".join(f"{x:.2f}" for x in found.metric_random_masks)
    print(f"metric {found.metric:.2f}; mask at zero {found.metric_masked:.2f}; ", end="")
    print(f"random masks {others}")
