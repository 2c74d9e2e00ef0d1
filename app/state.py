"""What every page shares: the chosen run, choices that live in the URL, the loaded subject."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import streamlit as st

from app import address, jobs, links
from app.shelf import shelf
from app.words import plain
from mansu import subjects
from mansu.circuits import lens
from mansu.circuits.diff import moved_by_node
from mansu.circuits.lens import Seen
from mansu.circuits.parameters import parameter_mask
from mansu.circuits.patching import Patched
from mansu.errors import BadInputError, MansuError, NotMeasuredError
from mansu.files import answered
from mansu.job import library, names
from mansu.job.runs import Run, examples, listed, unreadable
from mansu.job.session import Session
from mansu.settings import Setting, typed_in
from mansu.subjects import shipped
from mansu.subjects.edit import Edit

TO_TRASH = "It goes into the trash, and can be restored from there."
DELETED = "It was deleted, and lies in the trash."


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


def subject(name: str) -> subjects.Subject:
    """A subject for interactive inspection, loaded once for all sessions.

    Raises:
        MansuError: it cannot be loaded.
    """
    name = shipped.absolute(name)  # one model, however its folder is spelled
    folder = Path(name)  # which may get other weights: its files' times are part of the key
    stamps = [f.stat().st_mtime_ns for f in folder.iterdir()] if answered(folder.is_dir) else []
    return shelf().get(
        ("subject", name, *sorted(stamps)),
        lambda: subjects.load(name),
        "Loading the model",
        subjects.expected_bytes(name),
    )


def look(subject: subjects.Subject, asked: lens.Asked) -> lens.Look:
    """A prompt as the model runs it, once for all nodes and all sessions that ask for them."""
    key = ("look", subject.fingerprint, asked)
    return shelf().get(key, lambda: lens.look(subject, asked), "Running the model")


def edit(run: Run, method: str) -> Edit:
    """A method's edit, read once for all sessions."""
    key = ("edit", str(run.path), run.digest(method))
    size = run.file("edit", method).stat().st_size
    return shelf().get(key, lambda: run.edit(method), "Reading the edit", size)


def node_after(run: Run, method: str, asked: lens.Asked, source: int, *, nf4: bool) -> Seen:
    """``lens.node_of_edited`` for an edit of a run, once for all sessions.

    Raises:
        MansuError: as ``session``.
    """
    return _node_after(
        session(run).subject, asked, source, run.digest(method), nf4, edit(run, method)
    )


@st.cache_resource(
    max_entries=64,
    show_spinner="Running the edited model …",
    show_time=True,
    hash_funcs={subjects.Subject: lambda s: s.fingerprint},
)
def _node_after(
    subject: subjects.Subject,
    asked: lens.Asked,
    source: int,
    digest: str,
    nf4: bool,
    _edit: Edit,
) -> Seen:
    return lens.node_of_edited(subject, asked, source, _edit, nf4=nf4)


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
    subject, pairs, memory = found.subject, found.pairs, found.settings.budget
    metric = run.circuit().metric

    def make() -> Patched:
        with subject.lock:
            return Patched(subject, pairs, metric, memory)

    key = ("patched", subject.fingerprint, pairs.digest, pairs.facts, metric, memory)
    return shelf().get(key, make, "Recording the corrupt run")


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
    return _moved(session(run).subject, run.digest(method), edit(run, method))


