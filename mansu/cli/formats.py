"""``mansu formats``."""

from __future__ import annotations

import argparse
from dataclasses import replace

from mansu.cli import common


def add_to(parser: argparse.ArgumentParser) -> None:
    common.add_folder(parser)
    common.add_edit(parser, several=True)


def formats(options: argparse.Namespace) -> None:
    from mansu.evidence.by_format import others
    from mansu.job.pipeline import BY_FORMAT, VERDICT
    from mansu.report import terminal

    run, names = common.measured(options)
    wanted = {str(format) for format in others()}
    work = []
    for name in names:
        lacking = run.has("by_format", name) and wanted - run.by_format(name).keys()
        stage = replace(BY_FORMAT, always=bool(lacking))  # a package was installed since
        judged = (VERDICT,) if run.has("verdict", name) else ()  # it tells the worst of them
        work.append((name, (stage, *judged)))
    common.perform(run, work)
    for name in names:
        print(terminal.formats(run, name))
