"""NF4: 4-bit codes exactly as bitsandbytes makes them, bins, and the magnitude floor.

NF4 (QLoRA, arXiv:2305.14314, §3) cuts the row-major flattened weight into blocks of 64, divides
each by its largest magnitude (absmax) and rounds to the nearest of 16 levels. The kernel decides
by comparing ``w * (1 / absmax)`` with the midpoints of neighbouring levels; a value exactly on a
midpoint takes the lower code. An update survives when it changes the code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mansu.quant.formats import NF4, Format
from mansu.quant.kernel import bnb


@dataclass(frozen=True)
class Quantized:
    """A weight in few bits.

    Attributes:
        codes: uint8 ``[weights]``, row-major: indices into ``format.levels``.
        absmax: float32 ``[blocks]``: what the levels are multiplied by.
        blocksize: weights a block; the last block may be short.
        shape: of the weight.
        format: how it was made.
    """

    codes: Tensor
    absmax: Tensor
    blocksize: int
    shape: torch.Size
    format: Format

    @property
    def scale(self) -> Tensor:
        """float32 ``[weights]``: each weight's absmax."""
        return self.absmax.repeat_interleave(self.blocksize)[: self.codes.numel()]


def quantize(weight: Tensor, format: Format = NF4) -> Quantized:
    """The codes that the bitsandbytes kernel gives this weight.

    Args:
        weight: float32, float16 or bfloat16, of any shape; ``[rows, columns]`` for int8. Blocks
            run over it row-major, so Conv1D weights must be given transposed (``layout``).
    """
    weight = weight.detach().contiguous()
    if format.kind == "int8":
        rows, absmax, _ = bnb.int8_vectorwise_quant(weight.to(torch.float16))
        codes = (rows.to(torch.int16) + 127).to(torch.uint8).reshape(-1)
        return Quantized(codes, absmax, weight.shape[-1], weight.shape, format)
    packed, state = bnb.quantize_4bit(weight, blocksize=format.blocksize, quant_type=format.kind)
    packed = packed.reshape(-1)
    codes = torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[: weight.numel()]
    plain = replace(format, double_quant=False)
    found = Quantized(codes, state.absmax.float(), format.blocksize, weight.shape, plain)
    return double_quantized(found) if format.double_quant else found


def double_quantized(quantized: Quantized) -> Quantized:
    """The same codes with their absmax in 8 bits, as ``compress_statistics`` of bitsandbytes has
    them (QLoRA, §3: less their mean, in blocks of 256)."""
    offset = quantized.absmax.mean()
    absmax = bnb.dequantize_blockwise(
        *bnb.quantize_blockwise(quantized.absmax - offset, blocksize=256)
    )
    format = replace(quantized.format, double_quant=True)
    return replace(quantized, absmax=(absmax + offset).float(), format=format)


def dequantize(quantized: Quantized, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that the codes stand for, in its shape: level × absmax."""
    levels = quantized.format.levels.to(quantized.codes.device)
    values = levels.index_select(0, quantized.codes.int())
    full = values.numel() // quantized.blocksize * quantized.blocksize
    blocks = full // quantized.blocksize
    values[:full].view(blocks, quantized.blocksize).mul_(quantized.absmax[:blocks, None])
    values[full:].mul_(quantized.absmax[blocks:])
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
