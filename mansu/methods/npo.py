"""Negative preference optimisation (NPO)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mansu.measure.scores import answer_log_probability
from mansu.methods import training
from mansu.methods.method import Method, Outcome, Problem, Search
from mansu.methods.training import (
    Batch,
    TrainingSettings,
    forget_and_retain,
    train,
)
from mansu.settings import setting


def npo_loss(now: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Equation 3 of NPO: (2/β) · mean log(1 + (π/π_ref)^β).

    Args:
        now, reference: log π and log π_ref of the answers, ``[N]``, nats.
        beta: inverse temperature β > 0; β → 0 has the gradient of gradient ascent.
    """
    return 2 / beta * softplus(beta * (now - reference)).mean()


@dataclass(frozen=True)
class Settings(TrainingSettings):
    RATE = 4e-5
    learning_rate: float | None = training.learning_rate(RATE, "1e-5 in NPO's code")
    steps: int = training.steps(8)
    beta: float = setting(
        0.1,
        "β: how sharply the loss levels off as the answer gets less likely.",
        low=0,
        above=True,
        source="0.1 in NPO's code",
    )
    retain_weight: float = training.retain_weight("1 in NPO's code")


def run(problem: Problem, settings: Settings) -> Outcome:
    """Make the forget answers less likely than under the unedited model, with a bounded loss.

    L = L_NPO + w · L_retain (Zhang, Lin, Bai and Mei 2024, "Negative preference optimization",
    arXiv:2404.05868, equation 3, in the variant NPO+RT).
    """
    subject = problem.subject
    with torch.no_grad(), training.products(subject, settings.bfloat16):
        reference = answer_log_probability(subject, problem.forget)

    def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        now, kept = forget_and_retain(subject, rows, settings.retain_weight)
        forget = npo_loss(now, reference[rows.forget_rows], settings.beta)
        yield from {"forget": forget, **kept}.items()

    return train(problem, settings, loss)


METHOD = Method(
    name="npo",
    title="NPO",
    about="Negative preference optimisation: makes the forget answers less likely than the "
    "unedited model has them, with a loss that is bounded, unlike gradient ascent's.",
    settings=Settings,
    run=run,
    kind="baseline",
    search=Search(origin=1e-5),
)
