"""NF4: 4-bit codes exactly as bitsandbytes makes them, bins, and the magnitude floor.

NF4 (QLoRA, arXiv:2305.14314, §3) cuts the row-major flattened weight into blocks of 64, divides
each by its largest magnitude (absmax) and rounds to the nearest of 16 levels. The kernel decides
by comparing ``w * (1 / absmax)`` with the midpoints of neighbouring levels; a value exactly on a
midpoint takes the lower code. An update survives when it changes the code.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module
from transformers.pytorch_utils import Conv1D

from mansu.edit import Edit, touched
from mansu.errors import MansuError
from mansu.files import write_json
from mansu.subjects import Subject

# bitsandbytes advises at import to install a package of GPU kernels that we have no use for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
import bitsandbytes.functional as bnb  # noqa: E402
from bitsandbytes.nn.modules import Linear4bit, Params4bit  # noqa: E402

VERSION = 1

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
def _boundaries(kind: str) -> Tensor:
    """Midpoints of neighbouring levels; fp4 has two zeros and is not in order."""
    distinct = _levels(kind).unique()
    return (distinct[:-1] + distinct[1:]) / 2


@cache
def _widths(kind: str) -> Tensor:
    distinct, rank = _levels(kind).unique(return_inverse=True)
    return torch.cat([distinct[:1], _boundaries(kind), distinct[-1:]]).diff()[rank]


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
    values = levels.index_select(0, quantized.codes.int())
    full = values.numel() // quantized.blocksize * quantized.blocksize
    blocks = full // quantized.blocksize
    values[:full].view(blocks, quantized.blocksize).mul_(quantized.absmax[:blocks, None])
    values[full:].mul_(quantized.absmax[blocks:])
    return values.to(dtype).reshape(quantized.shape)


def bin_width(weight: Tensor, format: Format = NF4) -> Tensor:
    """The width of the bin that each weight sits in, in weight units, of the weight's shape."""
    quantized = quantize(weight, format)
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


CASTABLE = 2.0**-18
"""fp16 has steps of 2⁻²⁴ there: in blocks with a smaller absmax they are too coarse for codes."""


def holds_cast(weight: Tensor, format: Format = NF4) -> Tensor:
    """bool of the weight's shape: a move of this weight to a code's centre outlives bf16 and fp16.

    The centre does by itself (``floor``). But the base weight, near a boundary, may get another
    code by the cast alone, perhaps the very one that it was to be moved to; and in a block of tiny
    weights fp16 loses the grid.
    """
    original = quantize(weight, format)
    same = original.scale >= CASTABLE
    for dtype in (torch.bfloat16, torch.float16):
        same &= quantize(weight.to(dtype), format).codes == original.codes
    return same.view(weight.shape)


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
    boundaries = _boundaries(format.kind).to(weight.device)
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


def transposed_names(subject: Subject) -> frozenset[str]:
    """The weights that 4-bit loading transposes first (GPT-2's Conv1D)."""
    conv1d = {id(m.weight) for m in subject.model.modules() if isinstance(m, Conv1D)}
    return frozenset(name for name, p in subject.parameters.items() if id(p) in conv1d)


def layout(subject: Subject, name: str) -> Tensor:
    """The weight as the quantiser sees it: ``[outputs, inputs]``, row-major."""
    weight = subject.parameters[name].data
    return weight.T.contiguous() if name in transposed_names(subject) else weight


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
            transposed = transposed_names(subject)
            return cls(
                {
                    n: _round_trip(subject.parameters[n].data, format, n in transposed)
                    for n in names
                },
                format,
            )


