"""Theorem 1 (arXiv 2605.15138): quadratic bounds on the retain loss, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping
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
    names, transposed = sorted(subject.quantized_names), transposed_names(subject)
    deltas: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
    energy = 0.0
    for name, (where, delta) in edit.delta(subject).items():
        if name not in subject.quantized_names:
            continue
        shape = subject.parameters[name].shape
        square = torch.zeros(shape.numel(), device=delta.device)
        square[where.to(delta.device)] = delta.float().square()
        inside = square.view(shape) * mask[name].to(square.device) if name in mask else None
        square = square.view(shape)
        inside = torch.zeros_like(square) if inside is None else inside
        if name in transposed:  # to [outputs, inputs]
            square, inside = square.T, inside.T
        rows = square.any(1).nonzero()[:, 0]
        columns = square.any(0).nonzero()[:, 0]
        deltas[name] = rows, columns, square[rows][:, columns], inside[rows][:, columns]
        energy += float(square.sum(dtype=torch.float64))
    restricted = everywhere = trace = before = 0.0
    examples = 0
    for flows, value, count in differentiated(subject, retain, text, names, batch):
        for name, (inputs, outputs) in flows.items():
            inputs, outputs = inputs.float(), outputs.float()
            trace += float(((outputs @ outputs.mT) * (inputs @ inputs.mT)).sum())
            if name in deltas:
                rows, columns, square, inside = deltas[name]
                each = outputs[..., rows].mT @ inputs[..., columns]
                importance = each.square_().sum(0)
                restricted += float((importance * inside).sum(dtype=torch.float64)) / 2
                everywhere += float((importance * square).sum(dtype=torch.float64)) / 2
        examples += count
        before += value
    parts = [retain.select(range(i, min(i + 32, len(retain)))) for i in range(0, len(retain), 32)]
    with edit.applied(subject), torch.no_grad():
        after = sum(float(answer_log_likelihood(subject, part).sum()) for part in parts)
        after -= sum(
            float(text_losses(subject, text[0][i : i + batch], text[1][i : i + batch]).sum())
            for i in range(0, len(text[0]), batch)
        )
    n, weights = max(examples, 1), sum(subject.parameters[name].numel() for name in names)
    return Bounds(
        restricted=restricted / n,
        everywhere=everywhere / n,
        spread=trace / n / weights * energy / 2,
        measured=(before - after) / n,
        facts=len(retain),
        texts=len(text[0]),
    )


def bound(subject: Subject, edit: Edit, mask: Mask, fisher: Mapping[str, Tensor]) -> float:
    """Theorem 1's quadratic bound on the retain loss, ½ Σ F_i δ_i² over the mask, in nats.

    With the circuit's mask it is the restricted bound; with a mask of every weight the global one,
    which is never smaller.
    """
    total = 0.0
    for name, (where, delta) in edit.delta(subject).items():
        if name in mask:
            moved = torch.zeros(mask[name].numel())
            moved[where.cpu()] = delta.cpu().float()
            total += float((fisher[name] * moved[mask[name].flatten()].square()).sum()) / 2
    return total
