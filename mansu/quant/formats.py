"""Low-bit formats: their levels, the boundaries between them and the widths of their bins.

NF4 (QLoRA, arXiv:2305.14314, §3) has 16 levels; a value exactly on a midpoint of two levels takes
the lower code. The formats of GGUF are what llama.cpp runs; HQQ (Badri and Shaji, 2023) fits scale
and zero of each group to the weights, as AWQ and GPTQ do to activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import Literal, get_args

import torch
from torch import Tensor

from mansu.errors import BadInputError
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
"""Those that bitsandbytes makes: levels times the largest magnitude of a block, or of a row."""

GGUFKind = Literal["Q4_0", "Q4_1", "Q5_0", "Q8_0"]
"""Those of GGUF: whole levels times a scale, and in Q4_1 plus an offset, of 32 weights of a row."""

GGUF_BLOCK = 32

HALVES = {"int8": 1, "Q4_0": 8, "Q4_1": 1, "Q5_0": 16, "Q8_0": 127}
"""What divides the largest entry before a format keeps it in float16 (int8: before it is read)."""

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Those that bitsandbytes has."""


@dataclass(frozen=True)
class Format:
    """A way to store weights in few bits.

    Attributes:
        kind: ``nf4`` and ``fp4`` have 16 levels; ``int8`` has 255 and one absmax a row
            (LLM.int8, arXiv:2208.07339, without its activation outliers). GGUF's have as many as
            the bits in their names give; ``hqq`` has 16.
        blocksize: weights that share an absmax: one of ``BLOCKSIZES`` for ``nf4`` and ``fp4``, 32
            for GGUF's, a group for ``hqq``; 64, which says nothing, for ``int8``.
        double_quant: the absmax are stored in 8 bits too (QLoRA §3), ``nf4`` and ``fp4`` only.

    Raises:
        BadInputError: there is no such kind, or it has no blocks of that size or no double
            quantisation.
    """

    kind: Kind | GGUFKind | Literal["hqq"] = "nf4"
    blocksize: int = 64
    double_quant: bool = False

    def __post_init__(self) -> None:
        kinds = (*get_args(Kind), *get_args(GGUFKind), "hqq")
        if self.kind not in kinds:
            raise BadInputError(
                f"There is no format {self.kind!r:.40}: give one of {', '.join(kinds)}."
            )
        size, four_bits = self.blocksize, self.kind in ("nf4", "fp4")
        if type(size) is not int or size < 1:
            raise BadInputError(f"A block of {size!r:.40} weights is none: give a whole number.")
        if self.is_gguf and size != GGUF_BLOCK:
            raise BadInputError(f"{self.kind} has blocks of {GGUF_BLOCK}, not {size}.")
        if four_bits and size not in BLOCKSIZES:
            sizes = ", ".join(map(str, BLOCKSIZES))
            raise BadInputError(f"{self.kind} has no blocks of {size}: give one of {sizes}.")
        if self.kind == "int8" and size != Format.blocksize:
            raise BadInputError("int8 has an absmax a row and no blocks: leave out the blocksize.")
        if self.double_quant and not four_bits:
            raise BadInputError(
                f"{self.kind} has no double quantisation: leave it out, or take nf4 or fp4."
            )

    def check(self, weight: Tensor) -> None:
        """Refuse a weight that no code stands for.

        Raises:
            BadInputError: it holds NaN or infinity, or more than the float16 of the format, or has
                no rows, which int8 is made of.
        """
        if self.kind == "int8" and weight.ndim < 2:
            raise BadInputError(
                f"int8 has an absmax a row, and a weight of shape {list(weight.shape)} has no "
                "rows: give [rows, columns]."
            )
        least, most = map(float, weight.aminmax()) if weight.numel() else (0.0, 0.0)  # keeps a NaN
        if not (isfinite(least) and isfinite(most)):
            raise BadInputError(
                f"A weight of shape {list(weight.shape)} is not finite (NaN or infinite): no code "
                f"of {self} stands for it."
            )
        limit = HALVES.get(self.kind, 1) * torch.finfo(torch.float16).max
        if self.kind in HALVES and max(-least, most) > limit:
            raise BadInputError(
                f"A weight of shape {list(weight.shape)} has an entry of size "
                f"{max(-least, most):.3g}, and {self} keeps none beyond {limit:.3g}, in float16."
            )

    def __str__(self) -> str:
        if self.kind == "int8" or self.is_gguf:
            return self.kind
        return f"{self.kind}-{self.blocksize}" + ("-dq" if self.double_quant else "")

    @property
    def is_gguf(self) -> bool:
        """Whether llama.cpp makes and runs it."""
        return self.kind in get_args(GGUFKind)

    @property
    def levels(self) -> Tensor:
        """float32 ``[codes]``: the scaled value of each code.

        Raises:
            BadInputError: of HQQ, whose levels lie elsewhere in each group.
        """
        return _levels(self.kind)

    @property
    def widths(self) -> Tensor:
        """float32 ``[codes]``: the width of each code's bin, scaled.

        A bin reaches from midpoint to midpoint; those of the extreme codes from their midpoint
        to ±1, for no weight of a block exceeds its absmax.

        Raises:
            BadInputError: of a format that bitsandbytes does not make.
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
"""Those of bitsandbytes. MANSU's floor holds in all of them."""

GGUF = tuple(Format(kind, GGUF_BLOCK) for kind in get_args(GGUFKind))
"""Those that people run on laptops."""

HQQ = Format("hqq")
"""Fitted 4 bits in groups of 64, by the package ``hqq`` where it is installed."""


@cache
def _levels(kind: str) -> Tensor:
    if kind == "hqq":
        raise BadInputError("HQQ has no levels that are the same in each group.")
    if kind in get_args(GGUFKind):  # Q, the bits, and _1 where it has an offset
        n = 2 ** int(kind[1])
        return torch.arange(n, dtype=torch.float32) - (0 if kind.endswith("_1") else n // 2)
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
    if kind not in get_args(Kind):
        raise BadInputError(f"The bins of {kind} have no widths here: ask of NF4, FP4 or int8.")
    distinct, rank = _levels(kind).unique(return_inverse=True)
    return torch.cat([distinct[:1], boundaries_of(kind), distinct[-1:]]).diff()[rank]
