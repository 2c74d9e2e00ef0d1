"""MANSU: mechanistic machine unlearning that survives 4-bit quantization.

Data flows one way, each step an immutable value that can be shown, and each but the subject saved
and loaded: subject → task → attribution → circuit → edit → measurements → verdict. ::

    import mansu

    subject, task = mansu.load("tiny"), mansu.load_task("tiny-colours")
    attribution = mansu.attribute(subject, task)
    circuit = mansu.find_circuit(subject, task, attribution)
    edit = mansu.unlearn(subject, task, circuit, method="mansu")
    verdict = mansu.judge(subject, task, edit, circuit)

Names are loaded when they are first used, so that ``import mansu`` does not import torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# By default the threads of a matrix product wait for each other spinning, for milliseconds: where
# another process works, too, what takes 3 seconds alone took minutes. Some 50 microseconds cost
# nothing alone and let others work. libgomp reads this once, when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")

if TYPE_CHECKING:
    from mansu.api import (
        attribute,
        evaluate,
        export,
        find_circuit,
        judge,
        load,
        load_task,
        unlearn,
    )
    from mansu.circuits.attribution import Attribution
    from mansu.circuits.circuit import Circuit
    from mansu.errors import MansuError
    from mansu.evidence.verdict import Verdict
    from mansu.measure.scores import Measurement
    from mansu.subjects.edit import Edit
    from mansu.subjects.subject import Subject
    from mansu.tasks.facts import Task

__version__ = "0.2.0"

__all__ = [
    "Attribution",
    "Circuit",
    "Edit",
    "MansuError",
    "Measurement",
    "Subject",
    "Task",
    "Verdict",
    "attribute",
    "evaluate",
    "export",
    "find_circuit",
    "judge",
    "load",
    "load_task",
    "unlearn",
]

# Where a name of the front door is defined; what is not listed is in mansu.api.
_HOMES = {
    "Attribution": "circuits.attribution",
    "Circuit": "circuits.circuit",
    "Edit": "subjects.edit",
    "MansuError": "errors",
    "Measurement": "measure.scores",
    "Subject": "subjects.subject",
    "Task": "tasks.facts",
    "Verdict": "evidence.verdict",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'api')}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