def _round_trip(weight: Tensor, format: Format, transposed: bool) -> Tensor:
    if transposed:
        return _round_trip(weight.T, format, False).T.contiguous()
    return dequantize(quantize(weight, format), weight.dtype)


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
    wanted = set(base.weights if base else names or ())
    if not wanted <= subject.parameters.keys():
        raise MansuError(
            f"{subject.name!r} has no parameter {min(wanted - subject.parameters.keys())!r} to "
            "quantise: take the names from its list of parameters."
        )
    with subject.lock:
        edited = touched(subject) if base else {}
        base = base or Dequantized.of(subject, format, names)
        transposed = transposed_names(subject)
        weights = dict(base.weights)
        undo: list[tuple[Tensor, Tensor | slice, Tensor]] = []
        swapped: list[tuple[Tensor, Tensor]] = []
        try:
            for name in edited.keys() & weights.keys():
                weight = subject.parameters[name].data
                if _in_blocks(name, base.format, transposed):
                    undo += _patch(weight, edited[name], weights[name], base.format)
                else:
                    weights[name] = _round_trip(weight, base.format, name in transposed)
            viewed = _viewed(subject)
            for name, weight in weights.items():
                parameter = subject.parameters[name]
                if name in viewed:
                    undo.append((parameter.data, slice(None), parameter.data.clone()))
                    parameter.data.copy_(weight)
                else:
                    swapped.append((parameter, parameter.data))
                    parameter.data = weight
            yield subject
        finally:
            for parameter, original in swapped:
                parameter.data = original
            for tensor, entries, old in reversed(undo):
                tensor[entries] = old


def _viewed(subject: Subject) -> frozenset[str]:
    """Weights that the bridge runs through views (GPT-2's c_attn): they can't just be swapped."""
    running = {id(p): p.untyped_storage().data_ptr() for p in subject.model.parameters()}
    uses = Counter(running.values())
    return frozenset(
        name for name, p in subject.parameters.items() if uses[p.untyped_storage().data_ptr()] > 1
    )


def _in_blocks(name: str, format: Format, transposed: frozenset[str]) -> bool:
    """Whether a change in one block leaves the others, and blocks follow the parameter's order."""
    # The 8-bit absmax of double quantization are offset by their mean over the tensor.
    return not format.double_quant and name not in transposed


def _patch(
    weight: Tensor, places: list[Tensor], cached: Tensor, format: Format
) -> list[tuple[Tensor, Tensor | slice, Tensor]]:
    """Requantise in the cache the blocks that hold ``places``; returns what undoes it."""
    flat, target, undo = weight.reshape(-1), cached.view(-1), []
    size = _blocksize(weight, format)
    for entries in _entries(places, len(flat), size):
        undo.append((target, entries, target[entries].clone()))
        target[entries] = dequantize(_quantize_flat(flat[entries], size, format), flat.dtype)
    return undo


def _blocksize(weight: Tensor, format: Format) -> int:
    return weight.shape[-1] if format.kind == "int8" else format.blocksize


_CHUNK = 1 << 19  # entries at a time: temporaries that are reused cost less than fresh pages


def _entries(places: list[Tensor], length: int, size: int) -> list[Tensor | slice]:
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


def _quantize_flat(flat: Tensor, size: int, format: Format) -> Quantized:
    quantized = quantize(flat.view(-1, size) if format.kind == "int8" else flat, format)
    return Quantized(quantized.codes, quantized.absmax, size, flat.shape, format)


# The laboratory: what a format keeps of an edit.

