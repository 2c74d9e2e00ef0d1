"""``mansu dossier``."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from mansu.cli import common
from mansu.errors import BadInputError
from mansu.settings import typed_in


def add_to(parser: argparse.ArgumentParser) -> None:
    from mansu.evidence.review import DECISIONS

    parser.add_argument("folder", type=Path, nargs="?", help="a run folder")
    parser.add_argument("--method", default="mansu", help="whose edit (%(default)s)")
    parser.add_argument("--to", type=Path, help="an .html file; its .json is written beside it")
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a threshold that is not the original one, e.g. nats=0.2; several times",
    )
    parser.add_argument("--decision", choices=DECISIONS, help="sign it with this decision")
    parser.add_argument("--name", default="", help="of the reviewer who signs")
    parser.add_argument(
        "--note",
        action="append",
        default=[],
        metavar="PROPERTY=TEXT",
        help="of the reviewer, on forgetting, retention, gap or erasure; several times",
    )
    parser.add_argument("--against", type=Path, help="another dossier's .json, to compare with")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema, and no more")


def dossier(options: argparse.Namespace) -> None:
    from mansu.files import with_end
    from mansu.job.runs import Run
    from mansu.report.dossier import Dossier, beside_page, differences, review_of, schema
    from mansu.report.dossier import dossier as made

    if options.schema:
        print(json.dumps(schema(), indent=1))
        return
    if options.folder is None:
        raise BadInputError("Whose dossier? Give a run folder: mansu dossier runs/…")
    other = Dossier.load(options.against) if options.against else None
    run, method = Run.open(options.folder), options.method
    changes = {name: typed_in(value) for name, value in _pairs(options.threshold, "--threshold")}
    path = options.to and with_end(options.to, ".html")
    if path is not None:
        for each in (path, path.with_suffix(".json")):
            common.refuse_place(each)
        beside_page(path)
    if not options.decision and (options.note or options.name):
        raise BadInputError("A note or a name belongs to a decision: give --decision, too.")
    found = made(run, method, changes)
    if options.decision:
        notes, before = dict(_pairs(options.note, "--note")), found.signed
        review = review_of(found, options.decision, options.name, notes)
        run.save({"review": review}, method)
        found = replace(found, review=review.to_json())
        if before is not None:
            print(f"replaced the signature of {before.name}: {before.decision}, {before.date}")
    print(found.judged)
    if other is not None:
        print(differences(found, other))
    if path is not None:
        found.save(path)
        print(f"dossier: {path} and {path.with_suffix('.json').name}")


def _pairs(texts: list[str], option: str) -> list[tuple[str, str]]:
    for text in texts:
        if "=" not in text:
            raise BadInputError(f"{option} {text!r} has no =: write it as NAME=VALUE.")
    return [(name, value) for name, _, value in (text.partition("=") for text in texts)]
