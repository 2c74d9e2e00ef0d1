"""Independent computations that attribution is held against, by the tests and experiments/."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mansu.circuits import gradients
from mansu.circuits.graph import graph_of
from mansu.circuits.metric import metric_values
from mansu.circuits.record import Record, logits_with, record
from mansu.measure.geometry import Mask
from mansu.subjects.blocks import Block
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Pairs


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float((found - expected).norm() / expected.norm())


def gradients_of_split_stream(subject: Subject, pairs: Pairs) -> tuple[list[Tensor], Tensor]:
    """∂L/∂x_v with one copy of the residual stream for every query, key and value.

    Autograd goes through the model's own norm and projections, a copy at a time: nothing of the
    closed form under test is used.
    """
    layout = graph_of(subject)
    copies: list[Tensor] = []
    streams: dict[str, Tensor] = {}
    hooks: list[Any] = []
    for layer in range(layout.n_layers):
        block = Block(subject, layer)
        attention = block.bridge.attn
        # OLMo-2's attention reads the stream as it is.
        norm = getattr(block.bridge, "ln1", torch.nn.Identity())
        norm = getattr(norm, "original_component", norm)

        def keep(value: Tensor, hook: Any) -> None:
            streams["x"] = value

        def q_hook(
            value: Tensor, hook: Any, attention: Any = attention, norm: Any = norm
        ) -> Tensor:
            heads = layout.per_layer - 1
            split = streams["x"][:, :, None].expand(-1, -1, heads, -1).clone()
            split.retain_grad()
            copies.append(split)
            groups = split.split([layout.n_heads, layout.n_kv_heads, layout.n_kv_heads], 2)
            for kind, part in zip("qkv", groups, strict=True):
                linear = getattr(attention, kind).original_component
                full = linear(norm(part)).unflatten(-1, (part.shape[2], -1))  # every head's input
                diagonal = full.diagonal(dim1=2, dim2=3).movedim(-1, 2)  # to its own weights
                streams[kind] = diagonal
            return streams["q"]

        hooks += [(block.hook_in, keep), (block.hook_qkv[0], q_hook)]
        hooks += [
            (name, lambda value, hook, kind=kind: streams[kind])
            for kind, name in zip("kv", block.hook_qkv[1:], strict=True)
        ]
    embedding = record(subject, layout, pairs, pairs.clean, ()).embedding.requires_grad_()
    hooks.insert(0, ("blocks.0.hook_in", lambda value, hook: embedding))
    with torch.enable_grad():
        logits = logits_with(subject, pairs, pairs.clean, hooks)
        metric_values("logit_difference", logits, pairs).mean().backward()
    gradients = [copy.grad.flatten(0, 1).transpose(0, 1) for copy in copies]  # type: ignore[union-attr]
    return gradients, logits.detach()


def gradient_errors(subject: Subject, pairs: Pairs) -> list[float]:
    """Relative error, by layer, of attribution's gradients at q, k and v to a split stream's."""
    layout = graph_of(subject)
    expected, logits = gradients_of_split_stream(subject, pairs)
    plain = subject.next_token_logits(pairs.clean, pairs.length)
    assert torch.allclose(logits, plain, atol=1e-5)  # to split the stream changes nothing

    everywhere = torch.arange(pairs.clean.numel())
    sums = gradients.Gradients(subject, layout, Record(), None, 1, everywhere)
    sums.add(
        pairs,
        ("blocks.0.hook_in", lambda value, hook: value.detach().requires_grad_()),
        lambda logits: metric_values("logit_difference", logits, pairs).mean(),
    )
    errors = []
    for layer in range(layout.n_layers):
        found = sums.at_attention(layer, slice(None))
        assert found is not None
        errors.append(relative_error(found, expected[layer]))
    return errors


@contextmanager
def near_pairs(subject: Subject, pairs: Pairs, distance: float) -> Iterator[Pairs]:
    """Pairs whose corrupt embeddings differ from the clean ones by a step of size ``distance``.

    Corrupt prompts use tokens from 25 up, whose embeddings are set, until the end of the block,
    beside those of 25 less.
    """
    clean = pairs.clean % 25
    corrupt = clean.clone()
    corrupt[:, 1] += 25
    corrupt[:, 3] += 25
    weight: Tensor = subject.model.get_input_embeddings().weight  # type: ignore[operator,union-attr]
    before = weight.clone()
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(25, weight.shape[1], generator=generator, dtype=weight.dtype)
    weight[25:].copy_(weight[:25] + distance * noise)
    try:
        yield replace(
            pairs, clean=clean, corrupt=corrupt, answer=pairs.answer % 25, foil=pairs.foil % 25
        )
    finally:
        weight.copy_(before)


def bound(subject: Subject, edit: Edit, mask: Mask, fisher: Mapping[str, Tensor]) -> float:
    """Theorem 1's quadratic bound on the retain loss, ½ Σ F_i δ_i² over the mask, in nats.

    With the circuit's mask it is the restricted bound; with a mask of every weight the global one,
    which is never smaller.
    """
    total = 0.0
    for name, (where, delta) in edit.delta(subject).items():
        if name in mask:
            moved = torch.zeros(mask[name].numel())
            moved[where.cpu()] = delta.cpu().float()
            total += float((fisher[name] * moved[mask[name].flatten()].square()).sum()) / 2
    return total
