"""``mansu score``."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

from mansu.cli import common
from mansu.errors import BadInputError


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="+",
        help="a parquet, json, jsonl or csv file; FOLDER:CONFIG:SPLIT; OWNER/NAME:CONFIG:SPLIT",
    )
    parser.add_argument("--set", required=True, help="wmdp, mmlu, tofu or muse")
    parser.add_argument(
        "--subject",
        default=common.DEFAULT_SUBJECT,
        help="without --run: %(default)s (the default), tiny, gemma-3-270m, a folder or a hub id",
    )
    parser.add_argument("--run", type=Path, help="a run folder, whose subject is scored")
    parser.add_argument("--method", help="score this edit of the run, too")
    parser.add_argument("--nf4", action="store_true", help="score each model in NF4, too")
    parser.add_argument(
        "--tokens", type=common.count, help="the longest greedy answer (the set's own)"
    )
    parser.add_argument("--reference", type=Path, help="scores of a model that never saw the set")
    parser.add_argument("-o", "--output", type=Path, help="the JSON file (default: in the run)")
    common.add_choices(parser)


def score(options: argparse.Namespace) -> None:
    from mansu import subjects
    from mansu.files import read_json, slug, write_json
    from mansu.job.lock import hold
    from mansu.job.runs import Run, folder
    from mansu.sets import score as sets
    from mansu.show.sentences import sentence

    if options.method and not options.run:
        raise BadInputError("--method needs --run: give the run folder that holds its edit.")
    run = Run.open(options.run) if options.run else None
    if run and options.method:
        run.require("edit", options.method)
    if run and not options.output:
        run.refuse_example()
    if options.output:
        common.refuse_place(options.output)
    name = run.subject if run else options.subject
    reference = read_json(options.reference) if options.reference else None
    subject = subjects.load(name)
    if run:
        run.check(subject)
    part = options.set if options.method else f"{options.set}-{slug(Path(name).name)}"
    kind = "edit_scores" if options.method else "scores"  # an edit's are renamed with it
    with hold(run.path) if run else nullcontext():
        edit = run.edit(options.method) if run and options.method else None
        result = sets.score(
            subject,
            options.set,
            options.source,
            edit=edit,
            in_nf4=options.nf4,
            form=options.form,
            shots=options.shots,
            tokens=options.tokens,
            reference=reference,
            on_step=lambda step: print(sentence(step), file=sys.stderr, flush=True),
        )
        result |= {"run": run and run.name, "method": options.method}
        path = options.output or (
            run.file(kind, options.method, part) if run else folder() / "scores" / f"{part}.json"
        )
        if run and not options.output:
            run.save({kind: result}, options.method, part)
        else:
            write_json(path, result)
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(sets.table(result))
    print(f"saved: {path}")
