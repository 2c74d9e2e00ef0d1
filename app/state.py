"""What every page shares: the chosen run, choices that live in the URL, the loaded subject."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import streamlit as st

from mansu import subjects
from mansu.circuits import lens
from mansu.circuits.diff import moved_by_node
from mansu.circuits.lens import Seen
from mansu.circuits.metric import Metric
from mansu.circuits.parameters import parameter_mask
from mansu.circuits.patching import Patched
from mansu.errors import BadInputError, MansuError, NotMeasuredError
from mansu.job.runs import Run, listed, unreadable
from mansu.job.session import Session
from mansu.subjects.edit import Edit
from mansu.tasks.tokens import Pairs


@contextmanager
def show_errors() -> Iterator[None]:
    """Show a ``MansuError`` raised inside as its sentence, and go on after the block.

    What is only not measured yet is no error.
    """
    try:
        yield
    except NotMeasuredError as error:
        st.info(plain(str(error)), icon=":material/info:")
    except MansuError as error:
        st.error(plain(str(error)), icon=":material/error:")


def plain(text: str) -> str:
    """Text of a user's or a file's as Markdown that shows it as it is; backticks stay code."""
    parts = text.split("`")
    return "`".join(
        part if i % 2 else re.sub(r"([\\*_\[\]<>$#|~])", r"\\\1", part)
        for i, part in enumerate(parts)
    )


def subject(name: str) -> subjects.Subject:
    """A subject for interactive inspection, loaded once for all sessions.

    Raises:
        MansuError: it cannot be loaded.
    """
    folder = Path(name)
    stamps = [f.stat().st_mtime_ns for f in folder.iterdir()] if folder.is_dir() else []
    return _loaded(name, tuple(sorted(stamps)))


@st.cache_resource(max_entries=2, show_spinner="Loading the model …")
def _loaded(name: str, stamps: tuple[int, ...]) -> subjects.Subject:
    """Stamps are those of a checkpoint's files: a folder may get other weights."""
    return subjects.load(name)


@st.cache_resource(
    max_entries=64,
    show_spinner=False,
    hash_funcs={subjects.Subject: lambda s: s.fingerprint, Pairs: lambda p: p.digest},
)
def look(subject: subjects.Subject, pairs: Pairs, row: int) -> lens.Look:
    """One pair as the model runs it, once for all nodes and all sessions that ask for them."""
    return lens.look(subject, pairs, row)


def node_after(run: Run, method: str, pairs: Pairs, row: int, source: int, *, nf4: bool) -> Seen:
    """``lens.node_of_edited`` for an edit of a run, once for all sessions.

    Raises:
        MansuError: as ``session``.
    """
    return _node_after(
        session(run).subject, pairs, row, source, run.digest(method), nf4, run.edit(method)
    )


@st.cache_resource(
    max_entries=64,
    show_spinner="Running the edited model …",
    hash_funcs={subjects.Subject: lambda s: s.fingerprint, Pairs: lambda p: p.digest},
)
def _node_after(
    subject: subjects.Subject,
    pairs: Pairs,
    row: int,
    source: int,
    digest: str,
    nf4: bool,
    _edit: Edit,
) -> Seen:
    return lens.node_of_edited(subject, pairs, row, source, _edit, nf4=nf4)


def session(run: Run) -> Session:
    """The run with its subject.

    Raises:
        MansuError: the subject cannot be loaded, or is not the one that the run measured.
    """
    return Session(run, subject(run.subject))


def patched(run: Run) -> Patched:
    """A run's subject on its pairs, ready to patch any edges; once for all sessions.

    Raises:
        MansuError: as ``session``.
    """
    found = session(run)
    return _patched(found.subject, found.pairs, run.circuit().metric, found.settings.budget)


@st.cache_resource(
    max_entries=1,
    show_spinner="Recording the corrupt run …",
    hash_funcs={subjects.Subject: lambda s: s.fingerprint, Pairs: lambda p: p.digest},
)
def _patched(subject: subjects.Subject, pairs: Pairs, metric: Metric, memory: int) -> Patched:
    with subject.lock:
        return Patched(subject, pairs, metric, memory)


def mask_size(run: Run, n: int) -> tuple[int, float] | None:
    """Parameters behind the best ``n`` edges, and their share of all; None where no slice fits.

    Raises:
        MansuError: as ``session``.
    """
    found = session(run)
    stamp = run.file("circuit").stat().st_mtime_ns, run.file("attribution").stat().st_mtime_ns
    return _mask_size(str(run.path), stamp, n, found)


@st.cache_data(max_entries=512, show_spinner=False)
def _mask_size(
    path: str, stamp: tuple[int, int], n: int, _session: Session
) -> tuple[int, float] | None:
    run, subject = _session.run, _session.subject
    most = _session.settings.fraction(subject)
    try:
        mask = parameter_mask(subject, run.circuit().top(n), run.attribution(), max_fraction=most)
    except BadInputError:
        return None
    return mask.size, mask.fraction


def moved(run: Run, method: str) -> Mapping[str, tuple[int, int]]:
    """``moved_by_node`` of an edit of a run, once for all sessions.

    Raises:
        MansuError: as ``session``.
    """
    return _moved(session(run).subject, run.digest(method), run.edit(method))


@st.cache_data(
    max_entries=32,
    show_spinner="Counting the weights that moved …",
    hash_funcs={subjects.Subject: lambda s: s.fingerprint},
)
def _moved(subject: subjects.Subject, digest: str, _edit: Edit) -> Mapping[str, tuple[int, int]]:
    return moved_by_node(subject, _edit)


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


def chosen(options: Sequence[str], key: str, default: int = 0) -> str:
    """What ``choose(…, key)`` will give when it is drawn, for what is drawn before it."""
    _recall(options, key, default)
    return st.session_state[key]


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


def link(values: Mapping[str, str]) -> None:
    """Put values into the URL, and take those out that are empty."""
    for name, value in values.items():
        if value:
            st.query_params[name] = value
        elif name in st.query_params:
            del st.query_params[name]


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
        if refused := unreadable():
            with st.expander(f"{len(refused)} folders of runs cannot be read"):
                st.markdown("\n".join(f"- {sentence}" for sentence in refused))
        if not runs:
            st.caption("No run yet. Start one on the Attribution page.")
            return None

        def label(name: str) -> str:
            # Streamlit tells options apart by their label, so the seconds are part of it.
            created = datetime.fromisoformat(runs[name].manifest["created"])
            run = runs[name]
            return f"{run.about['title']} · {Path(run.subject).name} · {created:%d %b %H:%M:%S}"

        asked = st.query_params.get("run")
        if asked is not None and asked not in runs:  # a dead link: its numbers are not these
            st.warning(f"There is no run “{asked}” here: another one is shown.")
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
            f"**Subject** {run.subject}  \n**Task** {run.about['title']}  \n"
            f"**Edits** {done}  \n**Folder** `{run.path}`"
        )
        return run
