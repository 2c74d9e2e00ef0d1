"""Task vector negation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from mansu.measure.scores import answer_log_probability
from mansu.methods import training
from mansu.methods.method import Method, Outcome, Problem, Search
from mansu.methods.training import Batch, TrainingSettings, train
from mansu.settings import setting


@dataclass(frozen=True)
class Settings(TrainingSettings):
    RATE = 2e-5
    learning_rate: float | None = training.learning_rate(RATE, "1e-5 in MUSE's code")
    steps: int = training.steps(12)
    alpha: float = setting(
        1.0,
        "α: weight of the vector that is subtracted.",
        low=0,
        above=True,
        source="1 in MUSE's code",
    )


def run(problem: Problem, settings: Settings) -> Outcome:
    """Learn the forget set better, then subtract what was learnt.

    θ = θ₀ − α · (θ_ft − θ₀), where θ_ft is θ₀ fine-tuned on the forget set (Ilharco et al. 2023,
    "Editing models with task arithmetic", arXiv:2212.04089; for unlearning Shi et al. 2024, MUSE,
    arXiv:2407.06460).
    """

    def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        yield "forget", -answer_log_probability(problem.subject, rows.forget).mean()

    return train(problem, settings, loss, scale=-settings.alpha)


METHOD = Method(
    name="task_vector",
    title="Task vector",
    about="Fine-tunes on the forget set, then subtracts what was learnt.",
    settings=Settings,
    run=run,
    kind="baseline",
    search=Search(origin=1e-5),
)
