"""The verdict's thresholds as sliders: what the user moves judges the saved measurements anew."""

from __future__ import annotations

from dataclasses import asdict
from math import isclose

import streamlit as st

from app import address
from app.words import plain
from mansu.errors import BadInputError
from mansu.evidence.verdict import LIMITS, Thresholds
from mansu.job.judging import originals
from mansu.job.runs import Run
from mansu.report import dossier
from mansu.settings import Setting, settings_of, typed_in
from mansu.show import numbers

STEPS = {"share": (100.0, 0.5, "%.1f", "points"), "nats": (1.0, 0.01, "%.2f", "nats")}
"""By unit: what a slider's value is multiplied by, its step, its format, and what it counts."""


def moved(run: Run) -> dict[str, float]:
    """Sliders for every threshold; those that are not the run's original ones, by name.

    The URL keeps them, and pages share them.
    """
    known, before = settings_of(Thresholds), asdict(originals(run))
    changes: dict[str, float] = {}
    wrong = st.container()  # in sight, also while the sliders are not
    box = st.expander("Move the thresholds", icon=":material/tune:")
    said = st.container()  # there, also while it says nothing: what is below stays open
    with box:
        st.caption(
            "The measurements stay as they are; only the verdict is made anew. Nothing is saved "
            "but in this page's address."
        )
        if st.button("Back to the original thresholds", icon=":material/restart_alt:"):
            for name in LIMITS:
                st.session_state[f"kept {name}"] = before[name]
                st.session_state.pop(_key(run, name), None)
                st.query_params.pop(name, None)
        with wrong:
            linked = {name: _linked(known[name]) for name in LIMITS}
        columns = st.columns(2)
        for i, name in enumerate(LIMITS):
            with columns[i % 2].container(gap="xsmall"):
                value = _slider(run, known[name], before[name], linked[name])
            if not isclose(value, before[name], abs_tol=1e-9):
                changes[name] = value
                st.query_params[name] = f"{value:g}"
            else:
                st.query_params.pop(name, None)
            st.session_state[f"kept {name}"] = changes.get(name)
    if changes:
        said.warning(told(run, changes), icon=":material/tune:")
    return changes


def told(run: Run, changes: dict[str, float]) -> str:
    """Which thresholds are not the original ones, a sentence."""
    before = asdict(originals(run))
    return f"Judged by moved thresholds: {dossier.moved({**before, **changes}, before)}."


def _key(run: Run, name: str) -> str:
    return f"{name} of {run.name}"


def _slider(run: Run, about: Setting, original: float, linked: float | None) -> float:
    title, unit = LIMITS[about.name]  # type: ignore[index]
    scale, step, form, counted = STEPS[unit]
    key, kept = _key(run, about.name), st.session_state.get(f"kept {about.name}")
    # The address says what was kept, unless a link or Back has changed it since.
    newer = linked is not None and (kept is None or not isclose(linked, kept, rel_tol=1e-4))
    chosen = linked if newer else kept
    first = round(scale * (original if chosen is None else chosen), 6)
    # Set each time, as ``state.choose`` does: on another page the slider would begin at its least.
    st.session_state[key] = first if newer else st.session_state.get(key, first)
    value = st.slider(
        f"{title} ({counted})",
        round(scale * (about.low or 0.0), 6),
        round(scale * (about.high or 1.0), 6),
        step=step,
        format=form,
        key=key,
        help=about.help,
    )
    there = isclose(value / scale, original, abs_tol=1e-9)
    before = numbers.amount(original, unit).lstrip("+")
    st.caption("The original" if there else f":orange-badge[moved] Originally {before}")
    return original if there else value / scale


def _linked(about: Setting) -> float | None:
    """What the link asks for; None where that is nothing, or cannot be, which is said."""
    asked = st.query_params.get(about.name)
    if asked is None:
        return None
    try:
        return about.check(typed_in(asked), "the link")
    except BadInputError as error:
        address.warn(plain(f"{error} The original is used."))
        return None
