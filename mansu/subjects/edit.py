"""Edits: a sparse change of parameters, applied and reverted bit for bit.

An edit lists, by Hugging Face parameter name, which entries take which new values. It never
touches the base weights except inside ``with edit.applied(subject):``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import Module

from mansu.errors import BadInputError, DamagedError, MansuError, MismatchError
from mansu.files import parsed_json, reading, save_values
from mansu.interrupts import put_back
from mansu.show.table import Shown, Table
from mansu.subjects.subject import Subject

VERSION = 3
READ = (1, 2, 3)  # of files; in the first a mask is a byte an entry, up to the second indices int64


# Which edits are applied to which model now, so that NF4 requantises only the blocks they touch.
_applied: WeakKeyDictionary[Module, list[Edit]] = WeakKeyDictionary()


@dataclass(frozen=True, repr=False, eq=False)
class Edit(Shown):
    """New values for some entries of some parameters.

    Attributes:
        changes: parameter name → ``(where, values)``. ``where`` is int64 ``[n]`` of indices into
            the row-major flattened parameter, or, where many entries move, a bool mask over the
            whole flattened parameter (smaller than indices); ``values`` is ``[n]``, the new
            values in the order of ``where``. Indices are kept sorted, and both on the CPU, whatever
            the device they were made on: so they can be joined with what was read from a file.
        label: what made it, for people.
        meta: JSON values that say how.

    Raises:
        MansuError: places that are no indices and no mask, indices and values of different
            lengths, an index given twice, or a value that is not finite.
    """

    changes: Mapping[str, tuple[Tensor, Tensor]]
    label: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        changes = {
            name: _sorted(name, where.cpu(), values.cpu())
            for name, (where, values) in self.changes.items()
        }
        for name, (_, values) in changes.items():
            if not bool(torch.isfinite(values).all()):
                raise BadInputError(
                    f"The edit {self.label!r} gives {name!r} values that are not finite (NaN or "
                    "infinite)."
                )
        object.__setattr__(self, "changes", {n: c for n, c in changes.items() if len(c[1])})

    @classmethod
    def between(
        cls,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        label: str = "",
        meta: Mapping[str, Any] | None = None,
    ) -> Edit:
        """The edit that turns the dense parameters ``before`` into ``after``.

        Args:
            before: parameter name → tensor, usually ``subject.parameters``.
            after: the same for those that may have changed; same shapes.

        Raises:
            MansuError: ``after`` has a parameter that ``before`` lacks, or of another shape.
        """
        changes = {}
        for name, new in after.items():
            if name not in before:
                raise MansuError(f"The parameter {name!r} does not exist in the model before.")
            old = before[name].detach()
            if old.shape != new.shape:
                raise MansuError(
                    f"The parameter {name!r} has shape {tuple(old.shape)} before and "
                    f"{tuple(new.shape)} after: an edit keeps shapes."
                )
            new = new.detach().to(old.device).reshape(-1)
            moved = new != old.reshape(-1)
            many = 8 * int(moved.sum()) > moved.numel()  # a mask takes 1 byte, an index 8
            changes[name] = (moved if many else moved.nonzero().flatten(), new.masked_select(moved))
        return cls(changes, label, dict(meta or {}))

    @property
    def n_moved(self) -> int:
        """How many parameters take a new value."""
        return sum(len(values) for _, values in self.changes.values())

    def table(self) -> Table:
        """The ten parameters with most moves."""
        moved = {name: len(values) for name, (_, values) in self.changes.items()}
        most = sorted(moved, key=lambda name: -moved[name])[:10]
        caption = f"{self.label or 'edit'}: {self.n_moved:,} weights moved in {len(moved)} tensors"
        return Table(("Tensor", "Moved"), [(name, f"{moved[name]:,}") for name in most], caption)

    def fraction(self, subject: Subject) -> float:
        """``n_moved`` as a fraction of all the subject's parameters."""
        return self.n_moved / subject.n_parameters

    def check(self, subject: Subject) -> None:
        """Refuse a subject that the edit was not made for.

        Raises:
            MismatchError: it was made on other weights, changes what this subject has not, or has
                values that are infinite in this subject's dtype.
        """
        made_on = self.meta.get("fingerprint", subject.fingerprint)
        if made_on != subject.fingerprint:
            raise MismatchError(
                f"The edit {self.label!r} was made on other weights ({made_on}) than "
                f"{subject.name!r} has ({subject.fingerprint}): apply it to the model it was made "
                "for."
            )
        for name, (where, values) in self.changes.items():
            if name not in subject.parameters:
                raise MismatchError(
                    f"The edit {self.label!r} changes {name!r}, which {subject.name!r} does not "
                    "have: apply it to the model it was made for."
                )
            size = subject.parameters[name].numel()
            is_mask = where.dtype == torch.bool
            ends = (0, size - 1) if is_mask else (int(where[0]), int(where[-1]))
            if ends[0] < 0 or ends[1] >= size or (is_mask and len(where) != size):
                raise MismatchError(
                    f"The edit {self.label!r} does not fit {name!r} of {subject.name!r}, which has "
                    f"{size} entries: apply it to the model it was made for."
                )
            dtype = subject.parameters[name].dtype
            if values.dtype != dtype and not bool(torch.isfinite(values.to(dtype)).all()):
                raise MismatchError(
                    f"The edit {self.label!r} gives {name!r} values that are infinite as {dtype}, "
                    f"which {subject.name!r} has: make it again with smaller ones."
                )

    @contextmanager
    def applied(self, subject: Subject) -> Iterator[Subject]:
        """The subject with this edit, inside the block only.

        Holds ``subject.lock``. The old values come back bit for bit, also after an exception.
        Edits nest: the inner one starts from the outer one's values.

        Raises:
            MansuError: the edit does not fit this subject.
        """
        self.check(subject)
        with subject.lock:
            stack = _applied.setdefault(subject.model, [])
            depth = len(stack)
            kept: list[tuple[Tensor, Tensor, Tensor]] = []

            def undo() -> None:
                for parameter, where, old in reversed(kept):
                    write_at(parameter, where, old)
                del stack[depth:]

            try:
                stack.append(self)
                for name, (where, values) in self.changes.items():
                    parameter = subject.parameters[name]
                    where = where.to(parameter.device)
                    kept.append((parameter, where, parameter.data.reshape(-1)[where]))
                    write_at(parameter, where, values)
                yield subject
            finally:
                put_back(undo)

    def delta(self, subject: Subject) -> dict[str, tuple[Tensor, Tensor]]:
        """Parameter name → ``(where, new − current)``, from the subject's current values."""
        self.check(subject)
        deltas = {}
        for name, (where, values) in self.changes.items():
            current = subject.parameters[name].data.reshape(-1)[where.to(subject.device)]
            deltas[name] = (where, values.to(current) - current)
        return deltas

    def scaled(self, subject: Subject, share: float) -> Edit:
        """The edit that takes each weight ``share`` of the way, from its current value."""
        changes = {
            name: (where, values.to(delta) - (1 - share) * delta)
            for (name, (where, delta)), (_, values) in zip(
                self.delta(subject).items(), self.changes.values(), strict=True
            )
        }
        return Edit(changes, f"{share:g} × {self.label}", {**self.meta, "scaled": share})

    def thinned(self, share: float, seed: int = 0) -> Edit:
        """The edit with a random ``share`` of its moves; a smaller share is part of a larger."""
        generator = torch.Generator().manual_seed(seed)
        changes = {}
        for name, (where, values) in self.changes.items():
            places = where.nonzero().flatten() if where.dtype == torch.bool else where
            keep = torch.rand(len(values), generator=generator).to(values.device) < share
            changes[name] = (places[keep.to(places.device)], values[keep])
        return Edit(changes, f"{share:.0%} of {self.label}", {**self.meta, "thinned": share})

    def then(self, other: Edit, label: str | None = None) -> Edit:
        """One edit with the effect of this one followed by ``other``, whose values win.

        Raises:
            MismatchError: the two are of models with other weights.
        """
        of = [each.meta.get("fingerprint") for each in (self, other)]
        if None not in of and of[0] != of[1]:
            raise MismatchError(
                f"{self.label!r} and {other.label!r} are edits of models with other weights "
                f"({of[0]}, {of[1]}): an edit of both would be one of neither."
            )
        changes = dict(self.changes)
        for name, change in other.changes.items():
            changes[name] = _merge(changes[name], change) if name in changes else change
        label = f"{self.label} + {other.label}" if label is None else label
        return Edit(changes, label, {**self.meta, **other.meta})

    def save(self, path: str | Path, of: Mapping[str, str] | None = None) -> None:
        """Write one safetensors file; label and meta are JSON in its header. Whole or absent.

        Args:
            of: what it was made of, as ``files.save_values`` has it.

        Raises:
            StorageError: it cannot be written.
        """
        path = Path(path)
        tensors, sizes = {}, {}
        for name, (where, values) in self.changes.items():
            where = where.cpu().contiguous()
            if where.dtype == torch.bool:
                sizes[name] = len(where)
                where = torch.from_numpy(np.packbits(where.numpy()))
            elif len(where) and int(where[-1]) < 2**31:  # a third of the file
                where = where.int()
            tensors[f"{name}/where"] = where
            tensors[f"{name}/values"] = values.cpu().contiguous()
        header = {"version": VERSION, "label": self.label, "meta": dict(self.meta), "sizes": sizes}
        save_values(path, tensors, header, of, name="mansu.edit")

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read an edit that ``save`` wrote.

        Raises:
            NotMeasuredError: no such file.
        DamagedError: it is not an edit, damaged, or one of another version.
        """
        with reading(Path(path)):
            with safe_open(str(path), framework="pt") as file:
                header = _header(path, file.metadata())
                keys = list(file.keys())
                names = [k.removesuffix("/values") for k in keys if k.endswith("/values")]
                changes = {
                    n: (file.get_tensor(f"{n}/where"), file.get_tensor(f"{n}/values"))
                    for n in names
                }
                for name, size in header.get("sizes", {}).items():
                    bits, values = changes[name]
                    if bits.dtype != torch.uint8 or not 0 <= size <= 8 * len(bits) < size + 8:
                        raise ValueError(f"the mask of {name} has not {size} entries")
                    mask = np.unpackbits(bits.numpy(), count=size).view(np.bool_)
                    changes[name] = torch.from_numpy(mask), values
                for name, (where, values) in changes.items():
                    if where.dtype == torch.int32:
                        changes[name] = where.long(), values
            return cls(changes, str(header["label"]), dict(header["meta"]))

    @staticmethod
    def meta_of(path: str | Path) -> dict[str, Any]:
        """``meta`` of an edit that ``save`` wrote, without its weights.

        Raises:
            As ``load``.
        """
        with reading(Path(path)), safe_open(str(path), framework="pt") as file:
            return dict(_header(path, file.metadata())["meta"])


def _header(path: str | Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """What ``save`` wrote beside the tensors: label, meta and sizes."""
    header = parsed_json((metadata or {}).get("mansu.edit", "null"))
    if header is None:
        raise DamagedError(f"{path} is a safetensors file but holds no MANSU edit.")
    if header["version"] not in READ:
        raise DamagedError(
            f"{path} is an edit of version {header['version']}, and this MANSU reads version "
            f"{VERSION}: make it again."
        )
    return header


def touched(subject: Subject) -> dict[str, list[Tensor]]:
    """Parameter name → the ``where`` of each edit that is applied to the subject now."""
    places: dict[str, list[Tensor]] = {}
    for edit in _applied.get(subject.model, []):
        for name, (where, _) in edit.changes.items():
            places.setdefault(name, []).append(where)
    return places


def _sorted(name: str, where: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    if where.dtype not in (torch.bool, torch.int32, torch.int64):
        raise MansuError(
            f"The edit of {name!r} gives its places as {where.dtype}: give int64 indices or a bool "
            "mask."
        )
    is_mask = where.dtype == torch.bool
    count = int(where.sum()) if is_mask else len(where)
    if values.shape != (count,) or where.ndim != 1:
        raise MansuError(
            f"The edit of {name!r} gives {count} places and values of shape {tuple(values.shape)}: "
            "give one value a place, both flat."
        )
    if is_mask or bool((where[1:] > where[:-1]).all()):
        return where, values
    where, order = where.to(torch.int64).sort()
    if not bool((where[1:] > where[:-1]).all()):
        raise MansuError(f"The edit of {name!r} gives the same entry twice.")
    return where, values[order.to(values.device)]


def _merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    masks = [where for where, _ in (first, second) if where.dtype == torch.bool]
    if masks:
        mask = torch.zeros_like(masks[0])
        scratch = torch.empty(len(mask), dtype=first[1].dtype, device=mask.device)
        for where, values in (first, second):
            mask[where] = True
            scratch[where] = values.to(scratch)
        return mask, scratch[mask]
    where, place = torch.cat([first[0], second[0]]).unique(return_inverse=True)
    merged = torch.empty(len(where), dtype=first[1].dtype, device=where.device)
    merged[place[: len(first[0])]] = first[1]
    merged[place[len(first[0]) :]] = second[1].to(merged)
    return where, merged


def write_at(parameter: Tensor, where: Tensor, values: Tensor) -> None:
    """Give a tensor's entries ``where`` (flat places, ascending, or a mask) their values."""
    flat = parameter.data.view(-1)
    if where.dtype == torch.bool:
        flat.masked_scatter_(where, values.to(flat))  # ten times faster than indexing
    else:
        flat[where] = values.to(flat)
