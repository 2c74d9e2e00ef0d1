"""Unlearning methods: MANSU, its baselines and its controls, one small file each.

Every method is a function ``unlearn(problem, **settings) -> Outcome``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from mansu.errors import MansuError
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task
from mansu.tasks.tokens import Examples

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

CONTROLS = ("random_moves",)

ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "mansu_no_circuit": {"circuit": False},
    "mansu_no_projection": {"project": False},
    "mansu_no_fisher": {"fisher_weight": 0.0},
    "mansu_no_floor": {"floor": False},
}
"""MANSU with one of its parts off: the setting that turns it off."""

ALL = (*NAMES, *CONTROLS, *ABLATIONS)

Progress = Callable[[float, str], None]
"""Called with the share done (0 to 1) and a sentence; raising from it cancels the method."""


def silent(share: float, message: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Problem:
    """What a method is given.

    Attributes:
        subject: the model, unedited; a method leaves it bit for bit as it found it.
        task: the task (for its margins).
        forget, retain: tokenised splits. text: (tokens ``[N, T]``, length ``[N]``) to keep.
        mask: the circuit's parameters, name → bool tensor of the parameter's shape; None for
            methods that are not restricted to a circuit.
        seed: of everything random.
        progress: where to report to.
    """

    subject: Subject
    task: Task
    forget: Examples
    retain: Examples
    text: tuple[Tensor, Tensor]
    mask: Mapping[str, Tensor] | None = None
    seed: int = 0
    progress: Progress = field(default=silent, repr=False, compare=False)


@dataclass(frozen=True)
class Outcome:
    """What a method returns: the edit and what happened on the way.

    Attributes:
        edit: the change of the parameters.
        history: one JSON object a step, e.g. ``{"step": 3, "forget_loss": 1.2}``.
        stopped: why it stopped, a sentence.
        settings: the settings it ran with, as JSON values.
    """

    edit: Edit
    history: tuple[Mapping[str, Any], ...]
    stopped: str
    settings: Mapping[str, Any]


def named(name: str) -> Callable[..., Outcome]:
    """The ``unlearn`` function of a method, a control or an ablation.

    Raises:
        MansuError: there is none of that name.
    """
    if name not in ALL:
        raise MansuError(f"Unknown method {name!r}: give one of {', '.join(ALL)}.")
    file = "mansu" if name in ABLATIONS else name
    unlearn = importlib.import_module(f"mansu.methods.{file}").unlearn
    return partial(unlearn, **ABLATIONS[name]) if name in ABLATIONS else unlearn
