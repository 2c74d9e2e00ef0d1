"""Unlearning methods: MANSU, its baselines, controls and ablations.

Each file ends in the ``Method`` that it describes; ``named`` imports it when it is asked for, so
that the names cost nothing::

    outcome = named("graddiff")(problem, steps=4)
"""

from __future__ import annotations

import importlib

from mansu.errors import BadInputError
from mansu.methods.method import Method, Outcome, Problem, Search, Watch, parse_settings

__all__ = [
    "ABLATIONS",
    "ALL",
    "CONTROLS",
    "NAMES",
    "Method",
    "Outcome",
    "Problem",
    "Search",
    "Watch",
    "named",
    "parse_settings",
]

NAMES = (
    "mansu",
    "ga",
    "graddiff",
    "kl",
    "npo",
    "simnpo",
    "rmu",
    "sure",
    "null_space",
    "task_vector",
)
"""What people choose from; the controls and ablations are run by name."""

CONTROLS = ("random_moves", "retrained")

ABLATIONS = ("mansu_no_circuit", "mansu_no_projection", "mansu_no_fisher", "mansu_no_floor")

ALL = (*NAMES, *CONTROLS, *ABLATIONS)


def named(name: str) -> Method:
    """The method, control or ablation of this name.

    Raises:
        BadInputError: there is none.
    """
    if name not in ALL:
        raise BadInputError(f"Unknown method {name!r}: give one of {', '.join(ALL)}.")
    if name in ABLATIONS:
        return importlib.import_module("mansu.methods.ablations").METHODS[name]
    file = "mansu_method" if name == "mansu" else name
    return importlib.import_module(f"mansu.methods.{file}").METHOD
