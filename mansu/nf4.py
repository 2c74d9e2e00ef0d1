"""NF4: 4-bit codes exactly as bitsandbytes makes them, bins, and the magnitude floor.

NF4 (QLoRA, arXiv:2305.14314, §3) cuts the row-major flattened weight into blocks of 64, divides
each by its largest magnitude (absmax) and rounds to the nearest of 16 levels. The kernel decides
by comparing ``w * (1 / absmax)`` with the midpoints of neighbouring levels; a value exactly on a
midpoint takes the lower code. An update survives when it changes the code.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from mansu.edit import touched
from mansu.errors import MansuError
from mansu.subjects import Subject

# bitsandbytes advises at import to install a package of GPU kernels that we have no use for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
import bitsandbytes.functional as bnb  # noqa: E402

CODES: Tensor = bnb.get_4bit_type("nf4", device="cpu")
"""The 16 NF4 levels in ascending order, float32 in [−1, 1]; a code is an index into them."""

BOUNDARIES: Tensor = (CODES[:-1] + CODES[1:]) / 2
"""``[15]``: scaled weights above ``BOUNDARIES[c - 1]`` up to and with ``BOUNDARIES[c]`` get c."""


@dataclass(frozen=True)
class Format:
    """A way to store weights in few bits.

    Attributes:
        kind: ``nf4`` and ``fp4`` have 16 levels; ``int8`` has 255 and one absmax a row
            (LLM.int8, arXiv:2208.07339, without its activation outliers).
        blocksize: weights that share an absmax, for the 4-bit kinds.
        double_quant: the absmax are stored in 8 bits too (QLoRA §3), 4-bit kinds only.
    """

    kind: Literal["nf4", "fp4", "int8"] = "nf4"
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
    return bnb.get_4bit_type(kind, device="cpu")


@cache
def _widths(kind: str) -> Tensor:
    levels = _levels(kind)
    distinct, rank = levels.unique(return_inverse=True)  # fp4 has two zeros and is not in order
    edges = torch.cat([distinct[:1], (distinct[:-1] + distinct[1:]) / 2, distinct[-1:]])
    return edges.diff()[rank]


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
    packed, state = bnb.quantize_4bit(
        weight,
        blocksize=format.blocksize,
        quant_type=format.kind,
        compress_statistics=format.double_quant,
    )
    absmax = state.absmax
    if state.offset is not None:
        absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
    packed = packed.reshape(-1)
    codes = torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[: weight.numel()]
    return Quantized(codes, absmax.float(), format.blocksize, weight.shape, format)


def dequantize(quantized: Quantized, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that the codes stand for, in its shape: level × absmax."""
    levels = quantized.format.levels.to(quantized.codes.device)
    values = levels[quantized.codes.int()]
    full = values.numel() // quantized.blocksize * quantized.blocksize
    blocks = full // quantized.blocksize
    values[:full].view(blocks, quantized.blocksize).mul_(quantized.absmax[:blocks, None])
    values[full:].mul_(quantized.absmax[blocks:])
    return values.to(dtype).reshape(quantized.shape)


def bin_width(weight: Tensor, format: Format = NF4) -> Tensor:
    """The width of the bin that each weight sits in, in weight units, of the weight's shape."""
    quantized = quantize(weight, format)
    widths = format.widths.to(weight.device)[quantized.codes.int()]
    return (widths * quantized.scale).reshape(weight.shape)


def sets_absmax(weight: Tensor, format: Format = NF4) -> Tensor:
    """bool of the weight's shape: the weight's magnitude is its block's absmax.

    Moving such a weight may rescale its whole block. All of an all-zero block count.
    """
    magnitude = weight.detach().abs().reshape(-1)
    size = weight.shape[-1] if format.kind == "int8" else format.blocksize
    padded = torch.nn.functional.pad(magnitude, (0, -len(magnitude) % size)).view(-1, size)
    return (padded == padded.amax(1, keepdim=True)).view(-1)[: len(magnitude)].view(weight.shape)


def code_centers(weight: Tensor, indices: Tensor, format: Format = NF4) -> Tensor:
    """The values of every code at some places of a weight: level × absmax of their block.

    Args:
        indices: int64 ``[n]`` into the row-major flattened weight. Memory is ``n × codes``, so
            ask for the few places that matter.

    Returns:
        ``[n, codes]`` in the weight's dtype.
    """
    return (
        _absmax_at(weight, indices, format)[:, None]
        .mul(format.levels.to(weight.device))
        .to(weight.dtype)
    )


def floor(weight: Tensor, indices: Tensor, codes: Tensor, format: Format = NF4) -> Tensor:
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
    return (levels * _absmax_at(weight, indices, format)).to(weight.dtype)


