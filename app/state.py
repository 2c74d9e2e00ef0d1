"""What every page shares: the chosen run, choices that live in the URL, the loaded subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import streamlit as st

from mansu import subjects
from mansu.errors import MansuError
from mansu.job.runs import Run, listed


@contextmanager
def show_errors() -> Iterator[None]:
    """Show a ``MansuError`` raised inside as its sentence, and go on after the block."""
    try:
        yield
    except MansuError as error:
        st.error(str(error), icon=":material/error:")


@st.cache_resource(max_entries=2, show_spinner="Loading the model …")
def subject(name: str) -> subjects.Subject:
    """A subject for interactive inspection, loaded once for all sessions.

    Raises:
        MansuError: it cannot be loaded.
    """
    return subjects.load(name)


def choose(label: str, options: Sequence[str], key: str, *, default: int = 0, **more: Any) -> str:
    """A select box whose choice lives in the URL and survives page changes and reloads.

    Args:
        options: at least one. key: of the widget, and the name in the URL.
        default: index of the option for whoever has not chosen yet.
        more: other arguments of ``st.selectbox`` (``help``, ``format_func``, …).
    """
    _recall(options, key, default)
    return _keep(key, st.selectbox(label, options, key=key, **more))


def switch(label: str, options: Sequence[str], key: str, *, default: int = 0, **more: Any) -> str:
    """Like ``choose`` for two or three options, side by side."""
    _recall(options, key, default)
    return _keep(key, st.segmented_control(label, options, key=key, required=True, **more))


def _recall(options: Sequence[str], key: str, default: int) -> None:
    """Set a widget that is about to be drawn to what was chosen before, if that is still there."""
    state = st.session_state
    wanted = state.pop(f"next {key}", None)
    if wanted is None and state.get(key) not in options:  # new on this page, or the option is gone
        wanted = st.query_params.get(key, state.get(f"kept {key}"))
        state[key] = options[default]
    if wanted in options:
        state[key] = wanted


def _keep(key: str, value: Any) -> str:
    st.query_params[key] = st.session_state[f"kept {key}"] = value
    return value


def select(key: str, value: str) -> None:
    """Make ``value`` the choice of ``choose(…, key)`` or ``switch`` from its next drawing on."""
    st.session_state[f"next {key}"] = value


def begin(title: str, question: str) -> Run:
    """Open a page about a run: title, question, and the run chosen in the sidebar.

    The page ends here, with what to do, where there is no run yet.
    """
    st.title(title)
    st.markdown(f"**{question}**")
    run = sidebar()
    if run is None:
        st.info("There is no run yet: start one on the Attribution page.", icon=":material/info:")
        st.stop()
        raise SystemExit  # st.stop is not typed as final
    return run


def sidebar() -> Run | None:
    """Draw the sidebar and return the chosen run; None where there is none yet."""
    with st.sidebar:
        runs = {run.name: run for run in listed()}
        if not runs:
            st.caption("No run yet. Start one on the Attribution page.")
            return None

        def label(name: str) -> str:
            # Streamlit tells options apart by their label, so the seconds are part of it.
            created = datetime.fromisoformat(runs[name].manifest["created"])
            return f"{runs[name].manifest['task']['title']} · {created:%d %b %H:%M:%S}"

        name = choose(
            "Run",
            list(runs),
            "run",
            format_func=label,
            help="A run is a folder with everything measured about one subject and one task.",
        )
        run = runs[name]
        done = ", ".join(run.edits()) or "none yet"
        st.caption(
            f"**Subject** {run.subject}  \n**Task** {run.manifest['task']['title']}  \n"
            f"**Edits** {done}  \n**Folder** `{run.path}`"
        )
        return run
