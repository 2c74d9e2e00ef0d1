"""One weight and its block, against the kernel."""

from __future__ import annotations

import pytest
import torch

from mansu.errors import BadInputError
from mansu.quant import quantize
from mansu.quant.block import bin_of, room, stretched


@pytest.fixture
def block() -> torch.Tensor:
    return torch.randn(64, generator=torch.Generator().manual_seed(3)) / 20


@pytest.mark.parametrize("place", range(0, 64, 7))
def test_a_weight_keeps_its_code_to_the_end_of_its_bin_and_no_further(
    block: torch.Tensor, place: int
) -> None:
    found, scale = bin_of(block, place), float(block.abs().max())
    for end, way in ((found.high, 1), (found.low, -1)):
        if abs(end) == 1:
            continue  # beyond it the weight would be the largest
        for step, same in ((-1e-3, True), (1e-3, False)):
            moved = block.clone()
            moved[place] = (end + way * step) * scale
            assert (int(quantize(moved).codes[place]) == found.code) is same
    assert found.low <= found.value <= found.high
    assert found.width == pytest.approx(found.up + found.down) or abs(found.value) > 0.8


def test_a_block_of_zeros_has_no_bins() -> None:
    with pytest.raises(BadInputError, match="take another block"):
        bin_of(torch.zeros(64), 0)


def test_neighbours_change_with_the_largest(block: torch.Tensor) -> None:
    before, after = stretched(block, 0.3)
    largest = int(block.abs().argmax())
    grown = block.clone()
    grown[largest] *= 1.3
    changed = quantize(block).codes != quantize(grown).codes
    changed[largest] = False
    assert int((before != after).sum()) == int(changed.sum()) > 0
    assert torch.equal(*stretched(block, 0.0))


def test_within_its_room_nothing_changes_code(block: torch.Tensor) -> None:
    weight = torch.cat([block, 3 * block.flip(0)]).view(2, 64)
    low, high = room(weight)
    codes = quantize(weight).codes
    for share in (0.5, 1.0):
        assert torch.equal(quantize(weight + share * low).codes, codes)
        assert torch.equal(quantize(weight + share * high).codes, codes)
    wider = quantize(weight + 1.2 * high + 1e-3 * (high > 0)).codes
    assert (wider != codes).float().mean() > 0.5
    assert not low[weight.abs() == weight.abs().amax(1, keepdim=True)].any()
