"""``mansu verdict``."""

from __future__ import annotations

import argparse

from mansu.cli import common


def add_to(parser: argparse.ArgumentParser) -> None:
    common.add_folder(parser)
    common.add_edit(parser)


def verdict(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import JUDGE
    from mansu.job.runs import Run
    from mansu.report import terminal

    run, method = Run.open(options.folder), options.method
    run.require("nf4", method)
    common.perform(run, [(method, JUDGE)])
    print(terminal.sentences(method, run.verdict(method)))
