"""What an edit of a run is called: the one key of its folder, and of commands, pages and links.

The first edit by a method has the method's name; one with other settings is called after those that
are not the defaults, or as the user says::

    new(run, "mansu", {"rate": 0.06})     # "mansu-rate-0.06", where "mansu" is there already
    rename(run, "mansu-rate-0.06", "slow")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mansu import methods
from mansu.errors import BadInputError, MansuError, MismatchError, TakenError
from mansu.files import slug
from mansu.job import lock
from mansu.job.runs import Run

LONGEST, LONGEST_GIVEN = 60, 80
"""Characters of a name that settings give, before what tells it from others; and of any name."""


def by(run: Run, method: str) -> tuple[str, ...]:
    """The edits that a method made."""
    return tuple(name for name in run.edits() if run.method_of(name) == method)


def missing(run: Run) -> tuple[str, ...]:
    """The methods that the run is for, and has no judged edit by."""
    judged = {run.method_of(name) for name in run.judged()}
    return tuple(method for method in run.asked if method not in judged)


def title(run: Run, name: str) -> str:
    """An edit's name for people: "MANSU", "MANSU (rate-0.06)", "slow (MANSU)".

    No two edits of a run have the same. One that is damaged or not there is shown by its name.
    """
    try:
        method = run.method_of(name)
    except MansuError:
        return name
    if method not in methods.ALL:
        return name
    written = methods.named(method).title
    if name == method:
        return written
    own = name.startswith(f"{method}-")
    return f"{written} ({name[len(method) + 1 :]})" if own else f"{name} ({written})"


def new(run: Run, method: str, given: Mapping[str, Any]) -> str:
    """What an edit by a method with these settings is called, if nobody says otherwise.

    Where the run has an edit of that name, it was made with these settings.

    Args:
        given: settings of the method, checked; those that are not given may be any.

    Raises:
        BadInputError: there is no method of that name.
    """
    changed = methods.named(method).changed(given)
    after = [f"{name}-{_short(value)}" for name, value in changed.items()]
    full = "-".join([method, *(after or ["defaults"])])
    if len(full) > LONGEST:
        full = f"{full[:LONGEST]}-{hashlib.sha256(full.encode()).hexdigest()[:6]}"
    names = [method, slug(full), *(f"{slug(full)}-{n}" for n in range(2, 1000))]
    return next(name for name in names if _other(run, name, method, given) is None)


def _short(value: Any) -> str:
    return "auto" if value is None else json.dumps(value).replace("+", "").strip('"')


def refuse_other(run: Run, name: str, method: str, given: Mapping[str, Any]) -> None:
    """Refuse a name whose edit was made by another method, or with other settings.

    Raises:
        MismatchError: it was; names the first setting that differs.
        BadInputError: no edit by the method can have that name.
    """
    check(name, method)
    for twin in run.edits():
        if twin != name and twin.casefold() == name.casefold():
            raise MismatchError(f"The run {run.name} has an edit {twin}: give another name.")
    if (had := _other(run, name, method, given)) is not None:
        raise MismatchError(
            f"The run {run.name} has an edit {name} {had}: give the new one another --name, or add "
            "--again to throw that edit away and make it anew."
        )


def _other(run: Run, name: str, method: str, given: Mapping[str, Any]) -> str | None:
    """In what an edit that is there differs from one by a method with settings, if it does."""
    if not run.has("edit", name):
        return None
    if (made := run.method_of(name)) != method:
        return f"by {made}, not {method}"
    history = run.history(name)
    used = {**history["settings"], **history["given"]}
    for setting, value in given.items():
        if setting not in used or used[setting] != value:
            had = f"{setting} = {used[setting]}" if setting in used else f"the default of {setting}"
            return f"with {had}, not {value}"
    return None


def check(name: str, method: str) -> None:
    """Refuse what cannot be the name of an edit by a method.

    Raises:
        BadInputError: it cannot.
    """
    if name != slug(name) or len(name) > LONGEST_GIVEN:
        raise BadInputError(
            f"{name!r:.60} cannot be the name of an edit: give letters, digits, '.', '_' and '-', "
            f"at most {LONGEST_GIVEN}."
        )
    if name.casefold() in methods.ALL and name != method:
        raise BadInputError(
            f"{name!r} is a method's name, and an edit by {method} cannot have it: give it another."
        )


def rename(run: Run, old: str, new: str) -> None:
    """Give an edit another name, with all that was measured on it.

    Raises:
        BadInputError: the run is an example, or the name cannot be one.
        TakenError: another edit has the name, or a job is at work on the run.
        NotMeasuredError: there is no such edit.
    """
    run.refuse_example()
    run.require("edit", old)
    check(new, run.method_of(old))
    if new == old:
        return
    with lock.hold(run.path):
        refuse_taken(run, new, but=old)
        run.file("edit", old).parent.replace(run.file("edit", new).parent)


def refuse_taken(run: Run, name: str, but: str = "") -> None:
    """Refuse the name of another edit that is there.

    Args:
        but: the edit that is to get the name.

    Raises:
        TakenError: it is one.
    """
    # Names that differ in case alone are one file where a bundle may be unpacked.
    twins = [n for n in run.edits() if n != but and n.casefold() == name.casefold()]
    if twins or run.file("edit", name).parent.exists():
        raise TakenError(
            f"The run {run.name} has another edit {', '.join(twins) or name} already: give another "
            "name."
        )
