"""Representation misdirection for unlearning (RMU)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from mansu.errors import BadInputError
from mansu.methods import training
from mansu.methods.method import Method, Outcome, Problem, Search
from mansu.methods.training import Batch, TrainingSettings, train
from mansu.settings import setting
from mansu.subjects.subject import Subject
from mansu.subjects.weights import weight_name

DEPTH = 7 / 32
"""The authors steer layer 7 of the 32 of Zephyr-7B."""


def trained_names(subject: Subject, layer: int) -> tuple[str, ...]:
    """The MLP output weights of ``layer`` and the two before it (those that exist).

    Raises:
        BadInputError: the subject has no such layer.
    """
    if not 0 <= layer < subject.config.num_hidden_layers:
        raise BadInputError(
            f"RMU cannot steer layer {layer} of {subject.name!r}, which has layers 0 to "
            f"{subject.config.num_hidden_layers - 1}."
        )
    return tuple(weight_name(subject, i, "down") for i in range(max(layer - 2, 0), layer + 1))


@dataclass(frozen=True)
class Settings(TrainingSettings):
    RATE = 3.2e-3
    learning_rate: float | None = training.learning_rate(RATE, "5e-5 in the authors' code")
    steps: int = training.steps(8)
    layer: int | None = setting(
        None,
        "The layer that is steered, from 0. Empty for the authors' depth, 7/32 of the layers.",
        low=0,
        source="7 of Zephyr-7B's 32 in the authors' code",
    )
    steering: float = setting(
        20.0,
        "c: length of the random vector that forget prompts are steered to.",
        low=0,
        above=True,
        source="20 in the authors' code",
    )
    alpha: float = setting(
        100.0,
        "α: weight of what holds the model in place.",
        low=0,
        above=True,
        source="100 in the authors' code",
    )


def run(problem: Problem, settings: Settings) -> Outcome:
    """Steer one layer's output on forget prompts to a fixed random vector.

    L = MSE(h_ℓ(forget), c·u) + α · MSE(h_ℓ(retain), h⁰_ℓ(retain)) + α · MSE(h_ℓ(text), h⁰_ℓ(text)),
    where h⁰ is of the unedited model and u a random unit vector with positive entries; only the MLP
    output weights of layers ℓ − 2 to ℓ are trained (Li et al. 2024, "The WMDP benchmark",
    arXiv:2403.03218, section 4). The retain prompts and the plain text have a mean each, over all
    of their positions.

    Raises:
        BadInputError: there is no such layer.
    """
    subject = problem.subject
    layer = settings.layer
    if layer is None:
        layer = round(DEPTH * subject.config.num_hidden_layers)
    settings = replace(settings, layer=layer)
    names = trained_names(subject, layer)
    generator = torch.Generator().manual_seed(problem.seed)
    random = torch.rand(subject.config.hidden_size, generator=generator)
    target = (settings.steering * random / random.norm()).to(subject.device)
    with torch.no_grad(), training.products(subject, settings.bfloat16):
        retain_reference = _hidden(subject, problem.retain.tokens, problem.retain.length, layer)
        text_reference = _hidden(subject, *problem.text, layer)

    def retained(tokens: Tensor, length: Tensor, reference: Sequence[Tensor]) -> Tensor:
        now = subject.states(tokens, length, layer).float()
        return settings.alpha * mse_loss(now, torch.cat(list(reference)))

    def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        forget, retain = rows.forget, rows.retain
        hidden = subject.states(forget.tokens, forget.length, layer).float()
        yield "forget", mse_loss(hidden, target.expand_as(hidden))
        reference = [retain_reference[i] for i in rows.retain_rows.tolist()]
        yield "retain", retained(retain.tokens, retain.length, reference)
        if rows.text is not None:
            reference = [text_reference[i] for i in rows.text_rows.tolist()]
            yield "text", retained(*rows.text, reference)

    return train(problem, settings, loss, names=names)


def _hidden(subject: Subject, tokens: Tensor, length: Tensor, layer: int) -> Sequence[Tensor]:
    """The residual stream after ``layer``, ``[length, width]`` a row, float32."""
    if not len(tokens):
        return ()
    return subject.states(tokens, length, layer).float().split(length.tolist())


METHOD = Method(
    name="rmu",
    title="RMU",
    about="Steers one layer's output on forget prompts to a fixed random vector and holds it in "
    "place on retain prompts.",
    settings=Settings,
    run=run,
    kind="baseline",
    search=Search(origin=5e-5),
)
