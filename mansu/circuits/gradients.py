"""Gradients at every destination, in closed form, and their product with what is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mansu.circuits.graph import Graph, graph_of
from mansu.circuits.metric import Metric, metric_values
from mansu.circuits.record import (
    Hook,
    Record,
    accumulator,
    at_tokens,
    live_tokens,
    logits_with,
    record,
    recorder,
)
from mansu.subjects.blocks import Block
from mansu.subjects.subject import Subject
from mansu.subjects.weights import lines
from mansu.tasks.tokens import Pairs

Loss = Callable[[Tensor], Tensor]


SCORES = ("scores", "queries", "keys", "values", "outputs", "neurons")
STEP_BLOCK = 8  # steps whose norm statistics are kept before they are folded into the scores


CONTRACTION = 512 << 20  # bytes that the final product holds at once, at most


def d_mlp(subject: Subject) -> int:
    """Neurons of a layer's MLP."""
    return lines(subject, 0, "down").count


@dataclass
class Sums:
    """What is summed over chunks and steps."""

    scores: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    outputs: Tensor
    neurons: Tensor
    clean: float = 0.0
    corrupt: float = 0.0

    @classmethod
    def zeros(cls, graph: Graph, subject: Subject) -> Sums:
        layers, device = graph.n_layers, subject.device
        dtype = accumulator(next(iter(subject.parameters.values())).dtype)
        shapes = [
            (graph.n_sources, graph.n_destinations),
            (layers, graph.n_heads),
            (layers, graph.n_kv_heads),
            (layers, graph.n_kv_heads),
            (layers, graph.n_heads),
            (layers, d_mlp(subject)),
        ]
        zeros = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        return cls(**dict(zip(SCORES, zeros, strict=True)))


