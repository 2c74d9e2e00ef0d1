"""Saliency-based unlearning with a large learning rate (SURE)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mansu.measure.scores import answer_log_probability
from mansu.methods import training
from mansu.methods.method import Method, Outcome, Problem, Search
from mansu.methods.training import (
    Batch,
    TrainingSettings,
    forget_and_retain,
    scratch,
    train,
)
from mansu.settings import setting
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples

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


@dataclass(frozen=True)
class Settings(TrainingSettings):
    RATE = 2e-4
    learning_rate: float | None = training.learning_rate(RATE, "")
    steps: int | None = training.steps(None, empty=(4, training.TOY_STEPS))
    percentile: float = setting(
        90.0,
        "Only neurons whose saliency is at or above this percentile are trained.",
        low=0,
        high=99.9,
        source="90 in SURE's code",
    )
    retain_weight: float = training.retain_weight("1 in SURE's code")


def run(problem: Problem, settings: Settings) -> Outcome:
    """Gradient difference at a large learning rate, on the most salient neurons only.

    θ = θ₀ + m ⊙ Δθ, where m keeps the neurons whose forget gradient at θ₀ is in the top tenth, and
    Δθ minimises −L_forget + w · L_retain (Zhang et al. 2025, "Catastrophic failure of LLM
    unlearning via quantization", ICLR, arXiv:2410.16454, section 6; algorithm ``ga_gdr_sure`` of
    their code). Theirs is a large rate, so that the change crosses quantisation bins. Here ``RATE``
    is ten times that of GA, GradDiff and KL, and below that of RMU and null space; with it 1 % of
    the codes change on SmolLM2, after GA 0.1 %, after RMU 15 %. In a toy all have the same rate.
    """
    subject = problem.subject
    salient = salient_rows(subject, problem.forget, settings.percentile)

    def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        now, kept = forget_and_retain(subject, rows, settings.retain_weight)
        yield from {"forget": now.mean(), **kept}.items()

    def constrain(name: str, change: Tensor) -> Tensor:
        return change * salient[name].reshape(-1, *[1] * (change.ndim - 1))

    return train(problem, settings, loss, constrain=constrain)


METHOD = Method(
    name="sure",
    title="SURE",
    about="Gradient difference on the most salient neurons only, at a large learning rate, which "
    "is meant to have changes outlive quantisation.",
    settings=Settings,
    run=run,
    kind="baseline",
    search=Search(origin=1e-4),
)
