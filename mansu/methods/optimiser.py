"""MANSU's optimiser: Adam in units of bins, of which the forget part is projected."""

from __future__ import annotations

import torch
from torch import Tensor

from mansu.measure.geometry import Projectors
from mansu.methods.movable import Movable

MOMENTUM, SECOND_MOMENT = 0.9, 0.95


class Optimiser:
    """Moves wishes against forget and retain gradients, each weight at most by √2 × the rate a step
    while these are steady, before the projection.

    Args:
        rate: in bins of the unedited weight.
        importance: ``[n]``, λ F of the penalty. spans: the directions to leave alone, if any.
    """

    def __init__(
        self, movable: Movable, rate: float, importance: Tensor, spans: Projectors | None
    ) -> None:
        self.movable, self.rate, self.importance = movable, rate, importance
        self.spans = spans
        self.forget, self.retain, self.square = (
            torch.zeros_like(movable.base) for _ in range(3)
        )  # Adam's moments, in bins

    def step(self, forget: Tensor, retain: Tensor, step: int, share: float = 1.0) -> None:
        """Move the wishes by gradients ``[n]``, at a share of the rate; ``step`` counts from 1."""
        width, wish = self.movable.width, self.movable.wish
        forget, retain = forget * width, (retain + self.importance * wish) * width
        self.forget.lerp_(forget, 1 - MOMENTUM)
        self.retain.lerp_(retain, 1 - MOMENTUM)
        # Not of their sum: where the two cancel, each would be multiplied without bound, and the
        # projection would spread that over the row.
        self.square.lerp_(forget.square() + retain.square(), 1 - SECOND_MOMENT)
        scale = (self.square / (1 - SECOND_MOMENT**step)).sqrt() + 1e-12
        scale = share * self.rate * width / scale / (1 - MOMENTUM**step)
        down = self.forget * scale
        if self.spans is not None:
            for name, place in self.movable.places.items():
                projected = self.spans(name, place.dense(down[place.span]), place.inputs)
                down[place.span] = projected[place.rows, place.columns]
        wish -= down + self.retain * scale
