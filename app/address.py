"""A page's address: what it asks for. What of that cannot be shown is said, never passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isclose
from typing import Any

import streamlit as st

from app.words import plain
from mansu import methods
from mansu.evidence.verdict import LIMITS

LONGEST = 60
"""Characters of a link's value that are shown."""

VIEW = {
    "edges": "number of edges",
    "from": "first layer",
    "to": "last layer",
    "nodes": "nodes",
    "sign": "sign",
    "trace": "trace",
    "stage": "stage",
    "change": "kind of change",
}
"""Names of the graph's view, and what they are called in a sentence."""

EVERYWHERE = {"run", "tour"}
READ: Mapping[str, set[str]] = {
    "home": {"example"},
    "attribution": {"view", "subject", "model", "task", "baseline", "pairs", "steps", "tau"},
    "circuit": {*VIEW, "edit", "node", "pair", "side", "selection", "prompt", "answer"},
    "ask": {"ask", "ask_a", "ask_b", "fact", "prompt", "answer", "words", "tokens"}
    | {"flips_of", "flip", "sets", "moved_by", "matrix", "weight"},
    "unlearn": {"method", "edit"},
    "nf4": {"edit", "group"},
    "compare": {*LIMITS, "edits", "boundary", "export", "formats", "outtype"},
    "review": {*LIMITS, "edit", "kinds"},
    "leaderboard": {"board_subject", "board_task", "board_method", "unit"},
    "learn": {"view", "step", "projector"},
    "glossary": {"word"},
}
"""Names that each page reads, and those that every page does."""
BEGINNINGS = {"attribution": "hub", "learn": "my-"}
"""Of names that a page reads: of a hub data set, and of a student's answers."""


def _reads(page: str, name: str) -> bool:
    first, _, rest = name.partition(" ")  # "mansu rate": a method's setting; "name mansu"
    if rest and first == "name":
        return page == "unlearn" and rest in methods.ALL
    if rest:
        known = first in methods.ALL and rest in methods.named(first).options()
        return page == "unlearn" and known
    return name in EVERYWHERE | READ[page] or name.startswith(BEGINNINGS.get(page, " "))


def say_unknown(page: str) -> None:
    """Say which names in the address this page does not read: no page does, or another one."""
    here = [name for name in st.query_params if not _reads(page, name)]
    strange = [name for name in here if not any(_reads(other, name) for other in READ)]
    elsewhere = [name for name in here if name not in strange]
    if strange:
        warn(f"The link has {_listed(strange)}, which means nothing to this app: it is left out.")
    if elsewhere:
        warn(
            f"The link has {_listed(elsewhere)}, which another page reads: it changes nothing here."
        )


def _listed(names: list[str]) -> str:
    said = ", ".join(f"“{brief(name)}”" for name in names[:3])
    return said + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def brief(text: str) -> str:
    """What a link says, to be shown: not all of it where it is long."""
    return plain(text if len(text) <= LONGEST else f"{text[:LONGEST]} …")


def warn(sentence: str) -> None:
    """Show a sentence, Markdown, about what a link asks for in vain."""
    st.warning(sentence, icon=":material/link_off:")


def refuse(label: str, asked: str, shown: str, why: str = "is not here") -> None:
    """Say that a link asks for what cannot be shown.

    Args:
        label: of the control, or what it is called. shown: what stands in its place.
        why: what is wrong with it.
    """
    warn(f"The link asks for “{brief(asked)}” ({label}), which {why}: this is “{plain(shown)}”.")


def link(values: Mapping[str, str]) -> None:
    """Put values into the URL, and take those out that are empty."""
    for name, value in values.items():
        if value:
            st.query_params[name] = value
        elif name in st.query_params:
            del st.query_params[name]


def bound(
    draw: Callable[..., Any],
    label: str,
    *arguments: Any,
    key: str,
    format_func: Callable[[Any], Any] = str,
    **more: Any,
) -> Any:
    """A control that Streamlit itself binds to the URL, which would drop what cannot be in silence.

    Args:
        draw: ``st.slider``, ``st.pills``, ``st.toggle`` or ``st.selectbox``; the others as theirs.
    """
    # Once: from then on the control's value is what was chosen, and the URL follows it.
    asked = [] if key in st.session_state else [x for x in st.query_params.get_all(key) if x]
    place = st.container() if asked else None
    if draw in (st.pills, st.selectbox):
        more["format_func"] = format_func
    value = draw(label, *arguments, key=key, bind="query-params", **more)
    if place is not None and not _means(asked, value, format_func):
        shown = value if isinstance(value, list) else [value]
        with place:
            refuse(
                label,
                ", ".join(asked),
                ", ".join(str(format_func(x)) for x in shown) or "none",
                "cannot be",
            )
    return value


def _means(asked: Iterable[str], value: Any, format_func: Callable[[Any], Any]) -> bool:
    """Whether a control's value is what a link asked for."""
    if isinstance(value, list):
        return {*asked} == {str(format_func(x)) for x in value}
    *_, last = asked
    if isinstance(value, bool):
        return last.lower() == str(value).lower()
    if isinstance(value, (int, float)):
        try:
            return isclose(float(last), value)
        except ValueError:
            return False
    return last == str(format_func(value))
