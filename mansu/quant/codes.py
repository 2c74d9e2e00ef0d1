"""Codes exactly as bitsandbytes and GGUF's library make them, NF4's first; bins.

NF4 (QLoRA, arXiv:2305.14314, §3) cuts the row-major flattened weight into blocks of 64, divides
each by its largest magnitude (absmax) and rounds to the nearest of 16 levels. The kernel decides
by comparing ``w * (1 / absmax)`` with the midpoints of neighbouring levels; a value exactly on a
midpoint takes the lower code. An update survives when it changes the code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from mansu.errors import BadInputError
from mansu.quant import ggml
from mansu.quant.formats import NF4, Format, Kind
from mansu.quant.kernel import bnb


@dataclass(frozen=True)
class Quantized:
    """A weight in few bits.

    Attributes:
        codes: uint8 ``[weights]``, row-major: indices into ``format.levels``.
        absmax: float32 ``[blocks]``: what the levels are multiplied by; GGUF's scale.
        blocksize: weights a block; the last block may be short.
        shape: of the weight.
        format: how it was made.
        offset: float32 ``[blocks]``: what is then added; None but for Q4_1.
    """

    codes: Tensor
    absmax: Tensor
    blocksize: int
    shape: torch.Size
    format: Format
    offset: Tensor | None = None

    @property
    def scale(self) -> Tensor:
        """float32 ``[weights]``: each weight's absmax."""
        return self.absmax.repeat_interleave(self.blocksize)[: self.codes.numel()]


def quantize(weight: Tensor, format: Format = NF4) -> Quantized:
    """The codes that the bitsandbytes kernel, or GGUF's library, gives this weight.

    Args:
        weight: float32, float16 or bfloat16, of any shape; ``[rows, columns]`` for int8. Blocks
            run over it row-major, so Conv1D weights must be given transposed (``layout``).

    Raises:
        BadInputError: GGUF has no blocks for rows of this length; the weight is not finite, or has
            no rows for int8; or HQQ is asked for, which has values but no codes here.
    """
    weight = weight.detach().contiguous()
    if format.kind == "hqq":
        raise BadInputError("HQQ's codes are not read here: ask for the model in it.")
    format.check(weight)
    if format.is_gguf:
        codes, scale, offset = ggml.unpacked(ggml.packed(weight, format), format, weight.device)
        return Quantized(codes, scale, format.blocksize, weight.shape, format, offset)
    if format.kind == "int8":
        rows, absmax, _ = bnb().int8_vectorwise_quant(weight.to(torch.float16))
        codes = (rows.to(torch.int16) + 127).to(torch.uint8).reshape(-1)
        return Quantized(codes, absmax, weight.shape[-1], weight.shape, format)
    found = _quantize_4bit(weight, replace(format, double_quant=False))
    return double_quantized(found) if format.double_quant else found


def _quantize_4bit(weight: Tensor, format: Format) -> Quantized:
    table = _table(format.kind) if weight.device.type == "cpu" else None
    if table is None or weight.numel() % format.blocksize:
        return _by_kernel(weight, format)
    # The CPU kernel's arithmetic with a table in place of its search: six times faster.
    blocks = weight.float().view(-1, format.blocksize)
    absmax = blocks.abs().amax(1)
    scaled = blocks * (1 / absmax.clamp(min=1e-38))[:, None]
    return Quantized(table.codes(scaled), absmax, format.blocksize, weight.shape, format)


def _by_kernel(weight: Tensor, format: Format) -> Quantized:
    packed, state = bnb().quantize_4bit(weight, blocksize=format.blocksize, quant_type=format.kind)
    packed = packed.reshape(-1)
    codes = torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[: weight.numel()]
    return Quantized(codes, state.absmax.float(), format.blocksize, weight.shape, format)


