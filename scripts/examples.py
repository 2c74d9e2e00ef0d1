"""Make a run that ships with MANSU, as an example to open, from the first step to the verdict.

::

    python -m scripts.examples --subject tiny --task tiny-colours \\
        --method mansu --method graddiff --set graddiff.learning_rate=2e-5 --set graddiff.steps=200

Each edit is attacked and measured at parts of its strength, too. The run is made in a folder of its
own (``--folder``; one that is there goes on), then what an example needs of it is copied to
``mansu/data/examples``; its manifest says by which command it was made.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mansu import methods, subjects, tasks
from mansu.errors import BadInputError
from mansu.job import examples
from mansu.job.pipeline import RECOVERY, STRENGTHS, TRUST, perform, whole
from mansu.job.runs import EXAMPLES, Run
from mansu.job.session import Session
from mansu.show.sentences import sentence

COMMAND = ("python", "-m", "scripts.examples")


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make a run that ships with MANSU.")
    parser.add_argument("--name", help="of the example's folder; the task's by default")
    parser.add_argument("--subject", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--method", action="append", required=True, help="may be given again")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="METHOD.NAME=VALUE",
        help="a setting of a method; may be given again",
    )
    parser.add_argument("--folder", type=Path, help="where the run is made, and kept")
    return parser.parse_args(given)


def command(options: argparse.Namespace) -> str:
    """What makes this example again."""
    words = ["--subject", options.subject, "--task", options.task]
    words += [w for method in options.method for w in ("--method", method)]
    words += [w for setting in options.set for w in ("--set", setting)]
    words += ["--name", options.name] if options.name else []
    return shlex.join([*COMMAND, *words])


def make(options: argparse.Namespace, place: Path = EXAMPLES) -> Run:
    """The example that the options describe.

    Raises:
        MansuError: a bad setting, or what the job or ``mansu.job.examples.save`` refuses.
    """
    settings = {
        name: methods.parse_settings(
            methods.named(name),
            [s.removeprefix(f"{name}.") for s in options.set if s.startswith(f"{name}.")],
        )
        for name in options.method
    }
    strange = [s for s in options.set if s.partition(".")[0] not in settings]
    if strange:
        raise BadInputError(
            f"--set {strange[0]} is for none of the methods asked for: write METHOD.NAME=VALUE."
        )
    with tempfile.TemporaryDirectory() as scratch:
        path = options.folder or Path(scratch) / "run"
        subject = subjects.load(options.subject)
        if Run.is_at(path):
            run = Run.open(path)
        else:
            run = Run.create(subject, tasks.load(options.task), path=path, asked=options.method)
        session = Session(run, subject)
        for name, given in settings.items():
            stages = (*whole(name, given), *RECOVERY, STRENGTHS, TRUST)
            perform(session, stages, name, lambda step: print(sentence(step), file=sys.stderr))
        return examples.save(run, options.name or options.task, command(options), place)


if __name__ == "__main__":
    made = make(parsed())
    print(f"{made.path}: {sum(f.stat().st_size for f in made.path.rglob('*')) / 2**20:.1f} MB")
