"""``mansu strengths``."""

from __future__ import annotations

import argparse

from mansu.cli import common


def add_to(parser: argparse.ArgumentParser) -> None:
    common.add_folder(parser)
    common.add_method(parser, several=True)


def strengths(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import STRENGTHS

    run, names = common.measured(options)
    common.perform(run, [(name, (STRENGTHS,)) for name in names])
    for name in names:
        for point in run.strengths(name).points:
            print(
                f"{point.strength:4.0%} of {name}: forget {point.forget:.1%}, in NF4 "
                f"{point.forget_nf4:.1%}, permanence {point.permanence:+.2f} nats, retain "
                f"fell {point.retain_fall:.1%}"
            )
