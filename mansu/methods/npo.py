"""Negative preference optimisation (NPO)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mansu.methods import Outcome, Problem
from mansu.methods.training import Batch, answer_log_probability, positive, retain_terms, train

PUBLISHED_RATE = 1e-5


def npo_loss(now: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Equation 3 of NPO: (2/β) · mean log(1 + (π/π_ref)^β).

    Args:
        now, reference: log π and log π_ref of the answers, ``[N]``, nats.
        beta: inverse temperature β > 0; β → 0 has the gradient of gradient ascent.
    """
    return 2 / beta * softplus(beta * (now - reference)).mean()


def unlearn(
    problem: Problem,
    *,
    learning_rate: float = 2e-5,
    steps: int = 12,
    batch: int = 20,
    beta: float = 0.1,
    retain_weight: float = 1.0,
) -> Outcome:
    """Make the forget answers less likely than under the unedited model, with a bounded loss.

    L = L_NPO + w · L_retain (Zhang, Lin, Bai and Mei 2024, "Negative preference optimization",
    arXiv:2404.05868, equation 3, in the variant NPO+RT; their code has β = 0.1, w = 1 and
    learning rate 1e-5).

    Args:
        learning_rate, steps: the defaults are what ``experiments.search`` found on
            chemical-symbols (``experiments/results/search-npo.json``).
        batch: forget rows a step, and as many retain rows.
        beta: β. retain_weight: w.

    Raises:
        MansuError: a setting is not positive.
    """
    positive("npo", beta=beta)
    subject = problem.subject
    with subject.lock:  # nobody else's edit may be on while the reference is taken
        with torch.no_grad():
            reference = answer_log_probability(subject, problem.forget)

        def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
            now = answer_log_probability(subject, rows.forget)
            yield "forget", npo_loss(now, reference[rows.forget_rows], beta)
            yield from retain_terms(subject, rows, retain_weight)

        return train(
            problem,
            "npo",
            loss,
            learning_rate=learning_rate,
            steps=steps,
            batch=batch,
            settings={"beta": beta, "retain_weight": retain_weight},
        )
