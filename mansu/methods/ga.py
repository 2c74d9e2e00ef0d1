"""Gradient ascent (GA)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from mansu.measure.scores import answer_log_probability
from mansu.methods import training
from mansu.methods.method import Method, Outcome, Problem, Search
from mansu.methods.training import Batch, TrainingSettings, train


@dataclass(frozen=True)
class Settings(TrainingSettings):
    RATE = 2e-5
    learning_rate: float | None = training.learning_rate(RATE, "1e-5 in TOFU's code")
    steps: int = training.steps(4)


def run(problem: Problem, settings: Settings) -> Outcome:
    """Ascend the forget loss and nothing else.

    L = −L_forget (Jang et al. 2023, "Knowledge unlearning for mitigating privacy risks in language
    models", arXiv:2210.01504, equation 1; in question–answer form Maini et al. 2024, TOFU,
    arXiv:2401.06121, section 3.3). Unbounded below: it damages the whole model if it runs long.
    """

    def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        yield "forget", answer_log_probability(problem.subject, rows.forget).mean()

    return train(problem, settings, loss)


METHOD = Method(
    name="ga",
    title="GA",
    about="Gradient ascent on the forget answers and nothing else: it damages everything if it "
    "runs long.",
    settings=Settings,
    run=run,
    kind="baseline",
    search=Search(origin=1e-5),
)
