"""One weight and its block, as NF4 sees them: the bin it lies in, and what a new absmax does.

Everything is in units of the block's absmax, in which the sixteen levels and their boundaries are
the same for every block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mansu.errors import BadInputError
from mansu.quant.codes import quantize, sets_absmax
from mansu.quant.floor import NEAR
from mansu.quant.formats import BOUNDARIES, CODES

ENDS: Tensor = torch.cat([CODES[:1], BOUNDARIES, CODES[-1:]])
"""``[17]``: the ends of the sixteen bins, in units of the absmax."""


@dataclass(frozen=True)
class Bin:
    """Where a weight lies, in units of its block's absmax.

    Attributes:
        value: the weight. code: its NF4 code, 0 to 15; level: what the code stands for.
        low, high: the ends of its bin: midpoints of neighbouring levels, or ±1.
    """

    value: float
    code: int
    level: float
    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low

    @property
    def up(self) -> float:
        """How far it may rise before its code changes; infinite in the last bin."""
        return self.high - self.value if self.code < len(CODES) - 1 else float("inf")

    @property
    def down(self) -> float:
        """How far it may fall before its code changes; infinite in the first bin."""
        return self.value - self.low if self.code else float("inf")


def bin_of(block: Tensor, place: int) -> Bin:
    """The bin of one weight.

    Args:
        block: ``[64]``, a whole block of a weight as the quantiser sees it. place: in the block.

    Raises:
        BadInputError: the block is all zero, so that it has no unit.
    """
    found = quantize(block)
    scale = float(found.absmax[0])
    if not scale:
        raise BadInputError("A block of zeros has no bins: take another block.")
    code = int(found.codes[place])
    ends = ENDS.tolist()
    return Bin(float(block[place]) / scale, code, float(CODES[code]), ends[code], ends[code + 1])


def stretched(block: Tensor, growth: float) -> tuple[Tensor, Tensor]:
    """The codes of a block before and after its largest weight grows.

    Args:
        block: ``[64]``. growth: by what share of itself; 0.1 for a tenth.

    Returns:
        uint8 ``[63]`` each: the codes of the other weights.
    """
    largest = int(block.abs().argmax())
    after = block.clone()
    after[largest] *= 1 + growth
    others = torch.arange(len(block)) != largest
    return quantize(block).codes[others], quantize(after).codes[others]


def room(weight: Tensor) -> tuple[Tensor, Tensor]:
    """How far each weight may fall and rise and keep its NF4 code, whatever others do.

    Weights that set their block's absmax have no room: a move of theirs rescales the block.

    Args:
        weight: of any shape, as the quantiser sees it.

    Returns:
        float32 of the weight's shape, in weight units: the least change (≤ 0) and the largest (≥ 0)
        that surely keep the code.
    """
    found = quantize(weight)
    scale = found.scale.view(weight.shape)
    ends = ENDS.to(weight.device)
    code = found.codes.long().view(weight.shape)
    spare = NEAR * scale
    low = (ends[code] * scale + spare - weight).clamp(max=0)
    high = (ends[code + 1] * scale - spare - weight).clamp(min=0)
    fixed = sets_absmax(weight)
    return low.masked_fill(fixed, 0), high.masked_fill(fixed, 0)
