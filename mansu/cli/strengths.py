"""``mansu strengths``."""

from __future__ import annotations

import argparse

from mansu.cli import common


def add_to(parser: argparse.ArgumentParser) -> None:
    common.add_folder(parser)
    common.add_edit(parser, several=True)


def strengths(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import STRENGTHS

    run, names = common.measured(options)
    common.perform(run, [(name, (STRENGTHS,)) for name in names])
    for name in names:
        print(f"{name}, {run.strengths(name)}")
