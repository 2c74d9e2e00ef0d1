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
    print(run.trust())
