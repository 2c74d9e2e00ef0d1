"""Saliency-based unlearning with a large learning rate (SURE)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mansu.errors import MansuError
from mansu.methods import Outcome, Problem
from mansu.methods.training import Batch, answer_log_probability, retain_terms, scratch, train
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples

PUBLISHED_RATE = 1e-4
CHUNK = 64


def salient_rows(subject: Subject, forget: Examples, percentile: float) -> dict[str, Tensor]:
    """Which neurons the forget loss is most sensitive to.

    A neuron is a row of a weight matrix or an entry of a vector; its saliency is the norm of the
    forget loss's gradient there. Name → bool ``[rows]``, true at or above the percentile of all.
    """
    with scratch(subject, subject.parameters):
        for start in range(0, len(forget), CHUNK):
            chunk = forget.select(range(start, min(start + CHUNK, len(forget))))
            answer_log_probability(subject, chunk).sum().backward()
        saliency = {}
        for name, parameter in subject.parameters.items():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            saliency[name] = gradient.float().reshape(len(gradient), -1).norm(dim=1)
    every = torch.cat([s.cpu() for s in saliency.values()])
    threshold = float(every.kthvalue(min(int(percentile / 100 * len(every)) + 1, len(every)))[0])
    return {name: s >= threshold for name, s in saliency.items()}


def unlearn(
    problem: Problem,
    *,
    learning_rate: float = 4e-4,
    steps: int = 12,
    batch: int = 20,
    percentile: float = 90.0,
    retain_weight: float = 1.0,
) -> Outcome:
    """Gradient difference at a large learning rate, on the most salient neurons only.

    θ = θ₀ + m ⊙ Δθ, where m keeps the neurons whose forget gradient at θ₀ is in the top tenth, and
    Δθ minimises −L_forget + w · L_retain (Zhang et al. 2025, "Catastrophic failure of LLM
    unlearning via quantization", ICLR, arXiv:2410.16454, section 6; their code, algorithm
    ``ga_gdr_sure``, has percentile 90 and w = 1). The large rate is what makes the change cross
    quantisation bins: ten times that of the other baselines.

    Args:
        batch: forget rows a step, and as many retain rows.
        percentile: of neuron saliency, 0 to 100. retain_weight: w.

    Raises:
        MansuError: a setting is not positive, or the percentile is not between 0 and 100.
    """
    if not 0 <= percentile < 100:
        raise MansuError(f"percentile of sure is {percentile}: give a number from 0 to under 100.")
    subject = problem.subject
    with subject.lock:
        salient = salient_rows(subject, problem.forget, percentile)

        def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
            yield "forget", answer_log_probability(subject, rows.forget).mean()
            yield from retain_terms(subject, rows, retain_weight)

        def constrain(name: str, change: Tensor) -> Tensor:
            return change * salient[name].reshape(-1, *[1] * (change.ndim - 1))

        return train(
            problem,
            "sure",
            loss,
            learning_rate=learning_rate,
            steps=steps,
            batch=batch,
            constrain=constrain,
            settings={"percentile": percentile, "retain_weight": retain_weight},
        )
