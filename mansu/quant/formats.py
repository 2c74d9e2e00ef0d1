"""Low-bit formats: their levels, the boundaries between them and the widths of their bins.

NF4 (QLoRA, arXiv:2305.14314, §3) has 16 levels; a value exactly on a midpoint of two levels takes
the lower code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from mansu.quant.kernel import bnb

# Those of bitsandbytes (``get_4bit_type``), as a test holds them to: importing it takes seconds.
CODES: Tensor = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
"""The 16 NF4 levels in ascending order, float32 in [−1, 1]; a code is an index into them."""


BOUNDARIES: Tensor = (CODES[:-1] + CODES[1:]) / 2
"""``[15]``: scaled weights above ``BOUNDARIES[c - 1]`` up to and with ``BOUNDARIES[c]`` get c."""


Kind = Literal["nf4", "fp4", "int8"]


@dataclass(frozen=True)
class Format:
    """A way to store weights in few bits.

    Attributes:
        kind: ``nf4`` and ``fp4`` have 16 levels; ``int8`` has 255 and one absmax a row
            (LLM.int8, arXiv:2208.07339, without its activation outliers).
        blocksize: weights that share an absmax, for the 4-bit kinds.
        double_quant: the absmax are stored in 8 bits too (QLoRA §3), 4-bit kinds only.
    """

    kind: Kind = "nf4"
    blocksize: int = 64
    double_quant: bool = False

    def __str__(self) -> str:
        if self.kind == "int8":
            return "int8"
        return f"{self.kind}-{self.blocksize}" + ("-dq" if self.double_quant else "")

    @property
    def levels(self) -> Tensor:
        """float32 ``[codes]``: the scaled value of each code."""
        return _levels(self.kind)

    @property
    def widths(self) -> Tensor:
        """float32 ``[codes]``: the width of each code's bin, scaled.

        A bin reaches from midpoint to midpoint; those of the extreme codes from their midpoint
        to ±1, for no weight of a block exceeds its absmax.
        """
        return _widths(self.kind)


NF4 = Format()


FORMATS = (
    NF4,
    Format(double_quant=True),
    Format(blocksize=128),
    Format("fp4"),
    Format("int8"),
)


@cache
def _levels(kind: str) -> Tensor:
    if kind == "int8":
        return torch.arange(-127, 128) / 127
    return CODES if kind == "nf4" else bnb().get_4bit_type(kind, device="cpu")


@cache
def boundaries_of(kind: str) -> Tensor:
    """Midpoints of neighbouring levels; fp4 has two zeros and is not in order."""
    distinct = _levels(kind).unique()
    return (distinct[:-1] + distinct[1:]) / 2


@cache
def _widths(kind: str) -> Tensor:
    distinct, rank = _levels(kind).unique(return_inverse=True)
    return torch.cat([distinct[:1], boundaries_of(kind), distinct[-1:]]).diff()[rank]
