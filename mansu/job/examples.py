"""Finished runs that ship with MANSU: made of a run, opened like one, copied to be worked on.

An example holds what was measured and the edits, not the caches that more work would make again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mansu.errors import BadInputError
from mansu.files import new_folder, write_json
from mansu.job import names
from mansu.job.artefacts import ARTEFACTS
from mansu.job.runs import EXAMPLES, Run, folder

CACHES = ("ablation", "suppressor", "search", "timings")
"""Kinds of files that an example leaves out: CAD's controls and what this machine did."""

LARGEST = 6 << 20
"""Bytes that one edit of an example may have: a dense edit of a real model has a hundred times
as many, so an example's baseline is one that moves few weights."""


def save(run: Run, name: str, command: str, place: Path = EXAMPLES) -> Run:
    """Make an example of a finished run.

    Args:
        name: of its folder, which takes the place of one that is there.
        command: what made it, for its manifest.

    Raises:
        BadInputError: a method that was asked for is not judged, or its edit is too large to ship.
    """
    if missing := names.missing(run):
        raise BadInputError(
            f"The run {run.name} has no verdict on {missing[0]}: finish it first with "
            f"`mansu run --folder {run.path}`."
        )
    for method in run.edits():
        size = run.file("edit", method).stat().st_size
        if size > LARGEST:
            raise BadInputError(
                f"The edit by {method} has {size / 2**20:.0f} MB, and one that ships has at most "
                f"{LARGEST >> 20}: take a baseline that moves few weights, such as mansu_no_floor."
            )
    kept = {run.path / "task.jsonl"}
    for kind, about in ARTEFACTS.items():
        if kind not in CACHES:
            pattern = about.file.format("*")
            kept |= set(run.path.glob(f"edits/*/{pattern}" if about.of_edit else pattern))
    shutil.rmtree(place / name, ignore_errors=True)
    with new_folder(place / name) as new:
        for path in sorted(kept):
            target = new / path.relative_to(run.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        write_json(new / run.manifest_file.name, {**run.manifest, "example": command})
    return Run.open(place / name)


def copied(example: Run) -> Run:
    """A run of the user's own that begins as an example.

    Raises:
        BadInputError: there is one of that name already, or it is no example.
    """
    if not example.is_example:
        raise BadInputError(f"The run {example.name} is no example: work on it as it is.")
    to = folder() / example.name
    with new_folder(to) as new:
        shutil.copytree(example.path, new, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return Run.open(to)
