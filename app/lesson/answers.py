"""A student's predictions: kept in the session and in the address, so that a reload has them."""

from __future__ import annotations

from hashlib import sha256
from uuid import uuid4

import streamlit as st

from app import address
from app.lesson.bench import Bench
from app.lesson.step import Answer, Step
from app.lesson.tally import board

PREFIX = "my-"
"""Of the answers' names in the address."""

KEPT = "lesson answers"
PERSON = "lesson person"
COOKIE = "mansu-student"
"""Random, of each browser, until it is closed: ``page.js`` makes it."""


def get(step: Step) -> Answer | None:
    """What was predicted in a step; None if nothing yet, or if the address has nonsense there."""
    kept: dict[str, Answer] = st.session_state.setdefault(KEPT, {})
    written = st.query_params.get(PREFIX + step.key)
    if step.key not in kept and written is not None:
        answer = tuple(map(_value, written.split(",")))
        if step.accepts(answer):
            kept[step.key] = answer
        else:
            address.refuse(
                f"prediction, {step.title}", written, "not answered yet", "cannot be one"
            )
    if step.key in kept:
        st.query_params[PREFIX + step.key] = ",".join(f"{part}" for part in kept[step.key])
    elif written is not None:
        del st.query_params[PREFIX + step.key]
    return kept.get(step.key)


def keep(step: Step, bench: Bench, answer: Answer) -> None:
    """Keep a prediction, here and, without a name, in the class's tally."""
    st.session_state.setdefault(KEPT, {})[step.key] = answer
    caught = step.outcome(bench, answer).caught
    board().put(step.key, _person(), step.said(bench, answer), caught)


def begin_again() -> None:
    """Forget this student's predictions; what the class counted stays."""
    st.session_state[KEPT] = {}
    for name in [n for n in st.query_params if n.startswith(PREFIX)]:
        del st.query_params[name]


def _person() -> str:
    """A token that says nothing about who it is: of the browser, so that a reload is no other
    person, or of the session where the browser keeps none."""
    kept = st.context.cookies.get(COOKIE)
    mine = sha256(kept.encode()).hexdigest() if isinstance(kept, str) else uuid4().hex
    return st.session_state.setdefault(PERSON, mine)


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def coin() -> bool:
    """Heads or tails, the same all through this student's session."""
    return int(_person(), 16) % 2 == 0
