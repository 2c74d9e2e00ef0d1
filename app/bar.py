"""The jobs at work, in a slim bar at the foot of every page, also those on another run."""

from __future__ import annotations

import streamlit as st

from app import jobs, state, words
from mansu.job.library import title
from mansu.job.runs import Run
from mansu.show.numbers import percent

SHOWN = 2
"""Jobs of the bar, those at work first: a whole class's would cover the page."""


def draw() -> None:
    """Draw the bar where there is a job, and redraw it until there is none."""
    if working := [run.name for run in jobs.working()]:
        _bar(working)


@st.fragment(run_every=2)
def _bar(names: list[str]) -> None:
    runs = jobs.working()
    if [run.name for run in runs] != names:
        st.rerun()  # one began or ended: the page has something else to show
    turns = sorted(zip(jobs.places(runs), runs, strict=True), key=lambda each: each[0])
    with st.container(key="jobs", gap="small"):
        for place, run in turns[:SHOWN]:
            _row(run, place)
        if len(turns) > SHOWN:
            st.caption(f"and {len(turns) - SHOWN} more in the queue")


def _row(run: Run, place: int) -> None:
    status = run.status()
    at = jobs.waiting(place) if place else jobs.doing(status)
    far = at if place else f"{percent(status.share, 0)} · {jobs.time_left(run)}"
    with st.container(horizontal=True, vertical_alignment="bottom", wrap=False):
        st.progress(status.share, f"**{words.plain(title(run))}** · {far}")
        st.button(
            "Show",
            key=f"show {run.name}",
            help=f"Choose the run {run.name}. Its job: {at}.",
            on_click=state.select,
            args=("run", run.name),
        )
