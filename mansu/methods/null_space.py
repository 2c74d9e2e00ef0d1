"""Gradient ascent in the null space of the retain inputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mansu.errors import MansuError
from mansu.measure.geometry import projectors
from mansu.methods import Outcome, Problem
from mansu.methods.training import Batch, answer_log_probability, train
from mansu.subjects.weights import transposed_names

PUBLISHED_RATE = 1e-5


def unlearn(
    problem: Problem,
    *,
    learning_rate: float = 4e-5,
    steps: int = 12,
    batch: int = 20,
    energy: float = 0.99,
) -> Outcome:
    """Ascend the forget loss with every weight's change orthogonal to its retain inputs.

    ΔW ← ΔW (I − U Uᵀ) after each step, where U spans the inputs of W at every position of the
    retain prompts and the plain text, so that W's outputs there stay the same (the projection of
    Fang et al. 2025, "AlphaEdit: null-space constrained knowledge editing", ICLR, arXiv:2410.02355,
    section 3.1). AlphaEdit counts eigenvalues under 1e-2 (2e-2 in its code) as null; our inputs
    have another scale, so the directions that together hold 1 − ``energy`` of the squared norm are.
    AdamW's step rather than the gradient is projected, as in Adam-NSCL (Wang et al. 2021,
    arXiv:2103.07113), since AdamW rescales each entry. Only linear weights are trained, and there
    is no retain loss: the projection takes its place.

    Args:
        batch: forget rows a step.
        energy: share of the retain inputs' squared norm that is protected, above 0 and under 1.

    Raises:
        MansuError: a setting is not positive, or energy is not between 0 and 1.
    """
    if not 0 < energy < 1:
        raise MansuError(f"energy of null space is {energy}: give a number above 0 and under 1.")
    subject = problem.subject
    everything = {
        n: torch.ones_like(subject.parameters[n], dtype=torch.bool) for n in subject.quantized_names
    }
    transposed = transposed_names(subject)
    with subject.lock:  # nobody else's edit may be on while the inputs are taken
        project = projectors(subject, problem.retain, problem.text, everything, energy=energy)

        def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
            yield "forget", answer_log_probability(subject, rows.forget).mean()

        def constrain(name: str, change: Tensor) -> Tensor:
            return project(name, change.T).T if name in transposed else project(name, change)

        return train(
            problem,
            "null space",
            loss,
            learning_rate=learning_rate,
            steps=steps,
            batch=batch,
            names=everything,
            constrain=constrain,
            settings={"energy": energy},
        )
