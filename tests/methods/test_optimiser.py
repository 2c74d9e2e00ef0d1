"""Adam's steps where one gradient is alone; no part of a step without bound where two cancel."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from mansu.measure.geometry import Projectors
from mansu.methods.movable import Movable, Places
from mansu.methods.optimiser import MOMENTUM, SECOND_MOMENT, Optimiser

N, RATE = 6, 0.1


class Seen(Projectors):
    """Projects nothing, and keeps what it is given."""

    def __init__(self) -> None:
        super().__init__({}, 0.9)
        self.largest = 0.0

    def __call__(self, name: str, values: Tensor, inputs: Tensor) -> Tensor:
        self.largest = max(self.largest, float(values.abs().max()))
        return values


def movable(width: Tensor) -> Movable:
    zero, line = torch.zeros(N), torch.arange(N)
    place = Places(line, torch.zeros(1, dtype=torch.long), line, 0 * line, line, slice(0, N))
    places: Mapping[str, Places] = {"weight": place}
    return Movable(places, zero, zero, zero[:, None], width, zero, zero.clone())


@pytest.mark.parametrize("alone", ["forget", "retain"])
def test_one_gradient_alone_is_adam_in_bins(alone: str) -> None:
    generator = torch.Generator().manual_seed(0)
    width = torch.rand(N, generator=generator) + 0.5
    ours, bins = movable(width), torch.zeros(N, requires_grad=True)
    optimiser = Optimiser(ours, RATE, torch.zeros(N), None)
    adam = torch.optim.Adam([bins], lr=RATE, betas=(MOMENTUM, SECOND_MOMENT), eps=1e-12)
    for step in range(1, 8):
        gradient = torch.randn(N, generator=generator)
        both = {"forget": torch.zeros(N), "retain": torch.zeros(N), alone: gradient}
        optimiser.step(both["forget"], both["retain"], step)
        bins.grad = gradient * width
        adam.step()
    assert torch.allclose(ours.wish / width, bins.detach(), atol=1e-5)


def test_gradients_that_cancel_are_not_multiplied_without_bound() -> None:
    """The projection sees the forget part by itself, and spreads what it finds there."""
    width, seen = torch.ones(N), Seen()
    ours = movable(width)
    optimiser = Optimiser(ours, RATE, torch.zeros(N), seen)
    forget = torch.linspace(1, 2, N)
    for step in range(1, 8):
        optimiser.step(forget, -forget * (1 + 1e-6), step)
        assert 0 < seen.largest <= RATE
    assert float(ours.wish.abs().max()) < RATE / 1000
