"""Tables of the library on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from app.words import plain
from mansu.show.table import Table


def draw(table: Table) -> None:
    """Show a table, every cell as it is: ``st.table`` reads each as Markdown."""
    st.table(cells(table))


def cells(table: Table) -> Mapping[str, Sequence[str]]:
    """The columns of a table as Markdown that shows them as they are."""
    return {plain(name): list(map(plain, column)) for name, column in table.columns.items()}
