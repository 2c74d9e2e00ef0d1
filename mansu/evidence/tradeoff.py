"""Fewer and further: survival, forgetting and damage by how many weights move, and how far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mansu import quant
from mansu.measure.scores import Scores, measure_sets
from mansu.progress import OnStep, Step, silent
from mansu.quant.codes import bin_width, quantize, sets_absmax
from mansu.quant.survival import kept_by_format
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
        width = torch.cat([bin_width(w).flatten() for w in weights])
        most = torch.cat([quantize(w).scale for w in weights]) * INSIDE
        delta = torch.cat([_dense(subject, edit, n) for n in names])
        delta[torch.cat([sets_absmax(w).flatten() for w in weights])] = 0
        order = (delta.abs() / width).argsort(descending=True)
        unedited = quant.Dequantized.of(subject)
        rows = [forget, *kept.values()]
        with quant.quantized(subject, unedited):
            before = [_nats(s) for s in measure_sets(subject, rows)[1:]]
        cells, total = [], len(counts) * len(distances)
        for share in counts:
            for distance in distances:
                where = order[: round(share * len(flat))]
                target = flat[where] + distance * width[where] * delta[where].sign()
                new = flat.clone()
                new[where] = torch.minimum(torch.maximum(target, -most[where]), most[where])
                parts = new.split([w.numel() for w in weights])
                moved = Edit.between(
                    subject.parameters,
                    {n: p.view_as(w) for n, p, w in zip(names, parts, weights, strict=True)},
                )
                changed = kept_by_format(subject, moved, [quant.NF4])[quant.NF4]
                with moved.applied(subject), quant.quantized(subject, unedited):
                    after = measure_sets(subject, rows)
                falls = [b - _nats(s) for b, s in zip(before, after[1:], strict=True)]
                cells.append(
                    Cell(len(where), distance, changed.share or 0.0, after[0].accuracy, max(falls))
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
