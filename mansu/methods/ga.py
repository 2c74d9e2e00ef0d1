"""Gradient ascent (GA)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from mansu.methods import Outcome, Problem
from mansu.methods.training import Batch, answer_log_probability, train

PUBLISHED_RATE = 1e-5


def unlearn(
    problem: Problem, *, learning_rate: float = 2e-5, steps: int = 4, batch: int = 20
) -> Outcome:
    """Ascend the forget loss and nothing else.

    L = −L_forget (Jang et al. 2023, "Knowledge unlearning for mitigating privacy risks in language
    models", arXiv:2210.01504, equation 1; in question–answer form Maini et al. 2024, TOFU,
    arXiv:2401.06121, section 3.3, whose code has learning rate 1e-5). Unbounded below: it damages
    the whole model if it runs long.

    Args:
        batch: forget rows a step.

    Raises:
        MansuError: a setting is not positive.
    """

    def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        yield "forget", answer_log_probability(problem.subject, rows.forget).mean()

    return train(problem, "ga", loss, learning_rate=learning_rate, steps=steps, batch=batch)
