"""The folder of runs as a shelf: what a user calls a run, and the trash, from which runs and edits
come back.

A name is a file of its own in the run folder, ``label.json``: the manifest says what was asked and
measured, and is never written again. Folder names stay, so that links and jobs hold::

    describe(run, Label("With a smaller rate", "The third try."))
    trash(run)
    restore(next(iter(trashed())))

A run has a trash of its own for its edits, which goes where the run goes. An edit comes back as it
was, with all that was measured on it, and each of these still says by its digest what it is of.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from mansu.errors import BadInputError, MansuError
from mansu.files import confined, read_json, reading, typed, write_json
from mansu.job import lock
from mansu.job.names import refuse_taken
from mansu.job.runs import Run, folder

LONGEST_TITLE, LONGEST_NOTES = 80, 4000
BIN = ".trash"
"""A folder of a folder: neither the list of runs nor that of edits looks so deep."""


@dataclass(frozen=True)
class Label:
    """What a user calls a run.

    Attributes:
        title: one line; empty where the run has none of its own. notes: some text.
    """

    title: str = ""
    notes: str = ""


def label(run: Run) -> Label:
    """What the run is called; an empty one where nobody named it.

    Raises:
        DamagedError: label.json is damaged.
    """
    path = run.path / "label.json"
    if not path.is_file():
        return Label()
    with reading(path):
        return typed(Label(**read_json(path)))


def title(run: Run) -> str:
    """The run's own title, else its task's."""
    try:
        own = label(run).title
    except MansuError:  # a damaged name hides no run
        own = ""
    return own or str(run.about["title"])


def describe(run: Run, given: Label) -> None:
    """Name a run and describe it, instead of what it was called.

    Raises:
        BadInputError: the title has several lines, or something is too long; the run is an example.
    """
    run.refuse_example()
    one = Label(given.title.strip(), given.notes.strip())
    if len(one.title.splitlines()) > 1:
        raise BadInputError("A run's name is one line: put the rest into its notes.")
    for what, text, most in (
        ("name", one.title, LONGEST_TITLE),
        ("notes", one.notes, LONGEST_NOTES),
    ):
        if len(text) > most:
            raise BadInputError(f"The run's {what}: {len(text)} characters; give {most} at most.")
    write_json(run.path / "label.json", asdict(one))


def trash(run: Run) -> None:
    """Move a run into the trash, whole; ``restore`` brings it back.

    Raises:
        BadInputError: it is not in the folder of runs, or the trash is a link that leads out.
        TakenError: a job is at work on it.
    """
    if run.path.resolve().parent != folder().resolve():
        raise BadInputError(f"The run {run.name} is not in {folder()}: delete it where it lies.")
    with lock.hold(run.path):
        _throw(run.path, folder())


def trashed() -> dict[str, str]:
    """The names that the runs in the trash had, by those that they have there; the last one thrown
    away comes first."""
    return _thrown(folder(), "manifest.json")


def restore(name: str) -> Run:
    """Take a run out of the trash, under the name that it had.

    Args:
        name: a key of ``trashed``.

    Raises:
        BadInputError: it is not there, or another run has its name by now.
    """
    had = trashed().get(name)
    if not had:
        raise BadInputError(f"There is no run {name!r:.80} in the trash: it may be back already.")
    place = folder() / had
    if place.exists():
        raise BadInputError(
            f"There is another run {place.name} by now: rename that folder, then restore this one."
        )
    (folder() / BIN / name).replace(place)
    return Run.open(place)


def trash_edit(run: Run, name: str) -> None:
    """Move an edit into the run's trash, with all that was measured on it.

    Raises:
        BadInputError: the run is an example. TakenError: a job is at work on the run.
        NotMeasuredError: there is no such edit.
    """
    run.refuse_example()
    run.require("edit", name)
    with lock.hold(run.path):
        _throw(run.file("edit", name).parent, run.path)


def trashed_edits(run: Run) -> dict[str, str]:
    """The names that the edits in a run's trash had, as ``trashed`` has those of runs."""
    return _thrown(run.path, run.file("edit", "x").name)


def restore_edit(run: Run, name: str) -> str:
    """Take an edit out of a run's trash, under the name that it had, which is returned.

    Args:
        name: a key of ``trashed_edits``.

    Raises:
        BadInputError: it is not there. TakenError: another edit has its name by now, or a job is at
            work on the run.
    """
    had = trashed_edits(run).get(name)
    if not had:
        raise BadInputError(f"There is no edit {name!r:.80} in the trash: it may be back already.")
    with lock.hold(run.path):
        refuse_taken(run, had)
        place = run.file("edit", had).parent
        place.parent.mkdir(exist_ok=True)
        (run.path / BIN / name).replace(place)
    return had


def _throw(thing: Path, home: Path) -> None:
    """Move a folder into the trash of ``home``, where there may be older ones of its name."""
    bin = confined(home / BIN, home)
    bin.mkdir(parents=True, exist_ok=True)
    number = next(n for n in count(1) if not (bin / f"{thing.name}~{n}").exists())
    thing.replace(bin / f"{thing.name}~{number}")


def _thrown(home: Path, file: str) -> dict[str, str]:
    if (home / BIN).is_symlink():  # nothing is thrown there, and nothing comes back
        return {}
    found = [p.parent for p in (home / BIN).glob(f"*~*/{file}")]
    found.sort(key=lambda p: p.stat().st_ctime_ns, reverse=True)
    return {p.name: p.name.rpartition("~")[0] for p in found}
