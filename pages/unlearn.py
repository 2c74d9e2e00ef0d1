"""Unlearn: run MANSU or a baseline on the chosen run and watch it."""

from __future__ import annotations

import streamlit as st

from app import charts, jobs, live, settings, state, tables, words
from mansu.job import library, names
from mansu.job.runs import Run
from mansu.methods import NAMES, named
from mansu.progress import Step
from mansu.report import rows
from mansu.show.numbers import many, number, percent, written

NEW = "a new edit"  # with spaces: no edit is called so


@st.fragment(run_every=2)
@state.show_errors()
def watch(run: Run) -> None:
    """The chart of the edit at work, a point a step."""
    name = live.at_work(run)
    steps = live.steps(run, name) if name else []
    if name and steps:
        st.subheader(f"{names.title(run, name)}, at work")
        alt = "Losses, accuracies and moved weights of each step so far"
        st.plotly_chart(charts.history(steps), alt=alt, key="live history")
    else:
        st.caption("The chart begins with the method's first step.")


def start(run: Run, method: str, name: str, changed: dict[str, object]) -> None:
    """Start to make an edit, and what is missing before and after it; or go on with it."""
    command = ["run", "--folder", str(run.path), "--method", method, "--name", name]
    with state.show_errors():
        named(method).configure(changed)  # said here, not by a job that fails
        names.refuse_other(run, name, method, changed)
        jobs.start([*command, *settings.arguments(changed)], run.path)
        state.select("edit", name)
        st.rerun()


def new(run: Run, method: str) -> None:
    """The form for a new edit: settings and a name."""
    with st.expander("Settings", expanded=True, icon=":material/tune:"):
        changed = settings.form(method)
        said = names.new(run, method, changed)
        name = st.text_input(
            "Name of the edit",
            key=f"name {method}",
            bind="query-params",
            placeholder=said,
            help="What it is called on every page and in files. Left empty: by the method, and by "
            "the settings that you changed where the run has another edit by it.",
        )
        if run.has("edit", said):
            st.caption("The run has an edit with these settings: change one for another edit.")
        if st.button(
            f"Run {words.title(method)}",
            type="primary",
            icon=":material/play_arrow:",
            help="Finds the circuit if there is none, runs the method, measures the edit in full "
            "precision and NF4, and judges it. It goes on if you leave the page.",
        ):
            start(run, method, name.strip() or said, changed)
    if not run.has("mask"):
        st.caption("This run has no circuit yet: it is found first.")


def manage(run: Run, name: str) -> None:
    """Rename or delete an edit."""
    with st.popover("Rename or delete", icon=":material/edit:"):
        with st.form(f"rename {name}", border=False), state.show_errors():
            other = st.text_input("Name of the edit", name).strip()
            if st.form_submit_button("Rename", width="stretch"):
                names.rename(run, name, other)
                state.select("edit", other)
                st.rerun()
        said = f"With all that was measured on it. {state.TO_TRASH}"
        if st.button("Delete", icon=":material/delete:", width="stretch", help=said):
            with state.show_errors():
                library.trash_edit(run, name)
                st.rerun()


def result(run: Run, method: str) -> None:
    """What the method did."""
    history = run.history(method)
    place = st.container(key="metrics")
    columns = [column.container(gap=None) for column in place.columns(4)]
    moved = f"{percent(history['fraction'])} of all"
    columns[0].metric("Weights moved", f"{history['moved']:,}", help=words.help("moved"))
    columns[0].caption(moved)
    columns[1].metric("Time", f"{history['seconds']:.0f} s", help=words.help("seconds"))
    for column, nf4, kind in ((columns[2], False, "full"), (columns[3], True, "nf4")):
        if run.has(kind, method):
            before = run.base(nf4=nf4).splits["forget"].accuracy
            after = run.measurement(method, nf4=nf4).splits["forget"].accuracy
            label = "Forget accuracy, NF4" if nf4 else "Forget accuracy"
            column.metric(label, percent(after), help=words.help("accuracy"))
            column.caption(f"was {percent(before)}")
    st.markdown(f"**Why it ended:** {history['stopped'].rstrip('.')}.")
    if run.has("bounds", method):
        bounds = run.bounds(method)
        columns = [column.container(gap=None) for column in st.columns(3)]
        shown = (
            ("Retain bound, movable weights", f"{number(bounds.restricted)} nats", "restricted"),
            (
                "Retain bound, all weights",
                f"{number(bounds.everywhere)} nats",
                "everywhere",
            ),
            ("Retain loss, measured", f"{written(bounds.measured, '+.3g')} nats", "measured"),
        )
        for column, (label, value, key) in zip(columns, shown, strict=True):
            column.metric(label, value, help=words.help(key))
        columns[1].caption(f"{number(bounds.spread)} if spread evenly")
        columns[2].caption(f"mean of {many(bounds.facts, 'fact')} and {many(bounds.texts, 'text')}")
        if more := rows.exceeded(bounds):
            st.caption(more)
    if steps := [Step.from_json(step) for step in history["steps"]]:
        alt = "Losses, accuracies and moved weights of each step"
        st.plotly_chart(charts.history(steps), alt=alt, key="history")
    with st.expander("Settings it ran with"):
        tables.draw(rows.settings(history["settings"]))


run = state.begin(
    "Unlearn", "What does a method change in the model, and what does that do, step by step?"
)

method = state.choose(
    "Method",
    NAMES,
    "method",
    format_func=words.title,
    help="MANSU, or a baseline from the literature to hold it against.",
)
st.caption(named(method).about)
if jobs.panel(run):
    watch(run)
    st.stop()

state.say_deleted(run)
there = names.by(run, method)
name = NEW
if there:
    name = state.choose(
        "Edit",
        [*there, NEW],
        "edit",
        format_func=lambda n: n if n == NEW else names.title(run, n),
        help="A run can hold several edits by one method, each with its own settings and name.",
    )
if name == NEW:
    new(run, method)
    st.stop()
if not run.has("verdict", name):
    st.info("The edit is made, but it is not measured to the end.")
    if st.button("Measure and judge it", type="primary", icon=":material/play_arrow:"):
        start(run, method, name, {})
st.header(f"What {names.title(run, name)} did")
if not run.is_example:
    manage(run, name)
with state.show_errors():
    result(run, name)
