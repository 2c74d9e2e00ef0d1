"""``mansu quantize``."""

from __future__ import annotations

import argparse

from mansu.cli import common


def add_to(parser: argparse.ArgumentParser) -> None:
    common.add_folder(parser)
    common.add_edit(parser)


def quantize(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import MEASURE
    from mansu.job.runs import Run
    from mansu.report import terminal

    run, method = Run.open(options.folder), options.method
    run.require("edit", method)
    common.perform(run, [(method, MEASURE)])
    print(terminal.accuracies(run, method))
    print(terminal.geometry(run, method))
