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
    print(run.circuit())
