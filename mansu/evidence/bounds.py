"""Theorem 1 (arXiv 2605.15138): quadratic bounds on the retain loss, beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mansu.measure.geometry import Mask, answer_log_likelihood, differentiated
from mansu.measure.scores import text_losses
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.subjects.weights import transposed_names
from mansu.tasks.tokens import Examples


@dataclass(frozen=True)
class Bounds:
    """Theorem 1 on one edit: quadratic bounds B = ½ Σ F_i δ_i² beside what was measured, nats.

    What is compared. ``restricted`` and ``everywhere`` are B of the *same* edit δ, summed over the
    circuit's mask and over every quantised weight, so ``restricted <= everywhere`` by the sign of
    the terms, and the two are equal for an edit that stays inside the mask, as MANSU's does. For
    such an edit the comparison that says something is with ``spread``: the B to be expected of the
    same Σδ² spread evenly over every quantised weight, ½ mean(F) Σδ². It may come out on either
    side. F is the empirical diagonal Fisher, so B is a second-order estimate: the gradient's term,
    the cross terms and higher orders are left out, and ``measured`` may exceed it. (Embeddings
    and norms that an edit moves count in ``measured`` only.)

    Attributes:
        restricted, everywhere, spread: as above.
        measured: mean of the retain examples' negative log-likelihood after the edit, less before,
            an example being a fact's answer or a whole text.
        facts, texts: how many examples.
    """

    restricted: float
    everywhere: float
    spread: float
    measured: float
    facts: int
    texts: int


def bounds(
    subject: Subject,
    edit: Edit,
    retain: Examples,
    text: tuple[Tensor, Tensor],
    mask: Mask,
    *,
    batch: int = 8,
) -> Bounds:
    """Both bounds of an edit and the change of the retain loss, on the same examples.

    The Fisher of all weights is never held: a batch's squared gradients are summed against δ² at
    once, and its mean comes from ‖Σ_p g_p x_pᵀ‖² = Σ_pq (g_p·g_q)(x_p·x_q).
    Memory: batch × the largest weight.

    Args:
        mask: the circuit's. Call it on the base weights, not inside ``edit.applied``.

    Raises:
        MansuError: the edit does not fit the subject.
    """
    names, moves = sorted(subject.quantized_names), _moves(subject, edit, mask)
    restricted = everywhere = trace = before = 0.0
    examples = 0
    for flows, value, count in differentiated(subject, retain, text, names, batch):
        for name, (inputs, outputs) in flows.items():
            inputs, outputs = inputs.float(), outputs.float()
            trace += float(((outputs @ outputs.mT) * (inputs @ inputs.mT)).sum())
            if name in moves:
                inside, everything = moves[name].weighed(inputs, outputs)
                restricted += inside / 2
                everywhere += everything / 2
        examples += count
        before += value
    with edit.applied(subject), torch.no_grad():
        after = _log_likelihood(subject, retain, text, batch)
    n, weights = max(examples, 1), sum(subject.parameters[name].numel() for name in names)
    energy = sum(float(move.square.sum(dtype=torch.float64)) for move in moves.values())
    return Bounds(
        restricted=restricted / n,
        everywhere=everywhere / n,
        spread=trace / n / weights * energy / 2,
        measured=(before - after) / n,
        facts=len(retain),
        texts=len(text[0]),
    )


@dataclass(frozen=True)
class _Move:
    """What an edit does to one weight, as ``[outputs, inputs]``, at the lines that it touches.

    Attributes:
        rows, columns: int64, the lines. square: their δ². inside: those of the mask, else 0.
    """

    rows: Tensor
    columns: Tensor
    square: Tensor
    inside: Tensor

    def weighed(self, inputs: Tensor, outputs: Tensor) -> tuple[float, float]:
        """Σ F δ² of a batch inside the mask and everywhere, from each example's gradient g xᵀ."""
        each = outputs[..., self.rows].mT @ inputs[..., self.columns]
        importance = each.square_().sum(0)
        return (
            float((importance * self.inside).sum(dtype=torch.float64)),
            float((importance * self.square).sum(dtype=torch.float64)),
        )


def _moves(subject: Subject, edit: Edit, mask: Mask) -> dict[str, _Move]:
    """The edit's moves of quantised weights, by name."""
    transposed, moves = transposed_names(subject), {}
    for name, (where, delta) in edit.delta(subject).items():
        if name not in subject.quantized_names:
            continue
        shape = subject.parameters[name].shape
        square = torch.zeros(shape.numel(), device=delta.device)
        square[where.to(delta.device)] = delta.float().square()
        square = square.view(shape)
        chosen = mask[name].to(square.device) if name in mask else False
        inside = square * chosen
        if name in transposed:  # to [outputs, inputs]
            square, inside = square.T, inside.T
        rows, columns = (square.any(axis).nonzero()[:, 0] for axis in (1, 0))
        moves[name] = _Move(rows, columns, square[rows][:, columns], inside[rows][:, columns])
    return moves


def _log_likelihood(
    subject: Subject, retain: Examples, text: tuple[Tensor, Tensor], batch: int
) -> float:
    """Summed over all facts' answers and all texts, nats."""
    parts = [retain.select(range(i, min(i + 32, len(retain)))) for i in range(0, len(retain), 32)]
    facts = sum(float(answer_log_likelihood(subject, part).sum()) for part in parts)
    texts = sum(
        float(text_losses(subject, text[0][i : i + batch], text[1][i : i + batch]).sum())
        for i in range(0, len(text[0]), batch)
    )
    return facts - texts