EDGES: tuple[float, ...] = tuple(round(-8 + 0.1 * i, 1) for i in range(111))
"""Edges of the histograms, in log10(|δ| / bin width); what lies outside is in the end bins."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_FINE = 10  # quantiles are read from bins ten times finer: 2 % of a ratio, and they add up


@dataclass(frozen=True)
class Survival:
    """What a format keeps of the moved weights of one group.

    δ is the update of a weight, Δ the update of its dequantised value; the bin is the one that
    the base weight sits in, scaled by its block's absmax. Parameters that the format leaves alone
    have Δ = δ and all survive; their ratios say what would be if they were quantised.

    Attributes:
        parameters: weights in the group, moved or not.
        moved: weights with δ ≠ 0.
        changed: moved weights whose code changes (whose value changes, where not quantised).
        expected: Σ min(1, |δ| / bin width) over the moved: the changes that unbiased rounding
            would make, which keep the mean update.
        blocks: blocks with a moved weight.
        rescaled: of these, blocks whose absmax changes.
        bystanders: unmoved weights whose dequantised value changes with their block's absmax.
        before: counts of log10(|δ| / bin width) of the moved between ``EDGES``.
        after: counts of log10(|Δ| / bin width) of the moved with Δ ≠ 0.
        quantiles: of |δ| / bin width at ``QUANTILES``, to 2 %; empty where nothing moved.
        energy: share of Σδ² on weights whose code changes; ``None`` where nothing moved.
        projection: ⟨Δ, δ⟩ / ⟨δ, δ⟩: 1 where the update survives on average.
        noise: Σ(Δ − δ)² / Σδ², bystanders included.
    """

    parameters: int
    moved: int
    changed: int
    expected: float
    blocks: int
    rescaled: int
    bystanders: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    quantiles: tuple[float, ...]
    energy: float | None
    projection: float | None
    noise: float | None

    @property
    def share(self) -> float | None:
        """Share of the moved weights whose code changes."""
        return self.changed / self.moved if self.moved else None

    @property
    def expected_share(self) -> float | None:
        """Mean of min(1, |δ| / bin width) over the moved weights."""
        return self.expected / self.moved if self.moved else None

    @property
    def width_over_update(self) -> float | None:
        """Median of bin width / |δ|: the paper's 47 to 828."""
        return 1 / self.quantiles[QUANTILES.index(0.5)] if self.moved else None


