"""The ablations: MANSU with one of its parts off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mansu.methods.mansu_method import METHOD as MANSU
from mansu.methods.method import Method


def _without(part: str, title: str, about: str, **preset: Any) -> Method:
    return replace(
        MANSU,
        name=f"mansu_no_{part}",
        title=f"MANSU, {title}",
        about=f"An ablation: MANSU {about}.",
        kind="ablation",
        search=None,
        preset=preset,
    )


METHODS = {
    method.name: method
    for method in (
        _without(
            "circuit",
            "random mask",
            "on as many random head slices and neurons as it picks its weights from",
            circuit=False,
        ),
        _without(
            "projection",
            "no projection",
            "with the forget gradient taken whole, not only where the retain inputs give nothing",
            project=False,
        ),
        _without(
            "fisher",
            "no Fisher",
            "without the Fisher penalty on what the retain set depends on",
            fisher_weight=0.0,
        ),
        _without(
            "floor",
            "no floor",
            "with the continuous update applied as it is, however small",
            floor=False,
        ),
    )
}
"""By name."""
