"""The command line: ``mansu run`` does the whole main job; the other commands do its steps.

A command is a module of this package that is imported when it is chosen: it adds its arguments
(``add_to``), and its function of the same name does the work.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import NoReturn

from mansu import __version__
from mansu.errors import BadInputError, MansuError
from mansu.interrupts import Cancelled
from mansu.job.queue import wait_for_turn
from mansu.room import unwatched

BAD_INPUT, CANCELLED = 2, 130

# Python looks through all that there is once more before it ends, which with torch and a model
# takes longer than most work takes to stop; the memory goes back to the machine without that.
atexit.register(gc.freeze)

COMMANDS: Mapping[str, str] = {
    "run": "The whole main job: attribution, circuit, edit, NF4, CAD, verdict.",
    "attribute": "Start a run: attribute the forget task.",
    "circuit": "Find the minimal circuit and its parameter mask.",
    "trust": "Measure how far the circuit can be trusted.",
    "unlearn": "Apply MANSU or a baseline to a run.",
    "quantize": "Measure an edit in full precision and in NF4.",
    "verdict": "Measure CAD and judge an edit.",
    "attack": "Try to recover what an edit removed.",
    "strengths": "Measure an edit at parts of its strength.",
    "formats": "Measure an edit in other low-bit formats than NF4: GGUF's, FP4, int8, HQQ.",
    "dossier": "Write all that a reviewer of an edit must see, as one HTML file; sign it.",
    "bundle": "Put a run into one file, or take it out of one.",
    "export": "Write the edited model as files that other tools read.",
    "subject": "List the subjects, or prepare one of them.",
    "task": "Make a task file of WMDP and MMLU rows (multiple choice).",
    "sweep": "Do a grid of edits with many workers, and rank them.",
    "score": "Score WMDP, MMLU, TOFU or MUSE before and after an edit.",
    "app": "Open the app in the browser.",
    "doctor": "Check this installation and machine; say what a bug report needs.",
}

SESSION = "mansu.job.session"
"""Imports all that a job needs, which takes seconds."""
QUICK = ("subject", "task", "app")
"""Commands that load no model, or not before they said something."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for bad input, 130 when cancelled; doctor's 1."""
    wait_for_turn()
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser(given).parse_args(given)

    def work() -> int | None:
        if given[0] not in QUICK and SESSION not in sys.modules:  # once it is this process's turn
            with unwatched():
                importlib.import_module(SESSION)
        return options.function(options)

    return ending("mansu", given, work)


def ending(name: str, given: Sequence[str], work: Callable[[], int | None]) -> int:
    """Do a program's work: what a user can mend is one sentence on stderr, and no traceback.

    Args:
        name: of the program, which stands before the sentence. given: its arguments.
        work: gives an exit code, or None for 0.

    Returns:
        the exit code: what the work gives, 2 for bad input, 130 when cancelled.
    """
    try:
        _refuse_empty([name, *given])
        return work() or 0
    except MansuError as error:
        print(f"{name}: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "mansu":
            raise
        print(
            f"{name}: the package {error.name} is missing, which this command needs: run "
            "`pip install 'mansu[app,hub]'`.",
            file=sys.stderr,
        )
    except OSError as error:  # a disk that is full, a folder that may not be written, …
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if error.filename is not None:
            what = f"{error.filename}: {error.strerror}; give another path, or mend this one."
        print(f"{name}: {what}", file=sys.stderr)
    except (Cancelled, KeyboardInterrupt):
        print(f"{name}: cancelled; what was finished is kept.", file=sys.stderr)
        return CANCELLED
    return BAD_INPUT


def _refuse_empty(given: Sequence[str]) -> None:
    """Refuse an empty text, which is a variable of the shell that was never set: as a path it would
    be this folder, and else mostly the default.

    Raises:
        BadInputError: there is one.
    """
    for before, word in pairwise(given):
        option, equals, value = word.partition("=")
        if not word or (option.startswith("--") and equals and not value):
            raise BadInputError(
                f"There is an empty text after {option or before}: give one that is not, or leave "
                "it out."
            )


def script() -> NoReturn:
    """What ``mansu`` and ``python -m mansu`` do.

    A job that was cancelled ends at once: to take torch and a model apart can last longer than all
    the rest, and whoever cancelled waits for it.
    """
    code = main()
    if code == CANCELLED and not multiprocessing.active_children():  # a sweep's are waited for
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # it is closed
                stream.flush()
        os._exit(code)
    sys.exit(code)


def parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of every command, with the arguments of the one that is chosen in ``given``."""
    top = argparse.ArgumentParser(
        prog="mansu", description="Mechanistic machine unlearning that survives 4-bit quantization."
    )
    top.add_argument("--version", action="version", version=f"mansu {__version__}")
    commands = top.add_subparsers(required=True, metavar="command")
    chosen = next((word for word in given if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        added = commands.add_parser(name, help=text, description=text)
        if name == chosen:
            module = importlib.import_module(f"mansu.cli.{name}")
            module.add_to(added)
            added.set_defaults(function=getattr(module, name))
    return top


if __name__ == "__main__":
    script()
