"""Gradient ascent in the null space of the retain inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mansu.measure.geometry import projectors
from mansu.measure.scores import answer_log_probability
from mansu.methods import training
from mansu.methods.method import Method, Outcome, Problem, Search
from mansu.methods.training import Batch, TrainingSettings, train
from mansu.settings import setting
from mansu.subjects.weights import transposed_names


@dataclass(frozen=True)
class Settings(TrainingSettings):
    RATE = 3.2e-4
    learning_rate: float | None = training.learning_rate(RATE, "")
    steps: int = training.steps(8)
    energy: float = setting(
        0.99,
        "Share of the retain inputs' energy (squared norm) that the projection protects.",
        low=0,
        above=True,
        high=0.999999,
    )


def run(problem: Problem, settings: Settings) -> Outcome:
    """Ascend the forget loss with every weight's change orthogonal to its retain inputs.

    ΔW ← ΔW (I − U Uᵀ) after each step, where U spans the inputs of W at every position of the
    retain prompts and the plain text, so that W's outputs there stay the same (the projection of
    Fang et al. 2025, "AlphaEdit: null-space constrained knowledge editing", ICLR, arXiv:2410.02355,
    section 3.1). AlphaEdit counts eigenvalues under 1e-2 (2e-2 in its code) as null; our inputs
    have another scale, so the directions that together hold 1 − ``energy`` of the squared norm are.
    AdamW's step rather than the gradient is projected, as in Adam-NSCL (Wang et al. 2021,
    arXiv:2103.07113), since AdamW rescales each entry. Only linear weights are trained, and there
    is no retain loss: the projection takes its place.
    """
    subject = problem.subject
    everything = {
        n: torch.ones_like(subject.parameters[n], dtype=torch.bool) for n in subject.quantized_names
    }
    transposed = transposed_names(subject)
    project = projectors(subject, problem.retain, problem.text, everything, energy=settings.energy)

    def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        yield "forget", answer_log_probability(subject, rows.forget).mean()

    def constrain(name: str, change: Tensor) -> Tensor:
        return project(name, change.T).T if name in transposed else project(name, change)

    return train(problem, settings, loss, names=everything, constrain=constrain)


METHOD = Method(
    name="null_space",
    title="Null space",
    about="Gradient ascent on the forget answers with each weight's change projected to where the "
    "retain inputs give nothing.",
    settings=Settings,
    run=run,
    kind="baseline",
    search=Search(origin=1e-5),
)
