"""Gradient ascent regularised by the KL divergence from the unedited model (KL)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from mansu.measure.scores import answer_log_probability
from mansu.methods import training
from mansu.methods.method import Method, Outcome, Problem, Search
from mansu.methods.training import Batch, TrainingSettings, train
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples


def kl_loss(now: Tensor, reference: Tensor) -> Tensor:
    """Mean over positions of KL(π_ref ‖ π), nats.

    Args:
        now, reference: log-probabilities ``[positions, vocabulary]``.
    """
    return kl_div(now, reference, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class Settings(TrainingSettings):
    RATE = 2e-5
    learning_rate: float | None = training.learning_rate(RATE, "1e-5 in TOFU's code")
    steps: int = training.steps(12)
    retain_weight: float = training.retain_weight("1 in TOFU's code")


def run(problem: Problem, settings: Settings) -> Outcome:
    """Ascend the forget loss while the retain predictions stay those of the unedited model.

    L = −L_forget + w · KL(π_ref ‖ π) on the retain set (Maini et al. 2024, TOFU, arXiv:2401.06121,
    section 3.3, "KL minimization"). The divergence is taken where a retain answer is predicted and
    at every position of the plain text. The reference log-probabilities are kept: positions ×
    vocabulary × 4 bytes.
    """
    subject, weight = problem.subject, settings.retain_weight
    with torch.no_grad(), training.products(subject, settings.bfloat16):
        retain_reference = _answer_distribution(subject, problem.retain)
        text = problem.text
        text_reference = _text_distribution(subject, *text) if len(text[0]) else text[0]
    # Where the text rows of the batch lie among the flat positions of all text rows.
    ends = text[1].cumsum(0).tolist()

    def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        yield "forget", answer_log_probability(subject, rows.forget).mean()
        now = _answer_distribution(subject, rows.retain)
        yield "retain", weight * kl_loss(now, retain_reference[rows.retain_rows])
        if rows.text is not None:
            sizes = rows.text[1].tolist()
            reference = torch.cat(
                [
                    text_reference[ends[row] - size : ends[row]]
                    for row, size in zip(rows.text_rows.tolist(), sizes, strict=True)
                ]
            )
            now = _text_distribution(subject, *rows.text)
            yield "text", weight * kl_loss(now, reference)

    return train(problem, settings, loss)


def _answer_distribution(subject: Subject, rows: Examples) -> Tensor:
    """log π(· | prompt), ``[N, vocabulary]``."""
    return log_softmax(subject.next_token_logits(rows.tokens, rows.length).float(), -1)


def _text_distribution(subject: Subject, tokens: Tensor, length: Tensor) -> Tensor:
    """log π(· | text so far) at every real position, flat ``[positions, vocabulary]``."""
    return log_softmax(subject.head(subject.states(tokens, length)).float(), -1)


METHOD = Method(
    name="kl",
    title="KL",
    about="Gradient ascent on the forget answers, held to the unedited model's predictions on the "
    "retain set by their KL divergence.",
    settings=Settings,
    run=run,
    kind="baseline",
    search=Search(origin=1e-5),
)
