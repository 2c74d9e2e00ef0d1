"""What a format keeps of an edit: codes that change, blocks rescaled, updates against bins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mansu.errors import DamagedError
from mansu.files import parsed_json, write_json
from mansu.quant.codes import Quantized, dequantize, double_quantized, quantize
from mansu.quant.floor import centers
from mansu.quant.formats import FORMATS, NF4, Format
from mansu.quant.swap import block_entries, in_blocks, quantize_flat
from mansu.subjects.edit import Edit, write_at
from mansu.subjects.subject import Subject
from mansu.subjects.weights import kind_of, layer_of, transposed_names

VERSION = 1


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
        rescaled: of these, blocks whose absmax (in Q4_1: or offset) changes.
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
    def update_over_width(self) -> float | None:
        """Median of |δ| / bin width over the moved weights."""
        return self.quantiles[QUANTILES.index(0.5)] if self.moved else None

    def share_above(self, exponent: float) -> float | None:
        """Share of the moved weights whose |δ| / bin width is above 10 to this power.

        To the next higher of ``EDGES``, where it lies between two.
        """
        first = next((i for i, e in enumerate(EDGES) if e >= exponent - 1e-9), len(self.before))
        return sum(self.before[first:]) / self.moved if self.moved else None

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

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, "edges": EDGES, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NF4Report:
        """The report that ``to_json`` gave.

        Raises:
            DamagedError: it is of another version.
        """
        if data["version"] != VERSION:
            raise DamagedError(
                f"An NF4 report is of version {data['version']}, and this MANSU reads version "
                f"{VERSION}: make it again."
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

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> NF4Report:
        """Read a report that ``save`` wrote.

        Raises:
            DamagedError: no such file, not a report, or one of another version.
        """
        try:
            return cls.from_json(parsed_json(Path(path).read_text(encoding="utf-8")))
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise DamagedError(f"Cannot read an NF4 report from {path}: {error!r}") from error


def report(subject: Subject, edit: Edit, format: Format = NF4) -> NF4Report:
    """Measure what a format keeps of an edit, with the real kernel's codes before and after.

    Call it on the base weights, not inside ``edit.applied``. Sparse edits cost what the blocks
    they touch cost; a dense one of 134 M parameters some seconds.

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
        kinds.setdefault(kind_of(subject, name), []).append(name)
        layer = layer_of(subject, name)
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
        return "Every moved weight changes its code in each of these formats."
    if len(lost) == len(kept):
        return "The magnitude floor holds in none of these: moved weights keep their code in each."
    where = ", ".join(name for name in kept if name not in lost)
    worst = ", ".join(f"{name} ({n:,} of {kept[name].moved:,})" for name, n in lost.items())
    return (
        f"The magnitude floor holds in {where}. It is not met, so that moved weights keep their "
        f"code, in {worst}: bins or blocks are others there."
    )


def survival_by_format(
    subject: Subject, edit: Edit, formats: Iterable[Format] = FORMATS
) -> dict[Format, Survival]:
    """What each format keeps of an edit's changes to the quantised weights."""
    return {format: report(subject, edit, format).quantized for format in formats}


def kept_by_format(
    subject: Subject, edit: Edit, formats: Iterable[Format] = FORMATS
) -> dict[Format, Kept]:
    """``Kept`` of the linear maps, as ``survival_by_format`` has them, without sums and histograms.

    Formats that differ in their absmax only share their codes. GGUF stores embeddings, too, in
    another format, and HQQ has no codes here: the first are not counted, the second not asked.

    Raises:
        MansuError: the edit does not fit the subject.
    """
    edit.check(subject)
    formats = list(formats)
    sums = {format: [0, 0, 0, 0] for format in formats}
    alike: dict[Format, list[Format]] = {}
    for format in formats:
        alike.setdefault(replace(format, double_quant=False), []).append(format)
    with subject.lock, torch.no_grad():
        transposed = transposed_names(subject)
        for name in sorted(edit.changes.keys() & set(subject.quantized_names)):
            pair = _flat(subject, name, edit, transposed)
            for plain, some in alike.items():
                whole = any(not in_blocks(name, format, transposed) for format in some)
                for part in _touched(pair, plain, whole):
                    for format, counts in _kept(*part, plain, some).items():
                        sums[format] = [a + b for a, b in zip(sums[format], counts, strict=True)]
    return {format: Kept(*counts) for format, counts in sums.items()}


def changed_codes(subject: Subject, edit: Edit, name: str, format: Format = NF4) -> Tensor:
    """Which weights of a parameter an edit moves to another code.

    Returns:
        bool, the parameter's shape; where the format does not quantise the parameter, the weights
        that move.

    Raises:
        MansuError: the edit does not fit the subject.
    """
    edit.check(subject)
    shape = subject.parameters[name].shape
    if name not in edit.changes:
        return torch.zeros(shape, dtype=torch.bool)
    with subject.lock, torch.no_grad():
        transposed = transposed_names(subject)
        flat = _flat(subject, name, edit, transposed)
        found = flat.before != flat.after
        if name in subject.quantized_names:
            differ = torch.zeros_like(found)
            size = flat.row if format.kind == "int8" else format.blocksize
            for entries in _entries(flat, size, not in_blocks(name, format, transposed)):
                old, new = (
                    quantize_flat(x[entries], size, format) for x in (flat.before, flat.after)
                )
                here = torch.zeros_like(differ[entries])
                here[_differing(old, new)] = True
                differ[entries] = here
            found &= differ
    found = found.cpu()
    return found.view(shape[::-1]).T if name in transposed else found.view(shape)