@st.cache_data(
    max_entries=32,
    show_spinner="Counting the weights that moved …",
    show_time=True,
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
    _recall(options, key, options[default])
    _say_unknown(label, options, key, **more)
    return _keep(key, st.selectbox(label, options, key=key, **more))


def choose_or_wait(
    label: str, options: Sequence[str], key: str, *, default: int = 0, **more: Any
) -> str | None:
    """Like ``choose``, but None, and nothing chosen, while a link asks for what is not here.

    For what a click would start: what is shown instead of what was meant might be started.
    """
    session, linked = st.session_state, st.query_params.get(key)
    refused = _unknown(options, key)
    if refused and session.get(f"refused {key}") != linked:
        session[f"refused {key}"], session[key] = linked, None  # what was chosen is not meant
        session.pop(f"kept {key}", None)
    _recall(options, key, None if refused else options[default])
    index = None if session[key] is None else default
    if refused and index is None:
        asked = address.brief(str(linked))
        address.warn(f"The link asks for “{asked}” ({label}), which is not offered: choose one.")
    if (value := st.selectbox(label, options, index, key=key, **more)) is None:
        return None
    session.pop(f"refused {key}", None)
    return _keep(key, value)


def switch(label: str, options: Sequence[str], key: str, *, default: int = 0, **more: Any) -> str:
    """Like ``choose`` for two or three options, side by side."""
    _recall(options, key, options[default])
    _say_unknown(label, options, key, **more)
    return _keep(key, st.segmented_control(label, options, key=key, required=True, **more))


def number(
    label: str, about: Setting, key: str, ends: tuple[float | None, float | None], **more: Any
) -> Any:
    """A field for a setting that is a number; as ``choose``, but a default is not in the URL.

    Streamlit's own binding of a field to the URL fails of a number that has no end.

    Args:
        ends: least and greatest value that is offered.
    """
    session, linked = st.session_state, st.query_params.get(key)
    kept = session.get(f"kept {key}", about.default)
    low, high = (None if end is None else about.kind(end) for end in ends)
    session[key] = session.get(key, kept)  # set each time, as in _recall
    if linked and linked != _written(kept):  # a link or Back: the URL is not what we wrote
        try:
            value = about.check(typed_in(linked), "the link")
            session[key] = value if low is None else max(low, value)
            session[key] = value if high is None else min(high, session[key])
        except BadInputError as error:
            address.warn(plain(f"{error} This is {_written(kept)}."))
    value = "min" if low is not None and not about.optional else about.default
    value = st.number_input(label, low, high, value, key=key, **more)
    session[f"kept {key}"] = value
    address.link({key: "" if value == about.default else _written(value)})
    return value


def _written(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def chosen(options: Sequence[str], key: str, default: int = 0) -> str:
    """What ``choose(…, key)`` will give when it is drawn, for what is drawn before it."""
    _recall(options, key, options[default])
    return st.session_state[key]


def _recall(options: Sequence[str], key: str, default: str | None) -> None:
    """Set a widget that is about to be drawn to what was chosen last.

    It is set each time: on another page Streamlit takes the widget for a new one and would begin
    with the first option, while the state still has the old one's value.
    """
    state = st.session_state
    kept, linked = state.get(f"kept {key}"), st.query_params.get(key)
    wanted = (
        state.pop(f"next {key}", None),  # chosen by a button
        linked if linked != kept else None,  # a link or Back: the URL is not what we wrote
        state.get(key),  # chosen in the widget
        kept,
    )
    state[key] = next((value for value in wanted if value in options), default)


def _say_unknown(
    label: str,
    options: Sequence[str],
    key: str,
    *,
    format_func: Callable[[str], Any] = str,
    **_: Any,
) -> None:
    """Say that a link asks for what is not here: what is shown instead is not meant."""
    if _unknown(options, key):
        address.refuse(label, st.query_params[key], str(format_func(st.session_state[key])))


def _unknown(options: Sequence[str], key: str) -> bool:
    """Whether a link asks for what is no option: the address is not what we wrote."""
    linked = st.query_params.get(key)
    return bool(linked) and linked not in (st.session_state.get(f"kept {key}"), *options)


def _keep(key: str, value: Any) -> Any:
    st.session_state[f"kept {key}"] = value
    if st.query_params.get(key) != value:
        st.query_params[key] = value
    return value


def select(key: str, value: str) -> None:
    """Make ``value`` the choice of ``choose(…, key)`` or ``switch`` from its next drawing on."""
    st.session_state[f"next {key}"] = value


def at_most(key: str, most: int) -> None:
    """Bring a number chosen in a slider that had a farther end within the one about to be drawn."""
    if st.session_state.get(key, 0) > most:
        st.session_state[key] = most


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
    """Draw the sidebar and return the chosen run; None where there is none yet.

    The page ends here where the run that a link names is gone: no other run's numbers are shown
    in its place.
    """
    with st.sidebar:
        runs = {run.name: run for run in listed()}
        runs |= _example(runs)
        gone = _gone(runs)
        name = None
        if runs:
            _recall(list(runs), "run", None if gone else next(iter(runs)))
            name = st.selectbox(
                "Run",
                list(runs),
                index=None if gone else 0,
                key="run",
                format_func=_labels(list(runs.values())).__getitem__,
                placeholder="Choose a run",
                help="A run is a folder with everything measured about one subject and one task.",
            )
        else:
            st.caption("No run yet. Start one on the Attribution page.")
        if name is not None:
            _about(runs[_keep("run", name)])
        _others(None if name is None else runs[name])
    if name is not None:
        return runs[name]
    if gone:
        where = " Choose one in the sidebar." if runs else ""
        address.warn(f"There is no run “{address.brief(gone)}” here.{where}")
        if key := next((k for k, had in library.trashed().items() if had == gone), None):
            st.markdown(DELETED)
            _restore("Restore it", key)
        if runs:
            st.stop()
    return None


def worked_on(runs: Sequence[Run]) -> Run | None:
    """The run that ``sidebar`` will open, for a page without one; None before anybody chose one,
    and where it is gone.

    Args:
        runs: of ``listed``.
    """
    name, offered = st.session_state.get("next run", _asked()), {run.name: run for run in runs}
    return None if name is None else (offered | _example(offered)).get(name)


def _asked() -> str | None:
    """The run that is asked for by the link, or was chosen last."""
    return st.query_params.get("run", st.session_state.get("kept run"))


def _example(runs: Collection[str]) -> dict[str, Run]:
    """The example that is asked for beside one's own runs; never in the place of one in the trash.

    Args:
        runs: the names of those that are offered.
    """
    asked = _asked()
    if asked is None or asked in {*runs, *library.trashed().values()}:
        return {}
    return {run.name: run for run in examples() if run.name == asked}


def _gone(runs: Collection[str]) -> str | None:
    """The run that is asked for by the link, or was chosen last, if it is not there."""
    state, asked = st.session_state, _asked()
    if asked is None or asked in runs:
        return None
    if asked not in (state.get("kept run"), state.get("gone run")):
        state["gone run"], state["run"] = asked, None  # what was chosen before is not meant
        state.pop("kept run", None)
    return asked


def _labels(runs: Sequence[Run]) -> dict[str, str]:
    """Title, subject, methods and state of each run, by its name; no two are the same."""
    texts = {run.name: " · ".join(_said(run)) for run in runs}
    counts = Counter(texts.values())
    for run in runs:
        if counts[texts[run.name]] > 1:  # Streamlit tells options apart by their labels
            texts[run.name] += f" · {_made(run)}"
    counts = Counter(texts.values())
    return {n: text if counts[text] == 1 else f"{text} · {n}" for n, text in texts.items()}


def _said(run: Run) -> tuple[str, str, str, str]:
    methods = "; ".join(names.title(run, name) for name in run.edits() or run.asked)
    return library.title(run), Path(run.subject).name, methods, progress(run)


def _made(run: Run) -> str:
    return f"{datetime.fromisoformat(run.manifest['created']):%d %b %H:%M:%S}"


def progress(run: Run) -> str:
    """How far a run is, in a word or three."""
    try:
        found, missing = jobs.state(run), names.missing(run)
    except MansuError:
        return "damaged"
    if found == "running":
        return "waiting" if jobs.place(run) else "at work"
    if not missing:
        return "done"
    return f"{found}, not done" if found in ("failed", "cancelled", "stopped") else "not done"


def _about(run: Run) -> None:
    """What the chosen run is, and what can be done with it as a whole."""
    title, _, methods, how_far = map(plain, _said(run))
    own = f"**Name** {title}  \n" if title != plain(run.about["title"]) else ""
    st.caption(
        f"{own}**Task** {plain(run.about['title'])}  \n**Subject** {plain(run.subject)}  \n"
        f"**Methods** {methods}  \n**State** {how_far}  \n**Made** {_made(run)}  \n"
        f"**Folder** `{run.path}`"
    )
    with show_errors():
        label = library.label(run)
        if label.notes:
            st.caption(plain(label.notes))
    if run.is_example:
        st.caption("An example that comes with MANSU: it can be read, and copied on Home.")
        return
    with st.popover("Name, copy or delete", width="stretch"), show_errors():
        label = library.label(run)
        with st.form(f"label {run.name}", border=False):
            name = st.text_input("Name", label.title, placeholder=run.about["title"])
            notes = st.text_area("Notes", label.notes)
            if st.form_submit_button("Save", width="stretch"):
                library.describe(run, library.Label(name, notes))
                st.rerun()
        if st.button("Copy with other settings", icon=":material/content_copy:", width="stretch"):
            st.switch_page(links.ATTRIBUTION, query_params=links.copied(run))
        if st.button(
            "Delete",
            icon=":material/delete:",
            disabled=how_far in ("at work", "waiting"),
            width="stretch",
            help=TO_TRASH,
        ):
            library.trash(run)
            st.rerun()


def say_deleted(run: Run) -> None:
    """Say that the edit that was chosen last was deleted, and offer it; nothing if it was not."""
    asked = st.query_params.get("edit", st.session_state.get("kept edit"))
    deleted = {had: key for key, had in reversed(library.trashed_edits(run).items())}
    if asked in deleted and asked not in run.edits():
        st.warning(f"There is no edit “{plain(asked)}” here. {DELETED}", icon=":material/delete:")
        _restore("Restore it", deleted[asked], run)


def _others(run: Run | None) -> None:
    """What is not offered: what was deleted, and what is not readable."""
    edits = {} if run is None else library.trashed_edits(run)
    for what, deleted, of in (("runs", library.trashed(), None), ("edits", edits, run)):
        if deleted:
            with st.expander(f"Deleted {what} ({len(deleted)})", icon=":material/delete:"):
                for key, had in deleted.items():
                    _restore(f"Restore {had}", key, of)
    if refused := unreadable():
        with st.expander(f"Folders of runs that cannot be read ({len(refused)})"):
            st.markdown("\n".join(f"- {plain(sentence)}" for sentence in refused))


def _restore(label: str, key: str, run: Run | None = None) -> None:
    """A button that takes a run, or an edit of a run, out of the trash and chooses it."""

    def back() -> None:
        with show_errors():
            if run is None:
                select("run", library.restore(key).name)
                return
            name = library.restore_edit(run, key)
            select("edit", name)
            select("method", run.method_of(name))

    icon, of = ":material/restore_from_trash:", "" if run is None else run.name
    st.button(label, key=f"{label} {of} {key}", icon=icon, on_click=back)
