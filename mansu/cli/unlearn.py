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

    run, method = Run.open(options.folder), options.method
    given = common.edit_settings(run, options, [method])
    run.require("mask")
    stages = (unlearning(method, given[method]),)
    common.perform(run, [(method, stages)], given=given, again=options.again)
    history = run.history(method)
    print(
        f"{method}: {history['moved']:,} parameters moved ({history['fraction']:.3%}); "
        f"{history['stopped']}"
    )
