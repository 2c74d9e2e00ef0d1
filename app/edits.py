"""Which edits a page is about: any number, of the chosen run and of others."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import streamlit as st

from app import address
from mansu.job import names
from mansu.job.runs import Run, listed
from mansu.report.compare import Side

SHOWN = 3
"""Edits of a dead link that are named."""


def several(run: Run) -> list[Side]:
    """Let the user choose edits, those of the chosen run first; the URL keeps them.

    No edit can be chosen twice. The first one is what the others are held against.
    """
    owners = {run.name: run, **{r.name: r for r in listed()}}
    options = {f"{o.name}/{m}": (o, m) for o in owners.values() for m in o.edits()}
    key = f"edits of {run.name}"
    st.session_state[key] = _wanted(run, key, options)
    chosen = st.multiselect(
        "Edits, the first of which the others are held against",
        list(options),
        key=key,
        format_func=lambda name: _label(*options[name], run),
        placeholder="Choose edits",
    )
    st.query_params["edits"] = st.session_state["linked edits"] = chosen
    st.session_state[f"kept {key}"] = chosen
    return [Side(_label(*options[name], run), *options[name]) for name in chosen]


def _wanted(run: Run, key: str, options: Collection[str]) -> list[str]:
    """What a link asks for; without a new one what was chosen before, else the first two edits
    that are judged, or are there.

    It is set each time, as ``state.choose`` does.
    """
    session, linked = st.session_state, [x for x in st.query_params.get_all("edits") if x]
    wanted = session.get(key, session.get(f"kept {key}"))
    if linked and linked != session.get("linked edits"):  # it is not what this page wrote
        gone = [name for name in linked if name not in options]
        if gone:  # a dead link: no other edit's numbers may stand for it
            said = ", ".join(f"“{address.brief(name)}”" for name in gone[:SHOWN])
            more = f" and {len(gone) - SHOWN} more" if len(gone) > SHOWN else ""
            address.warn(f"There is no edit {said}{more} here.")
        wanted = linked
    if wanted is None:
        judged = run.judged()
        first = sorted(run.edits(), key=lambda name: name not in judged)[:2]
        wanted = [f"{run.name}/{name}" for name in first]
    return [name for name in dict.fromkeys(wanted) if name in options]


def _label(owner: Run, method: str, run: Run) -> str:
    name = names.title(owner, method)
    if owner.path == run.path:
        return name
    task, subject = owner.about["title"], Path(owner.subject).name
    other = [task] * (task != run.about["title"]) + [subject] * (owner.subject != run.subject)
    return f"{name} ({', '.join([*other, owner.name])})"
