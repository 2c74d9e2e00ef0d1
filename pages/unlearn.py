"""Unlearn: run MANSU or a baseline on the chosen run and watch it."""

from __future__ import annotations

import streamlit as st

from app import charts, jobs, live, settings, state, words
from mansu.job.runs import Run
from mansu.methods import NAMES, named
from mansu.progress import Step
from mansu.report import rows
from mansu.show.numbers import many, number, percent


@st.fragment(run_every=2)
@state.show_errors()
def watch(run: Run, method: str) -> None:
    """The chart of the method at work, a point a step."""
    steps = live.steps(run, method)
    if steps:
        alt = "Losses, accuracies and moved weights of each step so far"
        st.plotly_chart(charts.history(steps), alt=alt, key="live history")
    else:
        st.caption("The chart begins with the method's first step.")


def start(run: Run, method: str, changed: dict[str, object], *, again: bool = False) -> None:
    """Start the method, and what is missing before and after it.

    Args:
        again: throw away the edit that is there.
    """
    command = ["run", "--folder", str(run.path), "--method", method]
    with state.show_errors():
        named(method).configure(changed)  # said here, not by a job that fails
        jobs.start(
            [*command, *settings.arguments(changed), *(["--again"] if again else [])], run.path
        )
        st.rerun()


def result(run: Run, method: str) -> None:
    """What the method did."""
    history = run.history(method)
    columns = st.columns(4)
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
        columns = st.columns(3)
        shown = (
            ("Retain bound, circuit", f"{number(bounds.restricted)} nats", "restricted"),
            (
                "Retain bound, all weights",
                f"{number(bounds.everywhere)} nats",
                "everywhere",
            ),
            ("Retain loss, measured", f"{bounds.measured:+.3g} nats", "measured"),
        )
        for column, (label, value, key) in zip(columns, shown, strict=True):
            column.metric(label, value, help=words.help(key))
        columns[1].caption(f"{number(bounds.spread)} if spread evenly")
        columns[2].caption(f"mean of {many(bounds.facts, 'fact')} and {many(bounds.texts, 'text')}")
    if steps := [Step.from_json(step) for step in history["steps"]]:
        alt = "Losses, accuracies and moved weights of each step"
        st.plotly_chart(charts.history(steps), alt=alt, key="history")
    with st.expander("Settings it ran with"):
        st.table(rows.settings(history["settings"]).columns)


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
running = jobs.panel(run)
done = run.has("edit", method)
complete = run.has("verdict", method)

if running:
    watch(run, method)
elif done and not complete:
    st.info("The edit is made, but it is not measured to the end.")
    if st.button("Measure and judge it", type="primary", icon=":material/play_arrow:"):
        start(run, method, {})
else:
    label = "Settings" if not done else "Run it again with other settings"
    with st.expander(label, expanded=not done, icon=":material/tune:"):
        changed = settings.form(method)
        again = st.checkbox("Throw away the edit that is there", key="again") if done else True
        if st.button(
            f"Run {words.title(method)}",
            type="primary",
            icon=":material/play_arrow:",
            disabled=not again,
            help="Finds the circuit if there is none, runs the method, measures the edit in full "
            "precision and NF4, and judges it. It goes on if you leave the page.",
        ):
            start(run, method, changed, again=done)
    if not run.has("mask"):
        st.caption("This run has no circuit yet: it is found first.")

if done:
    st.header(f"What {words.title(method)} did")
    with state.show_errors():
        result(run, method)
