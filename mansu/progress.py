"""How work reports: a typed record a step, from which sentences and charts are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """One step of some work that is done.

    Attributes:
        stage: which work. Of a job: ``load``, ``base``, ``base_nf4``, ``attribution``,
            ``circuit``, ``trust``, ``unlearn``, ``quantize``, ``formats``, ``by_format``,
            ``bounds``, ``cad``, ``reference``, ``relearning``, ``verdict``, ``base_attacks``,
            ``attacks``, ``strengths``, ``export``. Elsewhere: ``patching`` (edges, one by one),
            ``score`` (a set of the field), ``search``.
        done, total: steps of the stage done, and in all.
        method: the method at work, where there is one.
        part: what of the stage was done (``the edited model in NF4``), for people.
        values: what was measured on the way (``forget_loss``, ``moved``, …), by name.
    """

    stage: str
    done: int
    total: int
    method: str | None = None
    part: str = ""
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share of the stage that is done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total > 0 else 1.0

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "values": dict(self.values)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Step:
        return cls(**value)


OnStep = Callable[[Step], None]
"""Called with every record. It only listens: what it raises ends the work (a cancelled job)."""


def silent(step: Step) -> None:
    """Report nothing."""


def part_of(on_step: OnStep, stage: str, i: int, n: int, what: str) -> OnStep:
    """Where the ``i``-th of ``n`` equal parts of a stage reports to; ``what`` it is, for people."""
    return lambda step: on_step(
        Step(stage, i * step.total + step.done, n * step.total, part=what, values=step.values)
    )
