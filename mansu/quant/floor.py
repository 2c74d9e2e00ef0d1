"""The magnitude floor: where a weight may move so that every format sees it move."""

from __future__ import annotations

import torch
from torch import Tensor

from mansu.quant.codes import Quantized, quantize
from mansu.quant.formats import NF4, Format, boundaries_of

CASTABLE = 2.0**-18
"""fp16 has steps of 2⁻²⁴ there: in blocks with a smaller absmax they are too coarse for codes."""


def blocks_at(weight: Tensor, indices: Tensor, format: Format = NF4) -> tuple[Tensor, Tensor]:
    """The whole blocks that hold some places of a weight, and where the places lie in them.

    The functions of this module and of ``codes`` give of these blocks what they give of the weight,
    for less.

    Args:
        indices: int64 ``[n]`` into the row-major flattened weight.

    Returns:
        Blocks side by side, flat, or rows for int8; all of the weight where its last block is
        short, for the kernel scales that another way. int64 ``[n]``.
    """
    by_row = format.kind == "int8"
    size = weight.shape[-1] if by_row else format.blocksize
    if weight.numel() % size:
        return weight.contiguous(), indices
    blocks, which = (indices // size).unique(return_inverse=True)
    some = weight.reshape(-1, size)[blocks]
    return some if by_row else some.view(-1), which * size + indices % size


def holds_cast(
    weight: Tensor, format: Format = NF4, *, quantized: Quantized | None = None
) -> Tensor:
    """bool of the weight's shape: a move of this weight to a code's centre outlives bf16 and fp16.

    The centre does by itself (``floor``). But the base weight, near a boundary, may get another
    code by the cast alone, perhaps the very one that it was to be moved to; and in a block of tiny
    weights fp16 loses the grid.
    """
    original = quantized or quantize(weight, format)
    same = original.scale >= CASTABLE
    for dtype in (torch.bfloat16, torch.float16):
        same &= quantize(weight.to(dtype), format).codes == original.codes
    return same.view(weight.shape)


def code_centers(
    weight: Tensor, indices: Tensor, format: Format = NF4, *, quantized: Quantized | None = None
) -> Tensor:
    """The values of every code at some places of a weight: level × absmax of their block.

    Args:
        indices: int64 ``[n]`` into the row-major flattened weight. Memory is ``n × codes``, so
            ask for the few places that matter.
        quantized: the weight in the format, where it is at hand.

    Returns:
        ``[n, codes]`` in the weight's dtype.
    """
    absmax = _absmax_at(quantized or quantize(weight, format), indices)
    return absmax[:, None].mul(format.levels.to(weight.device)).to(weight.dtype)


def centers(weight: Tensor, indices: Tensor, codes: Tensor, format: Format = NF4) -> Tensor:
    """The magnitude floor: the values that put weights at the centre of their target codes.

    The centre is the level that the code dequantises to. It is far from both boundaries (at
    least 4 % of the absmax), so that the code also holds after a cast to bf16 or fp16, as long
    as the element that sets the absmax does not move.

    Args:
        weight: the base weight, which gives the absmax.
        indices: int64 ``[n]`` into the row-major flattened weight.
        codes: integer ``[n]``, the target codes.

    Returns:
        ``[n]`` in the weight's dtype.
    """
    levels = format.levels.to(weight.device)[codes.to(weight.device).long()]
    return (levels * _absmax_at(quantize(weight, format), indices)).to(weight.dtype)


def _absmax_at(quantized: Quantized, indices: Tensor) -> Tensor:
    return quantized.absmax[indices.to(quantized.absmax.device) // quantized.blocksize]


NEAR = 1e-4
"""Scaled values so close to a boundary are not sure of their code: kernels round differently."""


def leaves_bin(weight: Tensor, indices: Tensor, values: Tensor, format: Format) -> Tensor:
    """Whether a weight that took a value would have another level than now, for sure.

    That is so whatever other weights do the same, as long as none that sets its block's absmax
    moves: no value counts that would itself be the absmax.

    Args:
        indices: int64 ``[n]`` into the row-major flattened weight.
        values: ``[n, candidates]``, in weight units.

    Returns:
        bool ``[n, candidates]``.
    """
    quantized = quantize(weight, format)
    absmax = quantized.absmax[indices // quantized.blocksize].clamp_min(torch.finfo().tiny)
    if format.kind == "int8":
        values = values.half()  # as its kernel reads them
    scaled = values.float() / absmax[:, None]
    boundaries = boundaries_of(format.kind).to(weight.device)
    new = torch.bucketize(scaled, boundaries)
    old = torch.bucketize(
        format.levels.to(weight.device)[quantized.codes[indices].int()], boundaries
    )
    last = len(boundaries) - 1
    near = torch.minimum(
        (scaled - boundaries[(new - 1).clamp_min(0)]).abs(),
        (scaled - boundaries[new.clamp_max(last)]).abs(),
    )
    return (new != old[:, None]) & (near > NEAR) & (scaled.abs() < 1)
