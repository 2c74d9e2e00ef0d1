"""The jobs at work, in a slim bar at the foot of every page, also those on another run."""

from __future__ import annotations

import streamlit as st

from app import jobs, state
from mansu.job.library import title
from mansu.show.numbers import percent


def draw() -> None:
    """Draw the bar where there is a job, and redraw it until there is none."""
    if working := [run.name for run in jobs.working()]:
        _bar(working)


@st.fragment(run_every=2)
def _bar(names: list[str]) -> None:
    runs = jobs.working()
    if [run.name for run in runs] != names:
        st.rerun()  # one began or ended: the page has something else to show
    with st.container(key="jobs", gap="small"):
        for run in runs:
            status, left = run.status(), jobs.time_left(run)
            with st.container(horizontal=True, vertical_alignment="bottom", wrap=False):
                st.progress(
                    status.share,
                    f"**{state.plain(title(run))}** · {percent(status.share, 0)} · {left}",
                )
                st.button(
                    "Show",
                    key=f"show {run.name}",
                    help=f"Choose the run {run.name}. It is at: {jobs.doing(status)}.",
                    on_click=state.select,
                    args=("run", run.name),
                )
