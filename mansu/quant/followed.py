"""One weight followed through an edit and into a format: its block, its bin, its code after."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mansu.errors import BadInputError
from mansu.quant.codes import bin_width, quantize
from mansu.quant.formats import NF4, Format, boundaries_of
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.subjects.weights import transposed_names


@dataclass(frozen=True)
class Coded:
    """A weight as a format stores it.

    Attributes:
        value: the weight. absmax: the largest magnitude of its block.
        code: index of the level that it gets. stored: what that code stands for.
        low, high: the ends of its bin: of the values that get this code in this block.
    """

    value: float
    absmax: float
    code: int
    stored: float
    low: float
    high: float

    @property
    def scaled(self) -> float:
        """The weight as a share of its block's largest, −1 to 1; 0 in a block of zeros."""
        return self.value / self.absmax if self.absmax else 0.0

    @property
    def width(self) -> float:
        """Of its bin."""
        return self.high - self.low


@dataclass(frozen=True, eq=False)
class Moves:
    """Weights of one matrix that an edit moves.

    Attributes:
        rows, columns: int64 ``[n]``, their places. ratio: |update| ÷ bin width, ascending.
    """

    rows: Tensor
    columns: Tensor
    ratio: Tensor

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Followed:
    """A weight before and after an edit.

    Attributes:
        name: of its parameter. row, column: its place in it, as the model has it.
        block: number of its block, row by row. place: its place in the block.
        before, after: as the format stores it.
    """

    name: str
    row: int
    column: int
    block: int
    place: int
    before: Coded
    after: Coded

    @property
    def update(self) -> float:
        """How far the edit moved it."""
        return self.after.value - self.before.value

    @property
    def changes(self) -> bool:
        """Whether its code changes, which is all that the format sees of the move."""
        return self.after.code != self.before.code

    @property
    def ratio(self) -> float:
        """|update| ÷ the width of the bin that it was in; 0 in a block of zeros."""
        return abs(self.update) / self.before.width if self.before.width else 0.0


def moves(subject: Subject, edit: Edit, name: str, inside: Tensor | None = None) -> Moves:
    """The weights of one matrix that an edit moves, the shortest move first.

    Args:
        inside: bool of the matrix's shape: only these count.

    Raises:
        BadInputError: NF4 leaves the parameter alone.
    """
    _refuse_unquantised(subject, name, NF4)
    with subject.lock:
        turned = name in transposed_names(subject)
        weight = subject.parameters[name].data.cpu()
        widths = bin_width(_laid_out(weight, turned))
    widths = widths.T if turned else widths
    delta = torch.zeros_like(weight).reshape(-1)
    if name in edit.changes:
        where, values = edit.changes[name]
        delta[where] = values.to(weight.dtype) - weight.reshape(-1)[where]
    ratio = delta.view_as(weight).abs() / widths.clamp(min=1e-38)
    counted = ratio > 0 if inside is None else (ratio > 0) & inside
    rows, columns = counted.nonzero(as_tuple=True)
    order = ratio[rows, columns].argsort(stable=True)
    return Moves(rows[order], columns[order], ratio[rows, columns][order])


def follow(
    subject: Subject, edit: Edit, name: str, row: int, column: int, format: Format = NF4
) -> Followed:
    """Follow one weight of a matrix that the format quantises.

    Raises:
        BadInputError: the format leaves the parameter alone, or it has no such entry.
        MismatchError: the edit was made for another subject.
    """
    _refuse_unquantised(subject, name, format)
    shape = tuple(subject.parameters[name].shape)
    if not (0 <= row < shape[0] and 0 <= column < shape[1]):
        raise BadInputError(
            f"{name!r} has {shape[0]} rows and {shape[1]} columns, counted from 0: there is no "
            f"weight at row {row}, column {column}."
        )
    turned = name in transposed_names(subject)
    lines = shape[0] if turned else shape[1]
    flat = column * lines + row if turned else row * lines + column
    size = lines if format.kind == "int8" else format.blocksize
    with subject.lock:
        before = _coded(_laid_out(subject.parameters[name].data, turned), flat, format)
        with edit.applied(subject):
            after = _coded(_laid_out(subject.parameters[name].data, turned), flat, format)
    return Followed(name, row, column, flat // size, flat % size, before, after)


def _refuse_unquantised(subject: Subject, name: str, format: Format) -> None:
    if name not in subject.quantized_names:
        raise BadInputError(
            f"{name!r} is no matrix that {format} quantises: give one of the linear maps inside "
            "the layers."
        )


def _laid_out(weight: Tensor, turned: bool) -> Tensor:
    return weight.T.contiguous() if turned else weight


def _coded(weight: Tensor, flat: int, format: Format) -> Coded:
    """One entry of a matrix in the layout in which its blocks run."""
    found = quantize(weight, format)
    code = int(found.codes[flat])
    absmax = float(found.absmax[flat // found.blocksize])
    level, bounds = float(format.levels[code]), boundaries_of(format.kind)
    rank = int((bounds < level).sum())
    low = float(bounds[rank - 1]) if rank else -1.0
    high = float(bounds[rank]) if rank < len(bounds) else 1.0
    return Coded(
        float(weight.reshape(-1)[flat]), absmax, code, level * absmax, low * absmax, high * absmax
    )
