"""Which edits a page is about: any number, of the chosen run and of others."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import state
from mansu.job import names
from mansu.job.runs import Run, listed
from mansu.report.compare import Side


def several(run: Run) -> list[Side]:
    """Let the user choose edits, those of the chosen run first; the URL keeps them.

    No edit can be chosen twice. The first one is what the others are held against.
    """
    owners = {run.name: run, **{r.name: r for r in listed()}}
    options = {f"{o.name}/{m}": (o, m) for o in owners.values() for m in o.edits()}
    key = f"edits of {run.name}"
    if key not in st.session_state:
        st.session_state[key] = _wanted(run, options)
    chosen = st.multiselect(
        "Edits, the first of which the others are held against",
        list(options),
        key=key,
        format_func=lambda name: _label(*options[name], run),
        placeholder="Choose edits",
    )
    st.query_params["edits"] = st.session_state[f"kept {key}"] = chosen
    return [Side(_label(*options[name], run), *options[name]) for name in chosen]


def _wanted(run: Run, options: dict[str, tuple[Run, str]]) -> list[str]:
    """What was chosen before, else what the link says of this run, else its first two edits."""
    own = [name for name, (owner, _) in options.items() if owner.name == run.name]
    linked = st.query_params.get_all("edits")
    if not any(name in own for name in linked):  # it is about another run
        linked = []
    for name in linked:
        if name not in options:  # a dead link: no other edit's numbers may stand for it
            st.warning(f"There is no edit “{state.plain(name)}” here.")
    kept = st.session_state.get(f"kept edits of {run.name}", linked)
    return [name for name in dict.fromkeys(kept) if name in options] or own[:2]


def _label(owner: Run, method: str, run: Run) -> str:
    name = names.title(owner, method)
    if owner.path == run.path:
        return name
    return f"{name} ({owner.about['title']}, {Path(owner.subject).name}, {owner.name})"
