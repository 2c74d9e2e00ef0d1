"""What a page shows only when somebody opens it: until then it is neither made, sent nor drawn.

Half of the cells of the Compare and Review pages lay in closed boxes, and were all drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app import state


@st.fragment  # opening it makes nothing else anew
def folded(label: str, draw: Callable[[], object], *, key: str = "") -> None:
    """A closed box with a label, which draws what is in it once it is opened.

    Args:
        key: of the box; the label by default. No two on a page may have the same.
    """
    box = st.expander(label, key=f"folded {key or label}", on_change="rerun")
    if box.open:
        with box, state.show_errors():
            draw()