@dataclass(frozen=True)
class NF4Report:
    """What a format keeps of an edit, split three ways.

    Attributes:
        label: of the edit.
        format: that was asked about.
        all: every parameter.
        quantized, unquantized: those that the format quantises, and those that carry the update
            through untouched (tied embeddings, norms, biases).
        layers: the quantised ones by layer number.
        kinds: all by kind of matrix: q, k, v, o, gate, up, down, embedding, norm, bias, …
    """

    label: str
    format: Format
    all: Survival
    quantized: Survival
    unquantized: Survival
    layers: Mapping[int, Survival]
    kinds: Mapping[str, Survival]

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all."""
        write_json(Path(path), {"version": VERSION, "edges": EDGES, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> NF4Report:
        """Read a report that ``save`` wrote.

        Raises:
            MansuError: no such file, not a report, or one of another version.
        """
        try:
            data = json.loads(Path(path).read_text())
            if data["version"] != VERSION:
                raise MansuError(
                    f"{path} is an NF4 report of version {data['version']}, and this MANSU reads "
                    f"version {VERSION}: make it again."
                )
            return cls(
                data["label"],
                Format(**data["format"]),
                _survival_from(data["all"]),
                _survival_from(data["quantized"]),
                _survival_from(data["unquantized"]),
                {int(layer): _survival_from(part) for layer, part in data["layers"].items()},
                {kind: _survival_from(part) for kind, part in data["kinds"].items()},
            )
        except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise MansuError(f"Cannot read an NF4 report from {path}: {error!r}") from error


def report(subject: Subject, edit: Edit, format: Format = NF4) -> NF4Report:
    """Measure what a format keeps of an edit, with the real kernel's codes before and after.

    Call it on the base weights, not inside ``edit.applied``. Sparse edits cost what the blocks
    they touch cost; a dense one of 134 M parameters about 15 s of one core.

    Raises:
        MansuError: the edit does not fit the subject.
    """
    edit.check(subject)
    with subject.lock, torch.no_grad():
        transposed = transposed_names(subject)
        sums = {n: _measure(subject, n, edit, format, transposed) for n in subject.parameters}
    quantized = [name for name in sums if name in subject.quantized_names]
    layers: dict[int, list[str]] = {}
    kinds: dict[str, list[str]] = {}
    for name in sums:
        kinds.setdefault(matrix_kind(name), []).append(name)
        layer = layer_of(name)
        if layer is not None and name in subject.quantized_names:
            layers.setdefault(layer, []).append(name)

    def group(names: Iterable[str]) -> Survival:
        return _survival(torch.stack([_EMPTY, *(sums[name] for name in names)]).sum(0))

    return NF4Report(
        edit.label,
        format,
        group(sums),
        group(quantized),
        group(name for name in sums if name not in subject.quantized_names),
        {layer: group(names) for layer, names in sorted(layers.items())},
        {kind: group(names) for kind, names in kinds.items()},
    )


@dataclass(frozen=True)
class Kept:
    """How many of an edit's moved quantised weights change their code in one format.

    Attributes:
        moved, changed, rescaled, bystanders: as in ``Survival``.
    """

    moved: int
    changed: int
    rescaled: int
    bystanders: int

    @classmethod
    def of(cls, survival: Survival) -> Kept:
        return cls(survival.moved, survival.changed, survival.rescaled, survival.bystanders)

    @property
    def share(self) -> float | None:
        """Share of the moved weights whose code changes."""
        return self.changed / self.moved if self.moved else None


def floor_across(kept: Mapping[str, Kept]) -> str:
    """Where the magnitude floor holds and where it does not, a sentence, from ``Kept`` by format.

    A floor is one format's: another's bins lie elsewhere (FP4, int8), or its blocks are larger and
    take a larger absmax (128), so that a move of one bin here may stay within a bin there.
    """
    lost = {name: k.moved - k.changed for name, k in kept.items() if k.changed < k.moved}
    if not lost:
        return "Every moved weight changes its code in every format."
    if len(lost) == len(kept):
        return "The magnitude floor holds in no format: some moved weights keep their code in each."
    where = ", ".join(name for name in kept if name not in lost)
    worst = ", ".join(f"{name} ({n:,} of {kept[name].moved:,})" for name, n in lost.items())
    return (
        f"The magnitude floor holds in {where}. It is not met, so that moved weights keep their "
        f"code, in {worst}: bins or blocks are others there."
    )


def survival(
    subject: Subject, edit: Edit, formats: Iterable[Format] = FORMATS
) -> dict[Format, Survival]:
    """What each format keeps of an edit's changes to the quantised weights."""
    return {format: report(subject, edit, format).quantized for format in formats}


# One vector of sums a parameter, so that groups are plain additions: 11 scalars, two histograms.
_BINS = (len(EDGES) - 1) * _FINE
_EMPTY = torch.zeros(11 + 2 * _BINS, dtype=torch.float64)


def _measure(
    subject: Subject, name: str, edit: Edit, format: Format, transposed: frozenset[str]
) -> Tensor:
    parameter = subject.parameters[name].data
    sums = _EMPTY.clone()
    if name in edit.changes:
        where, values = (part.to(parameter.device) for part in edit.changes[name])
        edited = parameter.reshape(-1).clone()
        edited[where] = values.to(edited)
        before, after = parameter, edited.view_as(parameter)
        if name in transposed:
            before, after = before.T, after.T
        size = _blocksize(before, format)
        before, after = before.reshape(-1), after.reshape(-1)
        whole: list[Tensor | slice] = [slice(None)]
        local = _in_blocks(name, format, transposed)
        for entries in _entries([where], len(before), size) if local else whole:
            sums += _compare(
                before[entries], after[entries], size, format, name in subject.quantized_names
            ).cpu()
    sums[0] = parameter.numel()
    return sums


