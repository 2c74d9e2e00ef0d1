"""Rows run one at a time by the plain model, without padding or packs: what packs are held to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy

from mansu.subjects.subject import Subject
from mansu.subjects.weights import ROLES, family_of, layer_of, lines, running


def rows_of(tokens: Tensor, length: Tensor) -> list[Tensor]:
    """The real tokens of each row."""
    return [row[:n] for row, n in zip(tokens, length.tolist(), strict=True)]


def states_alone(subject: Subject, row: Tensor) -> Tensor:
    """Final hidden states ``[n, d]`` of one row."""
    decoder: Any = subject.model.get_decoder()  # type: ignore[operator]
    return decoder(input_ids=row[None], use_cache=False).last_hidden_state[0]


def logits_alone(subject: Subject, row: Tensor) -> Tensor:
    """Logits ``[n, vocabulary]`` of one row."""
    model: Any = subject.model
    return model(input_ids=row[None], use_cache=False).logits[0]


def answer_alone(subject: Subject, row: Tensor, answer: Tensor) -> Tensor:
    """log π(answer | row), nats."""
    return logits_alone(subject, row)[-1].log_softmax(0)[answer]


def text_alone(subject: Subject, row: Tensor) -> Tensor:
    """Cross-entropy of each next token of one row, nats ``[n - 1]``."""
    return cross_entropy(logits_alone(subject, row)[:-1], row[1:], reduction="none")


def inputs_alone(subject: Subject, module: Module, tokens: Tensor, length: Tensor) -> Tensor:
    """What enters a module at every real token, row after row, by a plain hook."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].detach()))
    try:
        with torch.no_grad():
            for row in rows_of(tokens, length):
                states_alone(subject, row)
    finally:
        handle.remove()
    return torch.cat(seen)


@contextmanager
def differentiable(*parameters: Tensor) -> Iterator[None]:
    """The parameters need a gradient inside the block only."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def parts(subject: Subject, name: str) -> list[tuple[Module, Tensor | None]]:
    """What the bridge runs of a weight: modules, and the outputs of the weight that each gives.

    None, of a single module, stands for all.
    """
    layer = layer_of(subject, name)
    assert layer is not None
    roles = [role for role in ROLES if role in family_of(subject).maps]
    found = [(role, where) for role in roles if (where := lines(subject, layer, role)).name == name]
    if len(found) == 1:
        return [(running(subject, layer, found[0][0]), None)]
    return [(running(subject, layer, role), where.all()) for role, where in found]
