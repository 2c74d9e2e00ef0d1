"""Rows of a hub data set as the user's own task: which set, and which column is what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import streamlit as st

from mansu.sets import hub
from mansu.sets.own import Columns, lines

NONE = "other rows' answers"
MOST_PARTS = 200


class Read(NamedTuple):
    """Rows as the lines of a task.

    Attributes:
        text: JSONL. name: of the task. source: the data set.
    """

    text: str
    name: str
    source: str


def rows() -> Read | None:
    """Draw the form, and read the data set; None while something is missing.

    Raises:
        MansuError: the data set cannot be read, or a row has something else in a column.
    """
    left, middle, right = st.columns([2, 1, 1])
    place = left.text_input(
        "Data set on the hub",
        key="hub",
        bind="query-params",
        placeholder="OWNER/NAME",
        help="A hub id, or, where the hub cannot be reached, a folder with a copy or a file.",
    )
    config = middle.text_input("Config", key="hub_config", bind="query-params")
    split = right.text_input(
        "Split",
        "test",
        key="hub_split",
        bind="query-params",
        help="For instance test, or test[:500] for its first 500 rows.",
    )
    source = ":".join([place.strip(), config.strip(), split.strip()]).rstrip(":")
    if st.button("Read the rows", icon=":material/cloud_download:", disabled=not place.strip()):
        st.session_state["hub read"] = source
    if not place.strip() or st.session_state.get("hub read") != source:
        return None
    found = _rows(source)
    st.dataframe(found[:5], alt=f"The first rows of {source}")
    columns = _columns(found)
    if columns is None:
        return None
    return Read(lines(found, columns), hub.name_of(source), hub.public(source))


@st.cache_data(max_entries=8, ttl=3600, show_spinner="Reading the data set …")
def _rows(source: str) -> list[dict[str, Any]]:
    return hub.read(source, {})


def _columns(rows: Sequence[Mapping[str, Any]]) -> Columns | None:
    """Which column is what; None until it is said what to forget."""
    names = list(rows[0])
    left, right = st.columns(2)
    prompt = left.selectbox(
        "Column with the question", names, _at(names, "question", "prompt"), **_bound("prompt")
    )
    answer = right.selectbox(
        "Column with the answer", names, _at(names, "answer", "target"), **_bound("answer")
    )
    lists = [name for name in names if isinstance(rows[0][name], list)]
    choices = left.selectbox(
        "Column with the choices",
        [NONE, *lists],
        min(1, len(lists)),
        help="Where the answer is a number, it is the place of the right choice, from 0.",
        **_bound("choices"),
    )
    written = right.text_input(
        "How it is asked",
        "{} Answer:",
        help="{} stands for the question; the answer follows.",
        **_bound("written"),
    )
    part = left.selectbox(
        "Column that says what belongs together",
        names,
        _at(names, "subject", "category", "split"),
        **_bound("part"),
    )
    parts = list(dict.fromkeys(str(row.get(part)) for row in rows))
    if len(parts) > MOST_PARTS:
        st.info(f"{part} has {len(parts):,} values: choose a column with fewer.")
        return None
    forget = right.multiselect(
        "Forget the rows of", parts, help="The other rows are kept.", **_bound("forget")
    )
    if not forget or len(forget) == len(parts):
        st.info("Choose what is to be forgotten, and leave something that is to be kept.")
        return None
    return Columns(
        prompt, answer, part, tuple(forget), None if choices == NONE else choices, written
    )


def _bound(name: str) -> dict[str, Any]:
    """What keeps a choice in the URL."""
    return {"key": f"hub_{name}", "bind": "query-params"}


def _at(names: Sequence[str], *wanted: str) -> int:
    """Where the first of these names is that is there; else 0."""
    return next((names.index(name) for name in wanted if name in names), 0)
