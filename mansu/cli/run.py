"""``mansu run``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from mansu.cli import common


def add_to(parser: argparse.ArgumentParser) -> None:
    common.add_what(parser)
    common.add_method(parser, several=True)
    common.add_settings(parser)


def run(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import whole
    from mansu.report import terminal

    for name in options.method or ["mansu"]:
        common.method_settings(options, name)  # before a folder is made
    here, subject = common.open_run(options, options.method or ["mansu"])
    names = options.method or here.asked
    given = common.edit_settings(here, options, names)
    work = [(name, whole(name, given[name])) for name in names]
    common.perform(here, work, subject, given=given, again=options.again)
    for name in names:
        print(terminal.accuracies(here, name))
        print(terminal.sentences(name, here.verdict(name)))
    print(f"open it: {_opening(here.path)}")


def _opening(path: Path) -> str:
    """The command that opens a run in the app, and which run is to be chosen there."""
    from mansu.job.runs import folder

    parent = path.resolve().parent
    known = parent == folder().resolve()
    command = "mansu app" if known else f"MANSU_RUNS={shlex.quote(str(parent))} mansu app"
    return f'{command}, then choose "{path.name}"'
