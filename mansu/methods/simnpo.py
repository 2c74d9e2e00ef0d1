"""Simple negative preference optimisation (SimNPO)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import softplus

from mansu.methods import training
from mansu.methods.method import Method, Outcome, Problem, Search
from mansu.methods.training import (
    Batch,
    TrainingSettings,
    forget_and_retain,
    train,
)
from mansu.settings import setting


def simnpo_loss(now: Tensor, beta: float, gamma: float) -> Tensor:
    """−(2/β) · mean log σ(−(β/|y|) log π − γ), with answers of |y| = 1 token.

    Args:
        now: log π of the answers, ``[N]``, nats. beta: β > 0. gamma: the margin γ.
    """
    return 2 / beta * softplus(beta * now + gamma).mean()


@dataclass(frozen=True)
class Settings(TrainingSettings):
    RATE = 1.6e-4
    learning_rate: float | None = training.learning_rate(RATE, "1e-5 in SimNPO's code")
    steps: int = training.steps(12)
    beta: float = setting(
        2.5,
        "β: how sharply the loss levels off as the answer gets less likely.",
        low=0,
        above=True,
        source="2.5 in SimNPO's code for TOFU",
    )
    gamma: float = setting(
        0.0, "γ: the margin of SimNPO's loss.", low=0, source="0 in SimNPO's code for TOFU"
    )
    forget_weight: float = setting(
        0.1375,
        "λ: weight of the forget loss.",
        low=0,
        above=True,
        source="0.1375 in SimNPO's code for TOFU",
    )
    retain_weight: float = training.retain_weight("1 in SimNPO's code for TOFU")


def run(problem: Problem, settings: Settings) -> Outcome:
    """Negative preference optimisation without a reference model.

    L = λ · L_SimNPO + w · L_retain (Fan et al. 2024, "Simplicity prevails: rethinking negative
    preference optimization for LLM unlearning", arXiv:2410.07163).
    """
    subject = problem.subject

    def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        now, kept = forget_and_retain(subject, rows, settings.retain_weight)
        forget = settings.forget_weight * simnpo_loss(now, settings.beta, settings.gamma)
        yield from {"forget": forget, **kept}.items()

    return train(problem, settings, loss)


METHOD = Method(
    name="simnpo",
    title="SimNPO",
    about="Negative preference optimisation without the unedited model as its reference.",
    settings=Settings,
    run=run,
    kind="baseline",
    search=Search(origin=1e-5),
)