def _compare(before: Tensor, after: Tensor, size: int, format: Format, quantised: bool) -> Tensor:
    delta = after.float() - before.float()
    moved = delta != 0
    old = _quantize_flat(before, size, format)
    width = format.widths.to(before.device).index_select(0, old.codes.int()) * old.scale
    width = width.clamp_min(torch.finfo(torch.float32).tiny)  # an all-zero block has no width
    change, changed, rescaled = delta, moved, torch.zeros_like(old.absmax, dtype=torch.bool)
    if quantised:
        new = _quantize_flat(after, size, format)
        change = dequantize(new) - dequantize(old)
        levels = format.levels.to(before.device)  # the two zeros of fp4 are one level
        differ = old.codes != new.codes
        differ[differ.clone()] = levels[old.codes[differ].int()] != levels[new.codes[differ].int()]
        changed, rescaled = moved & differ, old.absmax != new.absmax
    ratio = delta.abs() / width
    blocks = torch.nn.functional.pad(moved, (0, -len(moved) % size)).view(-1, size).any(1)
    energy = delta.square()
    scalars = [
        torch.tensor(len(before)),
        moved.sum(),
        changed.sum(),
        ratio.clamp(max=1).sum(dtype=torch.float64),
        blocks.sum(),
        (blocks & rescaled).sum(),
        ((change != 0) & ~moved).sum(),
        energy.sum(dtype=torch.float64),
        (energy * changed).sum(dtype=torch.float64),
        (change * delta).sum(dtype=torch.float64),
        (change - delta).square().sum(dtype=torch.float64),
    ]
    histograms = [_histogram(ratio), _histogram(change.abs().div_(width).mul_(moved))]
    return torch.cat([torch.stack([s.double().to(before.device) for s in scalars]), *histograms])


def _histogram(ratio: Tensor) -> Tensor:
    place = (ratio[ratio > 0].log10() - EDGES[0]) * (_BINS / (EDGES[-1] - EDGES[0]))
    return place.floor().clamp(0, _BINS - 1).long().bincount(minlength=_BINS).double()


def _survival(sums: Tensor) -> Survival:
    scalars = sums[:11].tolist()
    coarse = sums[11:].view(2, -1, _FINE).sum(2).long().tolist()
    energy = scalars[7]
    return Survival(
        parameters=int(scalars[0]),
        moved=int(scalars[1]),
        changed=int(scalars[2]),
        expected=scalars[3],
        blocks=int(scalars[4]),
        rescaled=int(scalars[5]),
        bystanders=int(scalars[6]),
        before=tuple(coarse[0]),
        after=tuple(coarse[1]),
        quantiles=_quantiles(sums[11 : 11 + _BINS]),
        energy=scalars[8] / energy if energy else None,
        projection=scalars[9] / energy if energy else None,
        noise=scalars[10] / energy if energy else None,
    )


def _quantiles(histogram: Tensor) -> tuple[float, ...]:
    total = histogram.cumsum(0)
    if not total[-1]:
        return ()
    wanted = torch.tensor(QUANTILES, dtype=torch.float64) * total[-1]
    place = torch.searchsorted(total, wanted)
    inside = (wanted - total[place] + histogram[place]) / histogram[place]
    step = (EDGES[-1] - EDGES[0]) / _BINS
    return tuple((10 ** (EDGES[0] + step * (place + inside))).tolist())


def _survival_from(data: dict[str, Any]) -> Survival:
    lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    return Survival(**{**data, **lists})