class Gradients:
    """Sums of gradients over a few steps, a list entry a layer (None: nothing reached it).

    T live tokens.

    Attributes:
        reads: Σ r·g of queries, keys and values, ``[T, V, k]``.
        pulls: r · (x̂ · W̃ g) / d of each step, ``[T, V]``; normalised: its x̂, ``[T, d]``.
        mlp: gradient at the residual stream that the MLP reads, ``[T, d]``; final: at the logits'.
    """

    def __init__(
        self,
        subject: Subject,
        graph: Graph,
        delta: Record,
        slices: Sums | None,
        steps: int,
        live: Tensor,
    ) -> None:
        layers = graph.n_layers
        self.subject, self.graph, self.delta, self.slices = subject, graph, delta, slices
        self.steps, self.live = steps, live
        self.blocks = [Block(subject, layer) for layer in range(layers)]
        self.offsets = [block.offset() for block in self.blocks]
        self.reads: list[Tensor | None] = [None] * layers
        self.mlp: list[Tensor | None] = [None] * layers
        self.pulls: list[list[Tensor]] = [[] for _ in range(layers)]
        self.normalised: list[list[Tensor]] = [[] for _ in range(layers)]
        self.final: Tensor | None = None

    def add(self, pairs: Pairs, point: Hook, loss: Loss, also: Sequence[Hook] = ()) -> float:
        """One forward and one backward pass from ``point`` on, with other hooks; gives the loss."""
        taps: dict[str, Tensor] = {}
        hooks: list[Hook] = [point, *also, _tap(taps, "ln_final.hook_in")]
        for block in self.blocks:
            names = [block.hook_in, *block.hook_qkv, block.hook_z, block.hook_mlp_in]
            hooks += [_tap(taps, name) for name in [*names, block.hook_neurons]]
        with torch.enable_grad():
            value = loss(logits_with(self.subject, pairs, pairs.clean, hooks))
        inputs = [taps.pop(block.hook_in).detach() for block in self.blocks]
        wanted = {name: tensor for name, tensor in taps.items() if tensor.requires_grad}
        found = torch.autograd.grad(value, list(wanted.values()), allow_unused=True)
        gradient = {name: g for name, g in zip(wanted, found, strict=True) if g is not None}
        with torch.no_grad():
            for layer, x in enumerate(inputs):
                self._add_layer(layer, x, taps, gradient)
            self.final = _plus(self.final, self._live(gradient["ln_final.hook_in"]))
        return float(value.detach())

    def add_by_layer(
        self, pairs: Pairs, point: Hook, loss: Loss, also: Sequence[Hook] = ()
    ) -> float:
        """As ``add`` with ``point`` at the embedding, with one layer's graph at a time."""
        bridge = self.subject.bridge
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        taps: dict[str, Tensor] = {}

        def remember(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        handles = [
            block.bridge.register_forward_pre_hook(remember, with_kwargs=True)
            for block in self.blocks
        ]
        hooks = [point, *also, _tap(taps, "ln_final.hook_in")]
        try:
            with torch.no_grad():
                logits_with(self.subject, pairs, pairs.clean, hooks)
        finally:
            for handle in handles:
                handle.remove()
        final = taps.pop("ln_final.hook_in").detach().requires_grad_()
        with torch.enable_grad():
            rows = torch.arange(len(pairs), device=final.device)
            last = bridge.ln_final(final[rows, pairs.length.to(final.device) - 1])
            value = loss(self.subject.head(last))
        (upstream,) = torch.autograd.grad(value, final)
        self.final = _plus(self.final, self._live(upstream))
        for layer in reversed(range(self.graph.n_layers)):
            block, (args, kwargs) = self.blocks[layer], calls[layer]
            x = (point[1](args[0], None) if layer == 0 else args[0]).detach().requires_grad_()
            names = [*block.hook_qkv, block.hook_z, block.hook_mlp_in, block.hook_neurons]
            taps.clear()
            with bridge.hooks(fwd_hooks=[_tap(taps, n) for n in names]), torch.enable_grad():
                out = block.bridge(x, *args[1:], **kwargs)
            out = out[0] if isinstance(out, tuple) else out
            *found, downstream = torch.autograd.grad(
                out, [*(taps[n] for n in names), x], upstream.to(out.device)
            )
            with torch.no_grad():
                gradient = dict(zip(names, found, strict=True))
                self._add_layer(layer, x.detach(), taps, gradient)
            upstream = downstream
        return float(value.detach())

    def _live(self, x: Tensor) -> Tensor:
        """``[n, p, ...]`` to ``[T, ...]``, in the dtype of sums."""
        return at_tokens(x, self.live).to(accumulator(x.dtype))

    def _add_layer(
        self,
        layer: int,
        x: Tensor,
        value: dict[str, Tensor],
        gradient: dict[str, Tensor],
    ) -> None:
        block = self.blocks[layer]
        if block.hook_mlp_in in gradient:
            self.mlp[layer] = _plus(self.mlp[layer], self._live(gradient[block.hook_mlp_in]))
        if any(name in gradient for name in block.hook_qkv):
            parts = [
                gradient[name] if name in gradient else torch.zeros_like(value[name])
                for name in block.hook_qkv
            ]
            g = torch.cat([self._live(part) for part in parts], 1)
            out = torch.cat([self._live(value[name].detach()) for name in block.hook_qkv], 1)
            read, norm = g, block.norm
            if norm is not None:
                normalised, r = norm.normalise(self._live(x))
                self.normalised[layer].append(normalised)
                inner = ((out - self.offsets[layer]) * g).sum(-1)
                self.pulls[layer].append(inner * r / x.shape[-1])
                read = g * r[..., None]
            self.reads[layer] = _plus(self.reads[layer], read)
            if self.slices is not None:
                score = (self.delta.qkv[layer].to(g.dtype) * g).sum((0, 2)) / self.steps
                h, kv = self.graph.n_heads, self.graph.n_kv_heads
                for total, part in zip(
                    (self.slices.queries, self.slices.keys, self.slices.values),
                    score.split([h, kv, kv]),
                    strict=True,
                ):
                    total[layer] += part.to(total.device)
        if self.slices is not None:
            for total, name, delta in (
                (self.slices.outputs, block.hook_z, self.delta.z),
                (self.slices.neurons, block.hook_neurons, self.delta.neurons),
            ):
                if name in gradient:
                    score = delta[layer] * self._live(gradient[name])
                    score = score.sum((0, 2) if score.ndim == 3 else 0) / self.steps
                    total[layer] += score.to(total.device)

    def at_attention(self, layer: int, tokens: slice) -> Tensor | None:
        """Gradient at the residual stream that each query, key and value reads, ``[V, t, d]``."""
        reads = self.reads[layer]
        if reads is None:
            return None
        block = self.blocks[layer]
        weight, norm = block.readers()[0], block.norm  # [V, d, k]
        if norm is None:
            return reads[tokens].transpose(0, 1) @ weight.to(reads.dtype).mT  # [V, t, d]
        weight = weight.mul_(norm.scale[:, None]).to(reads.dtype)
        if norm.centred:
            weight -= weight.mean(1, keepdim=True)
        gradient = reads[tokens].transpose(0, 1) @ weight.mT
        pulls = torch.stack([p[tokens] for p in self.pulls[layer]], -1)  # [t, V, steps]
        normalised = torch.stack([x[tokens] for x in self.normalised[layer]], 1)  # [t, steps, d]
        gradient.transpose(0, 1).baddbmm_(pulls, normalised, alpha=-1)
        return gradient


def moved_by(name: str, difference: Tensor, share: float, live: Tensor) -> Hook:
    """A hook that adds a share of a difference ``[T, ...]`` and makes of it a leaf of autograd."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        tokens = value.detach().flatten(0, 1)
        change = share * difference.to(value.device)
        return tokens.index_add(0, live.to(value.device), change).view_as(value).requires_grad_()

    return name, hook


def _tap(taps: dict[str, Tensor], name: str) -> Hook:
    """A hook that puts the value into ``taps``."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        # A new view, so that its gradient is that of this reader alone, not of the stream.
        taps[name] = value.view_as(value)
        return taps[name]

    return name, hook


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total.add_(more)


def contract(
    subject: Subject,
    graph: Graph,
    delta: Record,
    gradients: Gradients,
    sources: range,
    size: int,
    scores: Tensor,
) -> None:
    """Add Σ (difference written by each source) · (gradient at each destination) to ``scores``.

    ``size`` tokens go through at once.
    """
    device, dtype = scores.device, scores.dtype
    n_tokens, d = delta.embedding.shape
    for tokens in (slice(t, min(t + size, n_tokens)) for t in range(0, n_tokens, size)):
        t = tokens.stop - tokens.start
        writes = torch.empty(len(sources), t, d, dtype=dtype, device=device)

        def put(first: int, values: Tensor, writes: Tensor = writes) -> None:
            if first in sources:
                place = first - sources.start
                writes[place : place + len(values)] = values.to(device)

        def score(n: int, destinations: slice, g: Tensor, writes: Tensor = writes) -> None:
            n = min(n, sources.stop) - sources.start
            if n > 0:
                product = writes[:n].flatten(1) @ g.flatten(1).T
                scores[sources.start : sources.start + n, destinations] += product

        put(0, delta.embedding[None, tokens])
        # What reads the stream between two layers' heads: an MLP, then all of an attention.
        reads = torch.zeros(graph.per_layer, t, d, dtype=dtype, device=device)
        for layer in range(graph.n_layers):
            attention = gradients.at_attention(layer, tokens)
            reads[1:] = 0 if attention is None else attention
            places = graph.attention_inputs(layer)
            first = min(layer, 1)  # no MLP before layer 0
            score(graph.head(layer), slice(places.start - first, places.stop), reads[1 - first :])
            output = Block(subject, layer).output().to(dtype)
            put(graph.head(layer), delta.z[layer][tokens].to(dtype).transpose(0, 1) @ output)
            put(graph.mlp(layer), delta.mlp[layer][None, tokens])
            mlp = gradients.mlp[layer]
            reads[0] = 0 if mlp is None else mlp[tokens]
        assert gradients.final is not None
        reads[1] = gradients.final[tokens]
        score(graph.n_sources, slice(graph.logits - 1, graph.logits + 1), reads[:2])


def differences(subject: Subject, pairs: Pairs) -> Tensor:
    """What every node writes on corrupt minus clean prompts, ``[n_sources, T, d]``.

    T are the ``live_tokens``. All pairs go through at once.
    """
    delta, _ = _difference(subject, graph_of(subject), pairs)
    return _writes(subject, delta)


def factors(
    subject: Subject, pairs: Pairs, *, steps: int = 5, metric: Metric = "logit_difference"
) -> tuple[Tensor, Tensor]:
    """The two factors of EAP-IG's scores, before their product sums over pairs and positions.

    All pairs go through at once.

    Returns:
        ``differences``, ``[n_sources, T, d]``; and the mean gradient of the summed metric at every
        destination, ``[n_destinations, T, d]``. Their product summed over T and d is what
        ``attribute`` gives, times the number of pairs.
    """
    graph, live = graph_of(subject), live_tokens(pairs)
    delta, clean = _difference(subject, graph, pairs)
    reference = clean.float().log_softmax(-1) if metric == "kl" else None
    gradients = Gradients(subject, graph, delta, None, steps, live)
    for step in range(steps):
        gradients.add(
            pairs,
            moved_by("blocks.0.hook_in", delta.embedding, (step + 0.5) / steps, live),
            lambda logits: metric_values(metric, logits, pairs, reference).sum(),
        )
    assert gradients.final is not None
    everywhere = slice(0, len(gradients.final))
    empty = torch.zeros_like(gradients.final)[None]
    reads = []
    for layer in range(graph.n_layers):
        attention = gradients.at_attention(layer, everywhere)
        reads.append(empty.expand(graph.per_layer - 1, -1, -1) if attention is None else attention)
        mlp = gradients.mlp[layer]
        reads.append(empty if mlp is None else mlp[None])
    sensitivities = torch.cat([*reads, gradients.final[None]]) / steps
    return _writes(subject, delta), sensitivities


def _difference(subject: Subject, graph: Graph, pairs: Pairs) -> tuple[Record, Tensor]:
    """What nodes write on corrupt minus clean prompts at live tokens, and the clean logits."""
    kept, live = ("z", "mlp"), live_tokens(pairs)
    delta = record(subject, graph, pairs, pairs.corrupt, kept, live)
    hooks = recorder(subject, graph, delta, kept, live, minus=True)
    with torch.no_grad():
        return delta, logits_with(subject, pairs, pairs.clean, hooks)


def _writes(subject: Subject, delta: Record) -> Tensor:
    dtype = accumulator(delta.embedding.dtype)
    writes = [delta.embedding[None].to(dtype)]
    for layer, (z, mlp) in enumerate(zip(delta.z, delta.mlp, strict=True)):
        z = z.to(dtype).transpose(0, 1)
        writes += [z @ Block(subject, layer).output().to(dtype), mlp[None].to(dtype)]
    return torch.cat(writes)
