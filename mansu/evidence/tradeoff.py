"""Fewer and further: survival, forgetting and damage by how many weights move, and how far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mansu import quant
from mansu.measure.scores import Scores, measure_sets
from mansu.progress import OnStep, Step, silent
from mansu.quant.codes import bin_width, dequantize, quantize, sets_absmax
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples

COUNTS = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)
"""Shares of the quantised weights that move."""

DISTANCES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)
"""How far each of them moves, in widths of its own bin."""


@dataclass(frozen=True)
class Cell:
    """One choice of how many and how far, measured in NF4.

    Attributes:
        moved: how many weights. distance: how far each, in widths of its bin.
        survival: share of them whose code changes.
        forget: forget accuracy in NF4.
        damage: by how much the answers to be kept lost in NF4, in nats, of the set that lost most.
    """

    moved: int
    distance: float
    survival: float
    forget: float
    damage: float


def best(cells: Sequence[Cell], known: float) -> Cell | None:
    """The cell of least damage among those that forget in NF4; None where none does.

    Args:
        known: the highest forget accuracy that counts as forgotten.
    """
    forgotten = [cell for cell in cells if cell.forget <= known]
    return min(forgotten, key=lambda cell: cell.damage, default=None)


def grid(
    subject: Subject,
    edit: Edit,
    forget: Examples,
    kept: Mapping[str, Examples],
    *,
    counts: Sequence[float] = COUNTS,
    distances: Sequence[float] = DISTANCES,
    on_step: OnStep = silent,
) -> tuple[Cell, ...]:
    """Measure every choice: the weights that an edit moves furthest, each the same way as there.

    The weights are ranked by |δ| ÷ bin width. Those that set their block's absmax stay, and none
    moves past it. Each quantised weight must lie in the parameter's own order (no Conv1D).

    Args:
        edit: that says which weights and which way; it does not say how far.
        kept: sets to be kept, by name.
        on_step: hears of each cell.

    Returns:
        ``len(counts) × len(distances)`` cells, a count after the other.
    """
    with subject.lock, torch.no_grad():
        names = [n for n in subject.quantized_names if n in edit.changes]
        weights = [subject.parameters[n].detach() for n in names]
        flat = torch.cat([w.flatten() for w in weights])
        coded = [quantize(w) for w in weights]
        width = torch.cat(
            [bin_width(w, quantized=q).flatten() for w, q in zip(weights, coded, strict=True)]
        )
        most = torch.cat([q.scale for q in coded]) * INSIDE
        delta = torch.cat([_dense(subject, edit, n) for n in names])
        delta[torch.cat([sets_absmax(w).flatten() for w in weights])] = 0
        order = (delta.abs() / width).argsort(descending=True)
        unedited = quant.Dequantized.of(subject)
        sizes, codes = [w.numel() for w in weights], torch.cat([q.codes for q in coded])
        rows = [forget, *kept.values()]
        cells, total = [], len(counts) * len(distances)
        with quant.quantized(subject, unedited):  # each cell then writes its own over these
            before = [_nats(s) for s in measure_sets(subject, rows)[1:]]
            for share in counts:
                where = order[: round(share * len(flat))]
                at, limit = flat[where], most[where]
                for distance in distances:
                    moved = at + distance * width[where] * delta[where].sign()
                    moved = torch.minimum(torch.maximum(moved, -limit), limit)
                    new = flat.clone()
                    new[where] = moved
                    found = []
                    for name, part in zip(names, new.split(sizes), strict=True):
                        parameter = subject.parameters[name]
                        now = quantize(part)
                        parameter.data.copy_(dequantize(now, part.dtype).view_as(parameter))
                        found.append(now.codes)
                    differ = torch.cat(found)[where] != codes[where]
                    n_moved = int((moved != at).sum())
                    survival = int(differ.sum()) / n_moved if n_moved else 0.0
                    after = measure_sets(subject, rows)
                    falls = [b - _nats(s) for b, s in zip(before, after[1:], strict=True)]
                    cells.append(
                        Cell(len(where), distance, survival, after[0].accuracy, max(falls))
                    )
                    on_step(Step("tradeoff", len(cells), total, part="how many, and how far"))
    return tuple(cells)


INSIDE = 0.999
"""Of the absmax: no weight becomes the largest of its block."""


def _dense(subject: Subject, edit: Edit, name: str) -> Tensor:
    where, values = edit.changes[name]
    old = subject.parameters[name].detach().flatten()
    delta = torch.zeros_like(old)
    delta[where] = values.to(old) - old[where]
    return delta


def _nats(scores: Scores) -> float:
    return float(scores.log_probability.mean())
