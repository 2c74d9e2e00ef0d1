"""A widget for every setting of a method, made from the method's signature."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from app import words
from mansu import methods

BOUNDS: Mapping[str, tuple[float, float | None]] = {
    "steps": (1, 1000),
    "batch": (1, 1000),
    "layer": (0, None),
    "percentile": (0.0, 99.9),
    "energy": (0.0, 1.0),
    "target": (0.0, 1.0),
    "budget": (1, None),
    "moves": (1, None),
}
"""Least and greatest value of a setting, where they are not 0 and none."""


def defaults(method: str) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a method, by name.

    Raises:
        MansuError: there is no method of that name.
    """
    parameters = inspect.signature(methods.named(method)).parameters
    return {n: p for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def form(method: str) -> dict[str, Any]:
    """Draw the widgets and return the settings that differ from the method's defaults."""
    changed = {}
    columns = st.columns(2)
    for i, (name, parameter) in enumerate(defaults(method).items()):
        value = _widget(columns[i % 2], method, name, parameter)
        if value != parameter.default:
            changed[name] = value
    return changed


def arguments(settings: Mapping[str, Any]) -> list[str]:
    """The settings as arguments of the command line."""
    return [a for n, v in settings.items() for a in ("--set", f"{n}={json.dumps(v)}")]


def _widget(place: Any, method: str, name: str, parameter: inspect.Parameter) -> Any:
    default, label = parameter.default, name.replace("_", " ").capitalize()
    more: dict[str, Any] = {"key": f"{method} {name}", "help": words.SETTINGS.get(name)}
    if isinstance(default, bool):
        return place.toggle(label, default, **more)
    whole = "int" in str(parameter.annotation)
    kind: Callable[[Any], Any] = int if whole else float
    low, high = BOUNDS.get(name, (0, None))
    more |= {"min_value": kind(low), "max_value": None if high is None else kind(high)}
    if not whole:
        small = default is not None and default < 1e-3
        more |= {"format": "%.1e" if small else "%g", "step": _step(default)}
    return place.number_input(label, value=default, placeholder="automatic", **more)


def _step(default: float | None) -> float:
    """One in the leading digit of the default."""
    return 10.0 ** int(f"{default:e}".partition("e")[2]) if default else 0.1
