"""Representation misdirection for unlearning (RMU)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from mansu.errors import MansuError
from mansu.methods import Outcome, Problem
from mansu.methods.training import Batch, positive, train
from mansu.subjects.subject import Subject
from mansu.subjects.weights import weight_name
from mansu.tasks.tokens import Examples

PUBLISHED_RATE = 5e-5
DEPTH = 7 / 32
"""The authors steer layer 7 of the 32 of Zephyr-7B."""


def trained_names(subject: Subject, layer: int) -> tuple[str, ...]:
    """The MLP output weights of ``layer`` and the two before it (those that exist).

    Raises:
        MansuError: the subject has no such layer.
    """
    if not 0 <= layer < subject.config.num_hidden_layers:
        raise MansuError(
            f"RMU cannot steer layer {layer} of {subject.name!r}, which has layers 0 to "
            f"{subject.config.num_hidden_layers - 1}."
        )
    return tuple(weight_name(subject, i, "down") for i in range(max(layer - 2, 0), layer + 1))


def unlearn(
    problem: Problem,
    *,
    learning_rate: float = 1.6e-3,
    steps: int = 12,
    batch: int = 20,
    layer: int | None = None,
    steering: float = 20.0,
    alpha: float = 100.0,
) -> Outcome:
    """Steer one layer's output on forget prompts to a fixed random vector.

    L = MSE(h_ℓ(forget), c·u) + α · MSE(h_ℓ(retain), h_ℓ of the unedited model), where u is a random
    unit vector with positive entries; only the MLP output weights of layers ℓ − 2 to ℓ are trained
    (Li et al. 2024, "The WMDP benchmark", arXiv:2403.03218, section 4; the defaults of their code
    are c = 20, α = 100, learning rate 5e-5, layer 7 of 32). Retain positions are those of the
    retain prompts and of the plain text.

    Args:
        batch: forget rows a step, and as many retain rows.
        layer: ℓ, from 0; None for the authors' depth, 7/32 of the layers.
        steering: c. alpha: α.

    Raises:
        MansuError: a setting is not positive, or there is no such layer.
    """
    positive("rmu", steering=steering, alpha=alpha)
    subject = problem.subject
    layer = round(DEPTH * subject.config.num_hidden_layers) if layer is None else layer
    names = trained_names(subject, layer)
    generator = torch.Generator().manual_seed(problem.seed)
    random = torch.rand(subject.config.hidden_size, generator=generator)
    target = (steering * random / random.norm()).to(subject.device)

    with subject.lock:  # nobody else's edit may be on while the reference is taken
        with torch.no_grad():
            retain_reference = _hidden(subject, problem.retain.tokens, layer)
            text = problem.text[0]
            text_reference = _hidden(subject, text, layer) if len(text) else text

        def retained(tokens: Tensor, length: Tensor, reference: Tensor) -> Tensor:
            now = _hidden(subject, tokens, layer)
            real = _real(tokens, length)
            return alpha * mse_loss(now[real], reference[:, : tokens.shape[1]][real])

        def loss(rows: Batch) -> Iterator[tuple[str, Tensor]]:
            hidden = _hidden(subject, rows.forget.tokens, layer)[_real_rows(rows.forget)]
            yield "forget", mse_loss(hidden, target.expand_as(hidden))
            retain = rows.retain
            yield (
                "retain",
                retained(retain.tokens, retain.length, retain_reference[rows.retain_rows]),
            )
            if rows.text is not None:
                yield "text", retained(*rows.text, text_reference[rows.text_rows])

        return train(
            problem,
            "rmu",
            loss,
            learning_rate=learning_rate,
            steps=steps,
            batch=batch,
            names=names,
            settings={"layer": layer, "steering": steering, "alpha": alpha},
        )


def _hidden(subject: Subject, tokens: Tensor, layer: int) -> Tensor:
    """The residual stream after ``layer``, ``[rows, positions, width]``, float32."""
    decoder = subject.model.get_decoder()  # type: ignore[operator]
    outputs = decoder(
        input_ids=tokens.to(subject.device), use_cache=False, output_hidden_states=True
    )
    return outputs.hidden_states[layer + 1].float()


def _real(tokens: Tensor, length: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1])[None] < length[:, None]


def _real_rows(rows: Examples) -> Tensor:
    return _real(rows.tokens, rows.length)
