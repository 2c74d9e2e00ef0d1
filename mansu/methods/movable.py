"""The magnitude floor at work: what may move, what each weight wishes, and where it then lies.

Each weight has a wish, the continuous change that the optimiser asks for, and a threshold u drawn
once from U(0, 1). Its points are its own exact value and the centres of codes that it may take.
With w + wish between its points p₀ ≤ w + wish < p₁ it takes p₁ when (w + wish − p₀)/(p₁ − p₀) > u,
else p₀. So the mean over weights follows the wish, as unbiased rounding does, while each moved
weight is a whole bin away; a fixed threshold means that nothing moves back and forth unless its
wish does.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mansu.errors import BadInputError
from mansu.quant.codes import bin_width, quantize, sets_absmax
from mansu.quant.floor import blocks_at, code_centers, holds_cast, leaves_bin
from mansu.quant.formats import FORMATS, NF4, Format
from mansu.quant.swap import Dequantized
from mansu.subjects.subject import Subject
from mansu.subjects.weights import transposed_names


@dataclass(frozen=True)
class Places:
    """Where the movable entries of one weight lie, m of them, as the quantiser sees the weight.

    Attributes:
        where: int64 ``[m]``, into the flattened parameter.
        outputs, inputs: int64, the lines that it has entries of.
        rows, columns: int64 ``[m]``, which of ``outputs`` and of ``inputs`` each entry is of.
        span: of the entries among those of all weights.
    """

    where: Tensor
    outputs: Tensor
    inputs: Tensor
    rows: Tensor
    columns: Tensor
    span: slice

    def gradient(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """``[m]``, from a map's inputs ``[T, in]`` and the gradients at its outputs ``[T, out]``.

        A product of the lines that entries are of, not of the whole weight.
        """
        some = outputs[:, self.outputs].T @ inputs[:, self.inputs].to(outputs)
        return some[self.rows, self.columns].float()

    def dense(self, values: Tensor) -> Tensor:
        """``[outputs, inputs]`` of the entries' ``[m]``, 0 elsewhere."""
        matrix = values.new_zeros(len(self.outputs), len(self.inputs))
        matrix[self.rows, self.columns] = values
        return matrix


class Moves(NamedTuple):
    """Where all weights lie, ``[n]``, and which of them are away from their base, bool ``[n]``."""

    values: Tensor
    moved: Tensor


@dataclass
class Movable:
    """The mask's quantised weights that do not set their block's absmax, nor change by a cast.

    n of them, those of a weight side by side; in float32 also where the model is narrower.

    Attributes:
        places: by weight.
        base: ``[n]``, the unedited values. base_nf4: what their codes stand for.
        points: ``[n, codes]``, where each may lie, ascending: base and the centres of other codes;
            infinite where there are fewer.
        width: ``[n]``, of the base's bin. threshold: u. wish: in weight units.
    """

    places: Mapping[str, Places]
    base: Tensor
    base_nf4: Tensor
    points: Tensor
    width: Tensor
    threshold: Tensor
    wish: Tensor

    @classmethod
    def of(
        cls,
        subject: Subject,
        mask: Mapping[str, Tensor],
        nf4: Dequantized,
        rng: random.Random,
        every_format: bool = True,
    ) -> Movable:
        """The movable weights of a mask.

        Args:
            nf4: the unedited weights in NF4. rng: draws the thresholds.
            every_format: they move to other codes in every format of ``FORMATS``, not NF4 alone.

        Raises:
            BadInputError: there are none.
        """
        # Double quantization has NF4's codes and blocks.
        others = [f for f in FORMATS if f != NF4 and not f.double_quant] if every_format else []
        transposed = transposed_names(subject)
        places, found = {}, []
        for name, chosen in mask.items():
            if name not in subject.quantized_names:
                continue
            matrix = subject.parameters[name].detach()
            if name in transposed:
                matrix, chosen = matrix.T.contiguous(), chosen.T
            flat = chosen.reshape(-1).nonzero()[:, 0].to(matrix.device)
            flat, own = _allowed(matrix, flat, others)
            if not len(flat):
                continue
            rows, columns = flat // matrix.shape[1], flat % matrix.shape[1]
            where = columns * matrix.shape[0] + rows if name in transposed else flat
            outputs, row_of = rows.unique(return_inverse=True)
            inputs, column_of = columns.unique(return_inverse=True)
            start = places[next(reversed(places))].span.stop if places else 0
            span = slice(start, start + len(flat))
            places[name] = Places(where, outputs, inputs, row_of, column_of, span)
            base_nf4 = nf4.weights[name].flatten()[where].float()
            found.append((matrix.reshape(-1)[flat].float(), base_nf4, *own))
        if not places:
            raise BadInputError(
                "No weight may move: the circuit holds no weight that NF4 quantises."
            )
        device = subject.device
        base, base_nf4, points, width = (
            torch.cat([part.to(device) for part in parts]) for parts in zip(*found, strict=True)
        )
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        threshold = torch.rand(len(base), generator=generator).to(base)
        points = points.sort(1).values
        return cls(places, base, base_nf4, points, width, threshold, torch.zeros_like(base))

    def __len__(self) -> int:
        return len(self.base)

    def moves(self, floor: bool = True, budget: int | None = None) -> Moves:
        """Where the wishes have the weights.

        Args:
            floor: at their points; else exactly there.
            budget: move at most so many, those of the largest wish in bins.
        """
        values = self._rounded() if floor else self.base + self.wish
        moved = values != self.base if floor else self.wish != 0
        if budget is not None and int(moved.sum()) > budget:
            size = (self.wish / self.width).abs() * moved
            kept = torch.zeros_like(moved)
            kept[size.topk(budget).indices] = True
            moved = moved & kept
            values = torch.where(moved, values, self.base)
        return Moves(values, moved)

    def _rounded(self) -> Tensor:
        aim = (self.base + self.wish)[:, None]
        above = torch.searchsorted(self.points, aim, right=True)
        last = self.points.shape[1] - 1
        high = self.points.gather(1, above.clamp(max=last))[:, 0]
        high = torch.where(above[:, 0] > last, torch.inf, high)
        low = self.points.gather(1, (above - 1).clamp(min=0))[:, 0]
        up = (aim[:, 0] - low) / (high - low) > self.threshold
        return torch.where(up | (above[:, 0] == 0), high, low)  # past the last point: to the last


def _allowed(
    matrix: Tensor, flat: Tensor, others: Sequence[Format]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Of some places of a weight those that may move, with their points and the width of their bin.

    Points are the value itself at its own code and the centres of the others; infinite at the
    extreme codes, where a weight would tie with its block's absmax, and at centres that some other
    format does not tell from where the weight is.
    """
    part, place = blocks_at(matrix, flat)
    quantized = quantize(part)
    may = (holds_cast(part, quantized=quantized) & ~sets_absmax(part)).view(-1)[place]
    for format in others:
        blocks, at = blocks_at(matrix, flat, format)
        may &= ~sets_absmax(blocks, format).view(-1)[at]
    flat, place = flat[may], place[may]
    points = code_centers(part, place, quantized=quantized)
    allowed = torch.ones_like(points, dtype=torch.bool)
    allowed[:, [0, -1]] = False
    for format in others:
        blocks, at = blocks_at(matrix, flat, format)
        allowed &= leaves_bin(blocks, at, points, format)
    points.masked_fill_(~allowed, torch.inf)
    own = quantized.codes[place].long()[:, None]
    points = points.scatter_(1, own, part.view(-1)[place][:, None]).float()
    return flat, (points, bin_width(part, quantized=quantized).view(-1)[place].float())
