"""Runs with hooks: what is written and read on clean and corrupt prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mansu.circuits.graph import Graph
from mansu.errors import MansuError
from mansu.subjects.blocks import Block
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Pairs

Hook = tuple[str, Callable[..., Any]]  # TransformerLens's: name, function of value and hook point


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def logits_with(subject: Subject, pairs: Pairs, tokens: Tensor, hooks: Sequence[Hook]) -> Tensor:
    """Logits after the last token ``[N, vocabulary]`` with TransformerLens hooks in place."""
    with subject.bridge.hooks(fwd_hooks=list(hooks)):
        return subject.next_token_logits(tokens, pairs.length)


@dataclass
class Record:
    """Activations of one run, or how two runs differ, a list entry a layer.

    ``[n, p]`` is one axis of live tokens where only those were asked for.

    Attributes:
        embedding: ``[n, p, d]``, the residual stream that enters layer 0.
        inputs, mlp_inputs: residual stream that enters the attention and the MLP, ``[n, p, d]``.
        final: residual stream that enters the final norm.
        qkv: ``[n, p, V, k]``, all queries, keys and values.
        z: ``[n, p, H, k]``, times the post-norm's r where there is one.
        attention, mlp: what attention and MLP write to the residual stream, ``[n, p, d]``.
        neurons: ``[n, p, m]``.
        logits: ``[n, vocabulary]``.
    """

    embedding: Tensor = field(default_factory=lambda: torch.empty(0))
    final: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    inputs: list[Tensor] = field(default_factory=list)
    mlp_inputs: list[Tensor] = field(default_factory=list)
    qkv: list[Tensor] = field(default_factory=list)
    z: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    mlp: list[Tensor] = field(default_factory=list)
    neurons: list[Tensor] = field(default_factory=list)


def record(
    subject: Subject,
    graph: Graph,
    pairs: Pairs,
    tokens: Tensor,
    kept: Sequence[str],
    live: Tensor | None = None,
) -> Record:
    """Run without gradients and keep the activations named in ``kept``, at ``live`` tokens or all.

    Raises:
        MansuError: an activation is NaN or infinite; the message names the layer.
    """
    run = Record()
    with torch.no_grad():
        run.logits = logits_with(subject, pairs, tokens, recorder(subject, graph, run, kept, live))
    return run


def recorder(
    subject: Subject,
    graph: Graph,
    run: Record,
    kept: Sequence[str],
    live: Tensor | None,
    minus: bool = False,
) -> list[Hook]:
    """Hooks that put a run's activations into ``run``, or, with ``minus``, subtract them from it.

    The second so that no two runs are ever held, only the one and how the other differs.
    """
    raw: dict[str, Tensor] = {}

    def finish_layer(block: Block, layer: int) -> None:
        for part, hook in (
            ("attention", block.hook_attention_write),
            ("MLP", block.hook_mlp_write),
        ):
            if not bool(torch.isfinite(raw[hook]).all()):
                raise MansuError(
                    f"The {part} of layer {layer} of {subject.name!r} writes NaN or infinite "
                    "values: check the weights and the dtype."
                )
        for name, hook in (
            ("inputs", block.hook_in),
            ("mlp_inputs", block.hook_mlp_in),
            ("attention", block.hook_attention_write),
            ("mlp", block.hook_mlp_write),
            ("neurons", block.hook_neurons),
        ):
            if name in kept:
                keep(getattr(run, name), layer, at_tokens(raw[hook], live))
        if "qkv" in kept:
            qkv = torch.cat([at_tokens(raw[name], live) for name in block.hook_qkv], -2)
            keep(run.qkv, layer, qkv)
        if "z" in kept:
            scale = post_scale(block, at_tokens(raw[block.hook_attention], live))
            z = at_tokens(raw[block.hook_z], live)
            keep(run.z, layer, z * scale.to(z.dtype))
        if layer == 0 and minus:
            run.embedding.sub_(at_tokens(raw[block.hook_in], live))
        elif layer == 0:
            run.embedding = at_tokens(raw[block.hook_in], live)
        raw.clear()

    def keep(values: list[Tensor], layer: int, value: Tensor) -> None:
        if minus:
            values[layer].sub_(value)
        else:
            values.append(value)

    def tap(name: str) -> Hook:
        return name, lambda value, hook: raw.__setitem__(name, value.detach())

    def end(block: Block, layer: int) -> Hook:
        return block.hook_end, torch.no_grad()(lambda value, hook: finish_layer(block, layer))

    blocks = [Block(subject, layer) for layer in range(graph.n_layers)]
    final = ("ln_final.hook_in", lambda value, hook: setattr(run, "final", value.detach()))
    hooks: list[Hook] = [final]
    for layer, block in enumerate(blocks):
        hooks += [*(tap(name) for name in block.hooks), end(block, layer)]
    return hooks


def post_scale(block: Block, attention: Tensor) -> Tensor:
    """The post-norm's r ``[..., 1, 1]`` for an attention output ``[..., d]``; 1 without one."""
    if not block.has_post_norms:
        return attention.new_ones(())
    return block.post_norm.normalise(attention)[1][..., None]


def live_tokens(pairs: Pairs) -> Tensor:
    """Where clean and corrupt runs may differ, int64 indices into ``[pairs × positions]``.

    Neither the shared beginning of two prompts nor padding.
    """
    real = torch.arange(pairs.clean.shape[1]) < pairs.length[:, None]
    differs = (pairs.clean != pairs.corrupt).cumsum(1).bool()
    return (differs & real).flatten().nonzero()[:, 0]


def at_tokens(x: Tensor, live: Tensor | None) -> Tensor:
    """``[n, p, ...]`` at the live tokens, ``[T, ...]``; as it is without."""
    return x if live is None else x.flatten(0, 1).index_select(0, live.to(x.device))
