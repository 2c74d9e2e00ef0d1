"""Gradient difference (GradDiff)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from mansu.methods import training
from mansu.methods.method import Method, Outcome, Problem, Search
from mansu.methods.training import (
    Batch,
    TrainingSettings,
    forget_and_retain,
    train,
)


@dataclass(frozen=True)
class Settings(TrainingSettings):
    RATE = 2e-5
    learning_rate: float | None = training.learning_rate(RATE, "1e-5 in TOFU's code")
    steps: int = training.steps(12)
    retain_weight: float = training.retain_weight("1 in TOFU's code")


def run(problem: Problem, settings: Settings) -> Outcome:
    """Ascend the forget loss while descending the retain loss.

    L = −L_forget + w · L_retain (Liu, Liu and Stone 2022, "Continual learning and private
    unlearning", arXiv:2203.12817; for language models Maini et al. 2024, TOFU, arXiv:2401.06121,
    section 3.3).
    """
    subject = problem.subject

    def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        now, kept = forget_and_retain(subject, rows, settings.retain_weight)
        yield from {"forget": now.mean(), **kept}.items()

    return train(problem, settings, loss)


METHOD = Method(
    name="graddiff",
    title="GradDiff",
    about="Gradient difference: ascends the forget loss while it descends the retain loss.",
    settings=Settings,
    run=run,
    kind="baseline",
    search=Search(origin=1e-5),
)
