"""``mansu task``."""

from __future__ import annotations

import argparse
from pathlib import Path

from mansu.cli import common
from mansu.errors import BadInputError


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wmdp", required=True, metavar="SOURCE", help="rows to forget")
    parser.add_argument("--mmlu", required=True, metavar="SOURCE", help="rows to keep")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .jsonl file to write")
    parser.add_argument("--rows", type=common.count, help="take the first so many of each (all)")
    common.add_choices(parser)


def task(options: argparse.Namespace) -> None:
    from mansu import tasks
    from mansu.files import replacing
    from mansu.sets import choices

    if options.output.suffix != ".jsonl":
        raise BadInputError(f"{options.output} is no .jsonl file: give a name that ends so.")
    common.refuse_place(options.output)
    forget, retain = (choices.read(s)[: options.rows] for s in (options.wmdp, options.mmlu))
    made = choices.task(options.output.stem, forget, retain, form=options.form, shots=options.shots)
    with replacing(options.output) as temporary:
        temporary.write_text(made.to_jsonl(), encoding="utf-8")
    counts = ", ".join(f"{len(made.split(s))} {s}" for s in tasks.SPLITS if made.split(s))
    print(f"{options.output}: {counts}; run it: mansu run --task {options.output}")
