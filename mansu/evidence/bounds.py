"""Theorem 1 (arXiv 2605.15138): quadratic bounds on the retain loss, beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mansu.measure.geometry import (
    Mask,
    differentiated,
    summed_squares,
)
from mansu.measure.scores import answer_log_probability, text_losses
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject, locked
from mansu.subjects.weights import transposed_names
from mansu.tasks.tokens import Examples


@dataclass(frozen=True)
class Bounds:
    """Theorem 1 on one edit: quadratic bounds B = ½ Σ F_i δ_i² beside what was measured, nats.

    What is compared. ``restricted`` and ``everywhere`` are B of the *same* edit δ, summed over what
    MANSU may move (``Mask.movable``: the circuit's mask and, in a larger model, the candidates
    beside it) and over every quantised weight, so ``restricted <= everywhere`` by the sign of the
    terms, and the two are equal for an edit that moves nothing else, as MANSU's. For such an edit
    the comparison that says something is with ``spread``: the B to be expected of the same Σδ²
    spread evenly over every quantised weight, ½ mean(F) Σδ². It may come out on either side. F is
    the empirical diagonal Fisher, so B is a second-order estimate: the gradient's term, the cross
    terms and higher orders are left out, and ``measured`` may exceed it. (Embeddings and norms that
    an edit moves count in ``measured`` only.)

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


@locked
def bounds(
    subject: Subject,
    edit: Edit,
    retain: Examples,
    text: tuple[Tensor, Tensor],
    mask: Mask,
) -> Bounds:
    """Both bounds of an edit and the change of the retain loss, on the same examples.

    The Fisher of all weights is never held: a few examples' squared gradients are summed against
    δ² at once, and its mean comes from ‖Σ_p g_p x_pᵀ‖² = Σ_pq (g_p·g_q)(x_p·x_q).

    Args:
        mask: what MANSU may move, name → bool tensor of the parameter's shape (of
            ``Mask.movable``). Call it on the base weights, not inside ``edit.applied``.

    Raises:
        MansuError: the edit does not fit the subject.
    """
    names, moves = sorted(subject.quantized_names), _moves(subject, edit, mask)
    inside = outside = trace = before = 0.0
    examples = 0

    def add(name: str, inputs: Tensor, outputs: Tensor) -> None:
        nonlocal inside, outside, trace
        inputs, outputs = inputs.float(), outputs.float()
        trace += float(((outputs @ outputs.mT) * (inputs @ inputs.mT)).sum())
        if name in moves:
            inside += moves[name][0].weighed(inputs, outputs)
            outside += moves[name][1].weighed(inputs, outputs)

    for value, count in differentiated(subject, retain, text, names, add):
        examples += count
        before += value
    with edit.applied(subject), torch.no_grad():
        after = _log_likelihood(subject, retain, text)
    n, weights = max(examples, 1), sum(subject.parameters[name].numel() for name in names)
    energy = sum(float(p.values.sum(dtype=torch.float64)) for pair in moves.values() for p in pair)
    return Bounds(
        restricted=inside / n / 2,
        everywhere=(inside + outside) / n / 2,
        spread=trace / n / weights * energy / 2,
        measured=(before - after) / n,
        facts=len(retain),
        texts=len(text[0]),
    )


PAIRED = 16
"""Up to so many positions an example, pairs of positions cost less than the examples' gradients."""


@dataclass(frozen=True)
class _Squares:
    """δ² of some moves of one weight, as ``[outputs, inputs]``, at the lines that they touch.

    Attributes:
        rows, columns: int64, the lines. values: ``[rows, columns]``, 0 where nothing moved.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor

    @classmethod
    def of(cls, square: Tensor) -> _Squares:
        """Of a whole weight's."""
        rows, columns = (square.any(axis).nonzero()[:, 0] for axis in (1, 0))
        return cls(rows, columns, square[rows][:, columns])

    def weighed(self, inputs: Tensor, outputs: Tensor) -> float:
        """Σ F δ² of some examples, from each one's gradient g xᵀ."""
        if not len(self.rows):
            return 0.0
        g, x = outputs[..., self.rows], inputs[..., self.columns]
        if g.shape[1] > PAIRED:
            return float((summed_squares(g, x) * self.values).sum(dtype=torch.float64))
        # (Σ_p g_p x_p)² = Σ_pq g_p g_q x_p x_q: for few positions cheaper than every example's
        # gradient, which is as large as the weight.
        p, q = torch.triu_indices(g.shape[1], g.shape[1])
        times = torch.where(p == q, 1.0, 2.0).to(g)[:, None]
        left, right = (g[:, p] * g[:, q] * times).flatten(0, 1), (x[:, p] * x[:, q]).flatten(0, 1)
        return float((left * (right @ self.values.T)).sum(dtype=torch.float64))


def _moves(subject: Subject, edit: Edit, mask: Mask) -> dict[str, tuple[_Squares, _Squares]]:
    """The edit's moves of quantised weights, by name, inside the mask and outside."""
    transposed, moves = transposed_names(subject), {}
    for name, (where, delta) in edit.delta(subject).items():
        if name not in subject.quantized_names:
            continue
        shape = subject.parameters[name].shape
        square = torch.zeros(shape.numel(), device=delta.device)
        square[where.to(delta.device)] = delta.float().square()
        square = square.view(shape)
        chosen = mask.get(name, torch.zeros(shape, dtype=torch.bool)).to(square.device)
        if name in transposed:  # to [outputs, inputs]
            square, chosen = square.T, chosen.T
        moves[name] = _Squares.of(square * chosen), _Squares.of(square * ~chosen)
    return moves


def _log_likelihood(subject: Subject, retain: Examples, text: tuple[Tensor, Tensor]) -> float:
    """Summed over all facts' answers and all texts, nats."""
    facts = float(answer_log_probability(subject, retain).sum())
    return facts - (float(text_losses(subject, *text).sum()) if len(text[0]) else 0.0)
