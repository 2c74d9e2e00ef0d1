"""One weight followed through an edit and into a format: its block, its bin, its code after."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mansu.errors import BadInputError
from mansu.quant.codes import quantize
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
    def ratio(self) -> float:
        """|update| ÷ the width of the bin that it was in; 0 in a block of zeros."""
        return abs(self.update) / self.before.width if self.before.width else 0.0


def follow(
    subject: Subject, edit: Edit, name: str, row: int, column: int, format: Format = NF4
) -> Followed:
    """Follow one weight of a matrix that the format quantises.

    Raises:
        BadInputError: the format leaves the parameter alone, or it has no such entry.
        MismatchError: the edit was made for another subject.
    """
    if name not in subject.quantized_names:
        raise BadInputError(
            f"{name!r} is no matrix that {format} quantises: give one of the linear maps inside "
            "the layers."
        )
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
        before = _coded(_stored(subject, name, turned), flat, format)
        with edit.applied(subject):
            after = _coded(_stored(subject, name, turned), flat, format)
    return Followed(name, row, column, flat // size, flat % size, before, after)


def _stored(subject: Subject, name: str, turned: bool) -> Tensor:
    weight = subject.parameters[name].data
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
