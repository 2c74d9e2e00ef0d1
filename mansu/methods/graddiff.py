"""Gradient difference (GradDiff)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from mansu.methods import Outcome, Problem
from mansu.methods.training import Batch, answer_log_probability, retain_terms, train

PUBLISHED_RATE = 1e-5


def unlearn(
    problem: Problem,
    *,
    learning_rate: float = 2e-5,
    steps: int = 12,
    batch: int = 20,
    retain_weight: float = 1.0,
) -> Outcome:
    """Ascend the forget loss while descending the retain loss.

    L = −L_forget + w · L_retain (Liu, Liu and Stone 2022, "Continual learning and private
    unlearning", arXiv:2203.12817; for language models Maini et al. 2024, TOFU, arXiv:2401.06121,
    section 3.3, whose code has w = 1 and learning rate 1e-5).

    Args:
        learning_rate, steps: the defaults are what ``experiments.search`` found on
            chemical-symbols (``experiments/results/search-graddiff.json``).
        batch: forget rows a step, and as many retain rows.
        retain_weight: w.

    Raises:
        MansuError: a setting is not positive.
    """
    subject = problem.subject

    def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        yield "forget", answer_log_probability(subject, rows.forget).mean()
        yield from retain_terms(subject, rows, retain_weight)

    return train(
        problem,
        "graddiff",
        loss,
        learning_rate=learning_rate,
        steps=steps,
        batch=batch,
        settings={"retain_weight": retain_weight},
    )