@dataclass(frozen=True)
class _Table:
    """Codes by the upper 16 bits of a scaled weight, which leave at most one boundary between.

    Attributes:
        lowest: uint8 ``[65536]``: the rank, in ascending order, of the level of the least float
            that has these bits.
        bounds: float32 ``[16]``: a scaled weight above it ranks one higher.
        order: uint8 ``[16]``: the code of each rank; None where it is the rank.
    """

    lowest: Tensor
    bounds: Tensor
    order: Tensor | None

    def codes(self, scaled: Tensor) -> Tensor:
        scaled = scaled.view(-1)
        rank = self.lowest.index_select(0, (scaled.view(torch.int32) >> 16).bitwise_and_(0xFFFF))
        rank += scaled > self.bounds.index_select(0, rank.int())
        return rank if self.order is None else self.order.index_select(0, rank.int())


@cache
def _table(kind: Kind) -> _Table | None:
    """Made once; None if the kernel that is installed rounds in another way."""
    levels, order = Format(kind).levels.sort(stable=True)
    bounds = (levels[:-1] + levels[1:]) / 2
    upper = torch.arange(1 << 16, dtype=torch.int32) << 16
    ends = torch.stack([upper, upper | 0xFFFF], 1).view(torch.float32)
    table = _Table(
        torch.bucketize(ends.amin(1), bounds).to(torch.uint8),
        torch.nn.functional.pad(bounds, (0, 1), value=math.inf),
        None if kind == "nf4" else order.to(torch.uint8),
    )
    # Every float next to a boundary, and both ends of what each entry stands for.
    near = torch.cat([bounds, *(bounds.nextafter(torch.tensor(s)) for s in (-2.0, 2.0))])
    some = torch.cat([ends[ends.abs() <= 1], near])
    some = torch.nn.functional.pad(some, (0, -len(some) % 63)).view(-1, 63)
    some = torch.nn.functional.pad(some, (0, 1), value=1.0)  # its absmax
    alike = torch.equal(table.codes(some), _by_kernel(some, Format(kind)).codes)
    return table if alike else None


def rounds_as_said(kind: Kind) -> bool:
    """Whether the installed kernel of a 4-bit kind gives the codes that this module says it does.

    Where it does not, ``quantize`` asks the kernel itself, which is slow.
    """
    return _table(kind) is not None


def double_quantized(quantized: Quantized) -> Quantized:
    """The same codes with their absmax in 8 bits, as ``compress_statistics`` of bitsandbytes has
    them (QLoRA, §3: less their mean, in blocks of 256)."""
    offset = quantized.absmax.mean()
    absmax = bnb().dequantize_blockwise(
        *bnb().quantize_blockwise(quantized.absmax - offset, blocksize=256)
    )
    format = replace(quantized.format, double_quant=True)
    return replace(quantized, absmax=(absmax + offset).float(), format=format)


def dequantize(quantized: Quantized, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that the codes stand for, in its shape: level × absmax, and an offset."""
    levels = quantized.format.levels.to(quantized.codes.device)
    values = levels.index_select(0, quantized.codes.int())
    full = values.numel() // quantized.blocksize * quantized.blocksize
    blocks = full // quantized.blocksize
    values[:full].view(blocks, quantized.blocksize).mul_(quantized.absmax[:blocks, None])
    values[full:].mul_(quantized.absmax[blocks:])
    if quantized.offset is not None:  # GGUF's blocks are whole
        values.view(blocks, quantized.blocksize).add_(quantized.offset[:, None])
    return values.to(dtype).reshape(quantized.shape)


def bin_width(
    weight: Tensor, format: Format = NF4, *, quantized: Quantized | None = None
) -> Tensor:
    """The width of the bin that each weight sits in, in weight units, of the weight's shape.

    Args:
        quantized: the weight in the format, where it is at hand.
    """
    quantized = quantized or quantize(weight, format)
    widths = format.widths.to(weight.device).index_select(0, quantized.codes.int())
    return (widths * quantized.scale).reshape(weight.shape)


def sets_absmax(weight: Tensor, format: Format = NF4) -> Tensor:
    """bool of the weight's shape: the weight's magnitude is its block's absmax.

    Moving such a weight may rescale its whole block. All of an all-zero block count.
    """
    magnitude = weight.detach().abs().reshape(-1)
    size = weight.shape[-1] if format.kind == "int8" else format.blocksize
    padded = torch.nn.functional.pad(magnitude, (0, -len(magnitude) % size)).view(-1, size)
    return (padded == padded.amax(1, keepdim=True)).view(-1)[: len(magnitude)].view(weight.shape)
