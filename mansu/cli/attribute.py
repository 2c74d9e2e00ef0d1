"""``mansu attribute``."""

from __future__ import annotations

import argparse

from mansu.cli import common


def add_to(parser: argparse.ArgumentParser) -> None:
    common.add_what(parser)


def attribute(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import ATTRIBUTION, BASE

    run, subject = common.open_run(options, ["mansu"])
    common.perform(run, [(None, (BASE, ATTRIBUTION))], subject)