def at_centers(subject: Subject, edit: Edit, format: Format = NF4) -> bool:
    """Whether every moved weight lies at the centre of a code, where the magnitude floor puts it.

    Of a part of the way there, that is no longer so. An edit that moves nothing is not there.

    Raises:
        MansuError: the edit does not fit the subject.
    """
    edit.check(subject)
    if not edit.changes.keys() <= set(subject.quantized_names):
        return False
    with subject.lock, torch.no_grad():
        transposed = transposed_names(subject)
        for name in edit.changes:
            flat = _flat(subject, name, edit, transposed)
            where = (flat.before != flat.after).nonzero()[:, 0]
            before, after = flat.before.view(-1, flat.row), flat.after.view(-1, flat.row)
            codes = quantize(after, format).codes.view(-1)[where]
            if not torch.equal(centers(before, where, codes, format), flat.after[where]):
                return False
    return bool(edit.n_moved)


def _kept(
    before: Tensor, after: Tensor, size: int, plain: Format, formats: Sequence[Format]
) -> dict[Format, tuple[int, int, int, int]]:
    moved = before != after
    old, new = quantize_flat(before, size, plain), quantize_flat(after, size, plain)
    differ = _differing(old, new)
    blocks = torch.nn.functional.pad(moved, (0, -len(moved) % size)).view(-1, size).any(1)
    others = (~moved).nonzero()[:, 0]
    found = {}
    for format in formats:
        pair = [double_quantized(q) if format.double_quant else q for q in (old, new)]
        a, b = (_values(q, others) for q in pair)
        rescaled = blocks & _rescaled(*pair)
        counts = moved.sum(), moved[differ].sum(), rescaled.sum(), (a != b).sum()
        found[format] = tuple(int(count) for count in counts)
    return found


def _values(quantized: Quantized, places: Tensor) -> Tensor:
    """What the codes of some places stand for."""
    block = places // quantized.blocksize
    levels = quantized.format.levels.to(places.device)
    found = levels[quantized.codes[places].int()] * quantized.absmax[block]
    return found if quantized.offset is None else found + quantized.offset[block]


def _rescaled(old: Quantized, new: Quantized) -> Tensor:
    """bool ``[blocks]``: their codes stand for other values than before."""
    found = old.absmax != new.absmax
    if old.offset is not None and new.offset is not None:
        found |= old.offset != new.offset
    return found


def _differing(old: Quantized, new: Quantized) -> Tensor:
    """int64: the places whose level differs. (The two zeros of fp4 are one level.)"""
    places = (old.codes != new.codes).nonzero()[:, 0]
    levels = old.format.levels.to(old.codes.device)
    return places[levels[old.codes[places].int()] != levels[new.codes[places].int()]]


# One vector of sums a parameter, so that groups are plain additions: 11 scalars, two histograms.
_BINS = (len(EDGES) - 1) * _FINE


_EMPTY = torch.zeros(11 + 2 * _BINS, dtype=torch.float64)


def _measure(
    subject: Subject, name: str, edit: Edit, format: Format, transposed: frozenset[str]
) -> Tensor:
    parameter = subject.parameters[name].data
    sums = _EMPTY.clone()
    if name in edit.changes:
        whole = not in_blocks(name, format, transposed)
        for part in _touched(_flat(subject, name, edit, transposed), format, whole):
            sums += _compare(*part, format, name in subject.quantized_names).cpu()
    sums[0] = parameter.numel()
    return sums


@dataclass(frozen=True)
class _Flat:
    """A weight before and after an edit, flat as the quantiser sees it.

    Attributes:
        where: the places of the moved, as in ``Edit.changes``; of the parameter's own order.
        row: weights a row.
    """

    before: Tensor
    after: Tensor
    where: Tensor
    row: int


def _flat(subject: Subject, name: str, edit: Edit, transposed: frozenset[str]) -> _Flat:
    parameter = subject.parameters[name].data
    where, values = (part.to(parameter.device) for part in edit.changes[name])
    before, after = parameter, parameter.clone(memory_format=torch.contiguous_format)
    write_at(after, where, values)
    if name in transposed:
        before, after = before.T, after.T
    return _Flat(before.reshape(-1), after.reshape(-1), where, before.shape[-1])


def _touched(flat: _Flat, format: Format, whole: bool) -> Iterator[tuple[Tensor, Tensor, int]]:
    """A weight before and after the edit, and its block size.

    In parts: the blocks that the edit touches, or with ``whole`` all of it.
    """
    size = flat.row if format.kind == "int8" else format.blocksize
    for entries in _entries(flat, size, whole):
        yield flat.before[entries], flat.after[entries], size


def _entries(flat: _Flat, size: int, whole: bool) -> Iterable[Tensor | slice]:
    return [slice(None)] if whole else block_entries([flat.where], len(flat.before), size)


def _compare(before: Tensor, after: Tensor, size: int, format: Format, quantised: bool) -> Tensor:
    delta = after.float() - before.float()
    moved = delta != 0
    old = quantize_flat(before, size, format)
    width = format.widths.to(before.device).index_select(0, old.codes.int()) * old.scale
    width = width.clamp_min(torch.finfo(torch.float32).tiny)  # an all-zero block has no width
    change, changed, rescaled = delta, moved, torch.zeros_like(old.absmax, dtype=torch.bool)
    if quantised:
        new = quantize_flat(after, size, format)
        change = dequantize(new) - dequantize(old)
        differ = torch.zeros_like(moved)
        differ[_differing(old, new)] = True
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
    place = (ratio.log10() - EDGES[0]) * (_BINS / (EDGES[-1] - EDGES[0]))
    counts = place.clamp_(0, _BINS - 1).int().bincount(minlength=_BINS).double()
    counts[0] -= (ratio == 0).sum()  # no ratio of nothing
    return counts


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
