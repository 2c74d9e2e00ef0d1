"""``mansu attack``."""

from __future__ import annotations

import argparse

from mansu.cli import common


def add_to(parser: argparse.ArgumentParser) -> None:
    common.add_folder(parser)
    common.add_edit(parser, several=True)


def attack(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import RECOVERY
    from mansu.report import terminal

    run, names = common.measured(options)
    common.perform(run, [(name, RECOVERY) for name in names])
    for name in names:
        print(terminal.recovery(run, name))