def _absmax_at(weight: Tensor, indices: Tensor, format: Format) -> Tensor:
    quantized = quantize(weight, format)
    return quantized.absmax[indices.to(weight.device) // quantized.blocksize]


def is_transposed(subject: Subject, name: str) -> bool:
    """Whether 4-bit loading transposes this weight first (GPT-2's Conv1D)."""
    module = subject.model
    for part in name.removesuffix(".weight").split("."):
        module = getattr(getattr(module, "_original_component", module), part)
    module = getattr(module, "_original_component", module)
    return type(module).__name__ == "Conv1D"


def layout(subject: Subject, name: str) -> Tensor:
    """The weight as the quantiser sees it: ``[outputs, inputs]``, row-major."""
    weight = subject.parameters[name].data
    return weight.T.contiguous() if is_transposed(subject, name) else weight


@dataclass(frozen=True)
class Dequantized:
    """A cache: what a subject's unedited quantised weights stand for.

    Attributes:
        weights: parameter name → dequantised weight, in the parameter's shape and dtype.
        format: how they were quantised.
    """

    weights: Mapping[str, Tensor]
    format: Format

    @classmethod
    def of(
        cls, subject: Subject, format: Format = NF4, names: Iterable[str] | None = None
    ) -> Dequantized:
        """Quantise and dequantise a subject's weights as they are now (~5 s for 106 M)."""
        names = subject.quantized_names if names is None else names
        with subject.lock:
            return cls({name: _round_trip(subject, name, format) for name in names}, format)


def _round_trip(subject: Subject, name: str, format: Format) -> Tensor:
    dtype = subject.parameters[name].dtype
    values = dequantize(quantize(layout(subject, name), format), dtype)
    return values.T.contiguous() if is_transposed(subject, name) else values


@contextmanager
def quantized(
    subject: Subject,
    base: Dequantized | None = None,
    *,
    format: Format = NF4,
    names: Iterable[str] | None = None,
) -> Iterator[Subject]:
    """The subject as 4-bit loading would run it, inside the block only.

    Each quantised weight is swapped for its dequantised value; the originals are put back
    untouched, also after an exception. Holds ``subject.lock``. Nest it *inside*
    ``edit.applied(subject)`` to see the quantised edited model.

    Args:
        base: the cache of the unedited weights. With it, only the blocks that applied edits
            touch are quantised again. Without it everything is, which is also right for weights
            that were changed by other means than an edit.
        format: used where there is no ``base``.
        names: the weights to quantise where there is no ``base``; all of
            ``subject.quantized_names`` by default.

    Raises:
        MansuError: a name that is not a parameter of the subject.
    """
    unknown = set(names or base.weights if base else names or ()) - subject.parameters.keys()
    if unknown:
        raise MansuError(
            f"{subject.name!r} has no parameter {sorted(unknown)[0]!r} to quantise: take the names "
            "from its list of parameters."
        )
    with subject.lock:
        if base is None:
            weights = dict(Dequantized.of(subject, format, names).weights)
        else:
            weights = dict(base.weights)
            for name, places in touched(subject).items():
                if name in weights:
                    weights[name] = _requantize(subject, name, places, base)
        originals = {name: subject.parameters[name].data for name in weights}
        try:
            for name, weight in weights.items():
                subject.parameters[name].data = weight
            yield subject
        finally:
            for name, original in originals.items():
                subject.parameters[name].data = original


def _requantize(subject: Subject, name: str, places: list[Tensor], base: Dequantized) -> Tensor:
    """A weight's dequantised value after edits at ``places``: only their blocks are redone."""
    weight = subject.parameters[name].data
    # The 8-bit absmax of double quantization are offset by their mean over the tensor.
    whole = base.format.double_quant or is_transposed(subject, name)
    if whole or any(where.dtype == torch.bool for where in places):
        return _round_trip(subject, name, base.format)
    size = weight.shape[-1] if base.format.kind == "int8" else base.format.blocksize
    blocks = (torch.cat(places).to(weight.device) // size).unique()
    flat, result = weight.reshape(-1), base.weights[name].reshape(-1).clone()
    full = len(flat) // size  # the kernel scales a short last block another way: keep it apart
    inside = blocks[blocks < full]
    if len(inside):
        rows = inside[:, None] * size + torch.arange(size, device=weight.device)
        result[rows] = dequantize(quantize(flat[rows], base.format), weight.dtype)
    if len(inside) < len(blocks):
        result[full * size :] = dequantize(quantize(flat[full * size :], base.format), weight.dtype)
    return result.view(weight.shape)
