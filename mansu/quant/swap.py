"""The subject as a low-bit format would run it, for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mansu.errors import MansuError
from mansu.interrupts import put_back
from mansu.quant.codes import Quantized, dequantize, quantize
from mansu.quant.fitted import fitted
from mansu.quant.formats import NF4, Format
from mansu.quant.ggml import stored
from mansu.subjects.edit import touched
from mansu.subjects.offload import placed
from mansu.subjects.subject import Subject
from mansu.subjects.weights import transposed_names


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
        """Quantise and dequantise a subject's weights as they are now.

        They lie on the disk where the subject does (``Subject.offload``).

        Raises:
            StorageError: there is no room for them there.
            BadInputError: the format cannot store rows of this model's length, or its library is
                not installed.
        """
        how = stored(subject, format)
        with subject.lock:
            transposed = transposed_names(subject)
            weights = {}
            for name in how if names is None else names:
                weight = subject.parameters[name].data
                found = _round_trip(weight, how.get(name, format), name in transposed)
                weights[name] = placed(found, subject.offload)
            return cls(weights, format)


def _round_trip(weight: Tensor, format: Format, transposed: bool) -> Tensor:
    if transposed:
        return _round_trip(weight.T, format, False).T.contiguous()
    if format.kind == "hqq":
        return fitted(weight, format)
    return dequantize(quantize(weight, format), weight.dtype)


@contextmanager
def swapped(subject: Subject, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The subject with other tensors as its parameters, by name, inside the block only.

    The originals are put back untouched, also after an exception. Holds ``subject.lock``. A
    backward pass belongs into the block of its forward pass.
    """
    with subject.lock:
        before = {name: subject.parameters[name].data for name in weights}

        def undo() -> None:
            for name, original in before.items():
                subject.parameters[name].data = original

        try:
            for name, weight in weights.items():
                subject.parameters[name].data = weight
            yield
        finally:
            put_back(undo)


@contextmanager
def quantized(
    subject: Subject,
    base: Dequantized | None = None,
    *,
    format: Format = NF4,
    names: Iterable[str] | None = None,
) -> Iterator[Subject]:
    """The subject as a low-bit format would run it, inside the block only.

    Each quantised weight is swapped for its dequantised value; the originals are put back
    untouched, also after an exception. Holds ``subject.lock``. Nest it *inside*
    ``edit.applied(subject)`` to see the quantised edited model.

    Args:
        base: the cache of the unedited weights. With it, only the blocks that applied edits
            touch are quantised again. Without it everything is, which is also right for weights
            that were changed by other means than an edit.
        format: used where there is no ``base``.
        names: the weights to quantise where there is no ``base``; by default all that the
            format stores (``stored``).

    Raises:
        MansuError: a name that is not a parameter of the subject; besides, as ``Dequantized.of``.
    """
    wanted = set(base.weights if base else names or ())
    if not wanted <= subject.parameters.keys():
        raise MansuError(
            f"{subject.name!r} has no parameter {min(wanted - subject.parameters.keys())!r} to "
            "quantise: take the names from its list of parameters."
        )
    with subject.lock:
        edited = touched(subject) if base else {}
        base = base or Dequantized.of(subject, format, names)
        transposed, how = transposed_names(subject), stored(subject, base.format)
        weights = dict(base.weights)
        undo: list[tuple[Tensor, Tensor | slice, Tensor]] = []

        def put_blocks_back() -> None:
            for tensor, entries, old in reversed(undo):
                tensor[entries] = old

        try:
            for name in edited.keys() & weights.keys():
                weight, format = subject.parameters[name].data, how.get(name, base.format)
                if in_blocks(name, format, transposed):
                    _patch(weight, edited[name], weights[name], format, undo)
                else:
                    weights[name] = _round_trip(weight, format, name in transposed)
            with swapped(subject, weights):
                yield subject
        finally:
            put_back(put_blocks_back)


def in_blocks(name: str, format: Format, transposed: frozenset[str]) -> bool:
    """Whether a change in one block leaves the others, and blocks follow the parameter's order."""
    # The 8-bit absmax of double quantization are offset by their mean over the tensor, and HQQ's
    # fit stops by an error over it.
    return not (format.double_quant or format.kind == "hqq" or name in transposed)


def _patch(
    weight: Tensor,
    places: list[Tensor],
    cached: Tensor,
    format: Format,
    undo: list[tuple[Tensor, Tensor | slice, Tensor]],
) -> None:
    """Requantise in the cache the blocks that hold ``places``; ``undo`` gets what undoes it."""
    flat, target = weight.reshape(-1), cached.view(-1)
    size = blocksize_of(weight, format)
    for entries in block_entries(places, len(flat), size):
        undo.append((target, entries, target[entries].clone()))
        target[entries] = dequantize(quantize_flat(flat[entries], size, format), flat.dtype)


def blocksize_of(weight: Tensor, format: Format) -> int:
    return weight.shape[-1] if format.kind == "int8" else format.blocksize


_CHUNK = 1 << 19  # entries at a time: temporaries that are reused cost less than fresh pages


def block_entries(places: list[Tensor], length: int, size: int) -> list[Tensor | slice]:
    """All entries of the blocks that hold ``places``, in whole blocks.

    The kernel scales a short last block another way, so it comes as a part of its own.
    """
    if any(where.dtype == torch.bool for where in places):
        step = size * max(1, _CHUNK // size)
        return [slice(start, start + step) for start in range(0, length, step)]
    blocks = (torch.cat(places) // size).unique()
    full = length // size
    inside = blocks[blocks < full]
    parts: list[Tensor | slice] = []
    if len(inside):
        parts.append((inside[:, None] * size + torch.arange(size, device=blocks.device)).view(-1))
    if len(inside) < len(blocks):
        parts.append(slice(full * size, None))
    return parts


def quantize_flat(flat: Tensor, size: int, format: Format) -> Quantized:
    """Of whole blocks side by side; the last one of ``nf4`` and ``fp4`` may be short."""
    rows = format.kind == "int8" or format.is_gguf
    found = quantize(flat.view(-1, size) if rows else flat, format)
    return replace(found, blocksize=size, shape=flat.shape)
