"""``mansu unlearn``."""

from __future__ import annotations

import argparse

from mansu.cli import common


def add_to(parser: argparse.ArgumentParser) -> None:
    common.add_folder(parser)
    common.add_method(parser)
    common.add_settings(parser)


def unlearn(options: argparse.Namespace) -> None:
    from mansu.job.pipeline import unlearning
    from mansu.job.runs import Run

    run = Run.open(options.folder)
    edits = common.edits_of(run, options, common.wanted(options, [options.method]))
    run.require("mask")
    ((name, one),) = edits.items()
    stages = (unlearning(one.method, one.given),)
    common.perform(run, [(name, stages)], edits=edits, again=options.again)
    history = run.history(name)
    print(
        f"{name}: {history['moved']:,} parameters moved ({history['fraction']:.3%}); "
        f"{history['stopped']}"
    )
