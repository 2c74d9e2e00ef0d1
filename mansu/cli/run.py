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

    asked = common.wanted(options, options.method or ["mansu"])  # before a folder is made
    here, subject = common.open_run(options, options.method or ["mansu"])
    if not options.method:
        new = options.set or options.name
        asked = common.wanted(options, here.asked) if new else common.going_on(here)
    edits = common.edits_of(here, options, asked)
    work = [(name, whole(one.method, one.given)) for name, one in edits.items()]
    common.perform(here, work, subject, edits=edits, again=options.again)
    for name in edits:
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