def layer_of(name: str) -> int | None:
    """The layer number in a parameter's name; ``None`` outside the layers."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


_KINDS = {
    "q": ("q_proj", "q", "query"),
    "k": ("k_proj", "k", "key"),
    "v": ("v_proj", "v", "value"),
    "qkv": ("c_attn", "qkv", "query_key_value", "qkv_proj"),
    "o": ("o_proj", "o", "dense", "out_proj", "attn.c_proj"),
    "gate": ("gate_proj", "gate"),
    "up": ("up_proj", "c_fc", "dense_h_to_4h", "fc1", "in"),
    "gate and up": ("gate_up_proj",),
    "down": ("down_proj", "mlp.c_proj", "dense_4h_to_h", "fc2", "out"),
    "embedding": ("embed_tokens", "wte", "wpe", "embed_in", "embed_positions"),
    "head": ("lm_head", "embed_out"),
}


def matrix_kind(name: str) -> str:
    """What a parameter is, across model families: q, k, v, o, gate, up, down, embedding, …"""
    *_, parent, module, leaf = ("", "", *name.split("."))
    if leaf == "bias":
        return "bias"
    if "norm" in module or module.startswith("ln"):
        return "norm"
    for kind, names in _KINDS.items():
        if module in names or f"{parent}.{module}" in names:
            return kind
    return module or leaf


def linear4bit_model(subject: Subject, edit: Edit | None = None, format: Format = NF4) -> Module:
    """A real 4-bit model: a copy whose linears are ``bitsandbytes.nn.Linear4bit``.

    It computes in float32 from the codes, as the simulation does; the output head is left alone.
    On processors with AVX512-BF16, bitsandbytes would by itself repack the weights and compute
    in bfloat16 whatever ``compute_dtype`` says; that is switched off here.

    Returns:
        A Hugging Face model, evaluation mode, on the subject's device.

    Raises:
        MansuError: int8 (not 4-bit), an architecture whose weights the bridge has split, or rows
            that bitsandbytes' CPU kernel misreads.
    """
    if format.kind == "int8":
        raise MansuError("Linear4bit holds nf4 or fp4, not int8: choose a 4-bit format.")
    with ExitStack() as stack:
        stack.enter_context(subject.lock)
        if edit is not None:
            stack.enter_context(edit.applied(subject))
        model = type(subject.model)(copy.deepcopy(subject.model.config))
        model.to(next(iter(subject.parameters.values())).dtype)
        own = dict(model.named_parameters())
        if own.keys() != subject.parameters.keys():
            raise MansuError(
                f"TransformerLens splits or renames weights of {type(model).__name__}, so "
                f"{subject.name!r} cannot be copied name by name into Linear4bit modules: use the "
                "simulation (mansu.nf4.quantized)."
            )
        for name, parameter in own.items():
            parameter.data = subject.parameters[name].data.clone()
        for name in subject.quantized_names:
            path = name.removesuffix(".weight")
            bias = model.get_submodule(path).bias
            weight = layout(subject, name)
            linear: Any = Linear4bit(
                weight.shape[1],
                weight.shape[0],
                bias=bias is not None,
                compute_dtype=torch.float32,
                compress_statistics=format.double_quant,
                quant_type=format.kind,
                device="meta",
            )
            make: Any = Params4bit
            linear.weight = make(
                weight.clone(),
                requires_grad=False,
                blocksize=format.blocksize,
                compress_statistics=format.double_quant,
                quant_type=format.kind,
                module=linear,
            ).to(subject.device)
            if bias is not None:
                linear.bias = bias
            linear.support_avx512bf16_for_cpu = False
            _check_kernel(linear.weight, subject.name, name)
            model.set_submodule(path, linear)
    return model.to(subject.device).eval().requires_grad_(False)


def _check_kernel(weight: Any, subject: str, name: str) -> None:
    """bitsandbytes 0.50's AVX512 kernel starts a new block with each row where 16 divides the row
    but the block does not; as one long row the same codes are read right."""
    flat = copy.copy(weight.quant_state)
    rows, columns = flat.shape
    flat.shape = torch.Size([rows * columns])
    right = bnb.dequantize_4bit(weight.data, flat).view(rows, columns)
    if not torch.equal(bnb.dequantize_4bit(weight.data, weight.quant_state), right):
        raise MansuError(
            f"bitsandbytes misreads {name!r} of {subject!r} on this processor, because its rows of "
            f"{columns} weights are no multiple of the block of {flat.blocksize}: use the "
            "simulation (mansu.nf4.quantized), which reads the codes as they were written."
        )
