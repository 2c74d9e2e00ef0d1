"""Task vector negation."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from mansu.methods import Outcome, Problem
from mansu.methods.training import Batch, answer_log_probability, positive, train

PUBLISHED_RATE = 1e-5


def unlearn(
    problem: Problem,
    *,
    learning_rate: float = 4e-5,
    steps: int = 4,
    batch: int = 20,
    alpha: float = 1.0,
) -> Outcome:
    """Learn the forget set better, then subtract what was learnt.

    θ = θ₀ − α · (θ_ft − θ₀), where θ_ft is θ₀ fine-tuned on the forget set (Ilharco et al. 2023,
    "Editing models with task arithmetic", arXiv:2212.04089; for unlearning Shi et al. 2024, MUSE,
    arXiv:2407.06460, whose code has α = 1 and learning rate 1e-5).

    Args:
        steps: of fine-tuning. batch: forget rows a step. alpha: α.

    Raises:
        MansuError: a setting is not positive.
    """
    positive("task vector", alpha=alpha)

    def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        yield "forget", -answer_log_probability(problem.subject, rows.forget).mean()

    return train(
        problem,
        "task vector",
        loss,
        learning_rate=learning_rate,
        steps=steps,
        batch=batch,
        scale=-alpha,
        settings={"alpha": alpha},
    )
