"""A tour of the real interface: a slim bar whose step is done when the user does the thing.

Which step it is at lives in the session and in the address; the tour can be left at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import streamlit as st

from app import address
from mansu.evidence.verdict import LIMITS

PAGES = Path(__file__).resolve().parents[1] / "pages"
KEY = "tour"


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes:
        page: where it is done; its file's name. says: what to do, and what to see.
        done: whether it was done, given the page that is open.
    """

    page: str
    says: str
    done: Callable[[str], bool]


def _named(key: str) -> bool:
    """Whether a node or an edit is chosen: their names hold no space, what stands for none does."""
    value = st.query_params.get(key, "")
    return bool(value) and " " not in value


STEPS = (
    Step(
        "circuit",
        "This run is finished: everything in it was measured. Open the Circuit page.",
        lambda page: page == "circuit",
    ),
    Step(
        "circuit",
        "These few edges carry the facts through the model. Click a node in the graph, or choose "
        "one under “Node”: what it writes is shown below.",
        lambda page: _named("node"),
    ),
    Step(
        "circuit",
        "Move “Number of edges”: how faithful is a smaller circuit, or a larger one?",
        lambda page: "edges" in st.query_params,
    ),
    Step(
        "circuit",
        "Choose an edit under “Compare with what is left after”: what is left of these edges?",
        lambda page: _named("edit"),
    ),
    Step(
        "compare",
        "“Play” at the graph shows which edges are gone, and which come back in 4 bits. Then to "
        "the numbers: open the Compare page.",
        lambda page: page == "compare",
    ),
    Step(
        "compare",
        "Read the verdict, property by property. Then open “Move the thresholds” and move one: "
        "does the verdict hold?",
        lambda page: any(name in st.query_params for name in LIMITS),
    ),
)
END = len(STEPS) + 1


def offer(run: str) -> None:
    """The button that begins the tour on a run."""
    if st.button("Take the tour", icon=":material/tour:", key="begin tour"):
        st.session_state[KEY] = 1
        st.session_state["next run"] = run
        st.rerun()


def draw(page: str) -> None:
    """Draw the bar where the tour is on.

    Args:
        page: that is open; its path in the address.
    """
    linked = st.query_params.get(KEY, "")
    if KEY not in st.session_state and linked:
        at = int(linked) if linked in map(str, range(1, END + 1)) else 0
        st.session_state[KEY] = at
        if not at:
            address.refuse("step of the tour", linked, "the page without the tour", "is none")
    if st.session_state.get(KEY):
        _bar(page)
    else:
        st.query_params.pop(KEY, None)


@st.fragment(run_every=1)  # what is done in another fragment of the page is seen here
def _bar(page: str) -> None:
    at = st.session_state.get(KEY)
    if not at:
        return
    while at < END and page == STEPS[at - 1].page and STEPS[at - 1].done(page):
        at += 1
    st.session_state[KEY] = at
    if st.query_params.get(KEY) != str(at):
        st.query_params[KEY] = str(at)
    with st.container(key="tour", gap="small"):
        if at == END:
            said = "That is the whole way, from the circuit to the verdict. Go on as you like."
            st.html(f'<p role="status"><strong>The tour is done.</strong> {said}</p>')
        else:
            step = f"Tour, {at} of {len(STEPS)}."
            st.html(f'<p role="status"><strong>{step}</strong> {escape(STEPS[at - 1].says)}</p>')
        with st.container(horizontal=True, vertical_alignment="center"):
            if at < END and STEPS[at - 1].page != page:
                name = STEPS[at - 1].page
                st.page_link(PAGES / f"{name}.py", label=f"Open {name.title()}")
            if at == END:
                st.page_link(PAGES / "learn.py", label="Start the lesson")
                st.page_link(PAGES / "review.py", label="Review this run")
            elif st.button("Skip this step", key="tour skip"):
                st.session_state[KEY] = at + 1
                st.rerun(scope="fragment")
            if st.button("End the tour", key="tour end"):
                st.session_state[KEY] = 0
                st.rerun()
