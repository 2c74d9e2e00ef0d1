"""Simple negative preference optimisation (SimNPO)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn.functional import softplus

from mansu.methods import Outcome, Problem
from mansu.methods.training import Batch, answer_log_probability, positive, retain_terms, train

PUBLISHED_RATE = 1e-5


def simnpo_loss(now: Tensor, beta: float, gamma: float) -> Tensor:
    """−(2/β) · mean log σ(−(β/|y|) log π − γ), with answers of |y| = 1 token.

    Args:
        now: log π of the answers, ``[N]``, nats. beta: β > 0. gamma: the margin γ.
    """
    return 2 / beta * softplus(beta * now + gamma).mean()


def unlearn(
    problem: Problem,
    *,
    learning_rate: float = 4e-5,
    steps: int = 8,
    batch: int = 20,
    beta: float = 2.5,
    gamma: float = 0.0,
    forget_weight: float = 0.1375,
    retain_weight: float = 1.0,
) -> Outcome:
    """Negative preference optimisation without a reference model.

    L = λ · L_SimNPO + w · L_retain (Fan et al. 2024, "Simplicity prevails: rethinking negative
    preference optimization for LLM unlearning", arXiv:2410.07163; their code for TOFU has β = 2.5,
    γ = 0, λ = 0.1375, w = 1 and learning rate 1e-5).

    Args:
        batch: forget rows a step, and as many retain rows.
        beta: β. gamma: γ. forget_weight: λ. retain_weight: w.

    Raises:
        MansuError: a setting is not positive.
    """
    positive("simnpo", beta=beta, forget_weight=forget_weight)
    subject = problem.subject

    def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        now = answer_log_probability(subject, rows.forget)
        yield "forget", forget_weight * simnpo_loss(now, beta, gamma)
        yield from retain_terms(subject, rows, retain_weight)

    return train(
        problem,
        "simnpo",
        loss,
        learning_rate=learning_rate,
        steps=steps,
        batch=batch,
        settings={
            "beta": beta,
            "gamma": gamma,
            "forget_weight": forget_weight,
            "retain_weight": retain_weight,
        },
    )
