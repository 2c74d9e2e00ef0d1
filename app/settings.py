"""A widget for every setting of a method, made from the method's description."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import address, state, words
from mansu import methods
from mansu.settings import Setting


def form(method: str) -> dict[str, Any]:
    """Draw the widgets and return the settings that differ from the method's defaults."""
    described = methods.named(method)
    columns = st.columns(2)
    values = {
        name: _widget(columns[i % 2], method, setting)
        for i, (name, setting) in enumerate(described.options().items())
    }
    return described.changed(values)


def arguments(settings: Mapping[str, Any]) -> list[str]:
    """The settings as arguments of the command line."""
    return [a for n, v in settings.items() for a in ("--set", f"{n}={json.dumps(v)}")]


def _widget(place: Any, method: str, setting: Setting) -> Any:
    default, label = setting.default, words.SETTINGS[setting.name]
    about = f"{setting.help} On the command line: `{setting.name}`."
    about += f" Source: {setting.source}." if setting.source else ""
    key = f"{method} {setting.name}"
    bound: dict[str, Any] = {"key": key, "help": about}
    if setting.kind is bool and setting.optional:
        said = {None: "automatic", True: "on", False: "off"}
        with place:
            return address.bound(
                st.selectbox, label, list(said), format_func=said.__getitem__, **bound
            )
    if setting.kind is bool:
        with place:
            return address.bound(st.toggle, label, default, **bound)
    more: dict[str, Any] = {"help": about, "placeholder": "automatic"}
    if setting.kind is float:
        small = default is not None and default < 1e-3
        more |= {"format": "%.1e" if small else "%g", "step": _step(default)}
    with place:
        return state.number(label, setting, key, (setting.low, setting.high), **more)


def _step(default: float | None) -> float:
    """One in the leading digit of the default."""
    return 10.0 ** int(f"{default:e}".partition("e")[2]) if default else 0.1
