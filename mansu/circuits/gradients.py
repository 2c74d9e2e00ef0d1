"""Gradients at every destination, in closed form, and their product with what is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mansu.circuits.graph import Graph, graph_of
from mansu.circuits.metric import Metric, metric_values
from mansu.circuits.record import (
    Hook,
    PackedPairs,
    Record,
    accumulator,
    at_tokens,
    difference,
    logits_with,
)
from mansu.subjects.blocks import Block
from mansu.subjects.packing import pack_size
from mansu.subjects.subject import Subject, locked
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
        dtype = accumulator(subject.dtype)
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

    def divide(self, n: int) -> None:
        """Make sums over ``n`` pairs means."""
        for name in SCORES:
            getattr(self, name).div_(n)
        self.clean, self.corrupt = self.clean / n, self.corrupt / n


class Gradients:
    """Sums of gradients over a few steps, a list entry a layer (None: nothing reached it).

    L live tokens, c steps in a pass.

    Attributes:
        reads: Σ r·g of queries, keys and values, ``[L, V, k]``.
        pulls: r · (x̂ · W̃ g) / d of some steps, ``[c, L, V]``; normalised: their x̂, ``[c, L, d]``.
        mlp: gradient at the residual stream that the MLP reads, ``[L, d]``; final: at the logits'.
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

    def add(self, packed: PackedPairs, points: Points, loss: Loss) -> None:
        """One forward and one backward pass from some points on, side by side."""
        taps: dict[str, Tensor] = {}
        hooks: list[Hook] = [points.hook(), _tap(taps, "ln_final.hook_in")]
        for block in self.blocks:
            hooks += [_tap(taps, name) for name in [block.hook_in, *self._wanted(block)]]
        with torch.enable_grad():
            value = loss(logits_with(self.subject, packed, points.tokens(packed), hooks))
        inputs = [taps.pop(block.hook_in).detach() for block in self.blocks]
        wanted = {name: tensor for name, tensor in taps.items() if tensor.requires_grad}
        found = torch.autograd.grad(value, list(wanted.values()), allow_unused=True)
        gradient = {name: g for name, g in zip(wanted, found, strict=True) if g is not None}
        with torch.no_grad():
            for layer, x in enumerate(inputs):
                self._add_layer(layer, x, taps, gradient)
            self.final = _plus(self.final, self._live(gradient["ln_final.hook_in"]).sum(0))

    def add_by_layer(self, packed: PackedPairs, points: Points, loss: Loss) -> None:
        """As ``add`` with points at the embedding, with one layer's graph at a time."""
        bridge = self.subject.bridge
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        taps: dict[str, Tensor] = {}

        def remember(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        handles = [
            block.bridge.register_forward_pre_hook(remember, with_kwargs=True)
            for block in self.blocks
        ]
        point = points.hook()
        hooks = [point, _tap(taps, "ln_final.hook_in")]
        try:
            with torch.no_grad():
                logits_with(self.subject, packed, points.tokens(packed), hooks)
        finally:
            for handle in handles:
                handle.remove()
        final = taps.pop("ln_final.hook_in").detach().requires_grad_()
        with torch.enable_grad():
            value = loss(self.subject.head(bridge.ln_final(packed.ends(final))))
        (upstream,) = torch.autograd.grad(value, final)
        self.final = _plus(self.final, self._live(upstream).sum(0))
        for layer in reversed(range(self.graph.n_layers)):
            block, (args, kwargs) = self.blocks[layer], calls[layer]
            x = (point[1](args[0], None) if layer == 0 else args[0]).detach().requires_grad_()
            names = self._wanted(block)
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

    def _wanted(self, block: Block) -> list[str]:
        """The hooks of a block at which gradients are asked for."""
        slices = [block.hook_z, block.hook_neurons] if self.slices is not None else []
        return [*block.hook_qkv, block.hook_mlp_in, *slices]

    def _live(self, x: Tensor) -> Tensor:
        """``[c, T, ...]`` to the live tokens ``[c, L, ...]``, in the dtype of sums."""
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
            mlp = self._live(gradient[block.hook_mlp_in]).sum(0)
            self.mlp[layer] = _plus(self.mlp[layer], mlp)
        if any(name in gradient for name in block.hook_qkv):
            parts = [
                gradient[name] if name in gradient else torch.zeros_like(value[name])
                for name in block.hook_qkv
            ]
            g = torch.cat([self._live(part) for part in parts], 2)  # [c, L, V, k]
            read, norm = g, block.norm
            if norm is not None:
                out = torch.cat([self._live(value[name].detach()) for name in block.hook_qkv], 2)
                normalised, r = norm.normalise(self._live(x))
                self.normalised[layer].append(normalised)
                inner = ((out - self.offsets[layer]) * g).sum(-1)
                self.pulls[layer].append(inner * r / x.shape[-1])
                read = g * r[..., None]
            self.reads[layer] = _plus(self.reads[layer], read.sum(0))
            if self.slices is not None:
                score = (self.delta.qkv[layer].to(g.dtype) * g.sum(0)).sum((0, 2)) / self.steps
                h, kv = self.graph.n_heads, self.graph.n_kv_heads
                for total, part in zip(
                    (self.slices.queries, self.slices.keys, self.slices.values),
                    score.split([h, kv, kv]),
                    strict=True,
                ):
                    total[layer] += part.to(total.device)
        if self.slices is not None:
            for total, name, delta in (
                (self.slices.outputs, block.hook_z, self.delta.raw_z),
                (self.slices.neurons, block.hook_neurons, self.delta.neurons),
            ):
                if name in gradient:
                    score = delta[layer] * self._live(gradient[name]).sum(0)
                    score = score.sum((0, 2) if score.ndim == 3 else 0) / self.steps
                    total[layer] += score.to(total.device)

    def at_attention(self, layer: int, tokens: Tensor) -> Tensor | None:
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
        pulls = torch.cat([p[:, tokens] for p in self.pulls[layer]])  # [steps, t, V]
        normalised = torch.cat([x[:, tokens] for x in self.normalised[layer]])  # [steps, t, d]
        gradient.transpose(0, 1).baddbmm_(
            pulls.permute(1, 2, 0), normalised.transpose(0, 1), alpha=-1
        )
        return gradient


@dataclass(frozen=True, eq=False)
class Points:
    """Points on the way from the clean to the corrupt run, each a run of its own in one pass.

    Attributes:
        name: of the hook whose value is moved. difference: ``[L, ...]``, corrupt minus clean.
        shares: ``[c]``, how far each point lies. live: the L places.
    """

    name: str
    difference: Tensor
    shares: Tensor
    live: Tensor

    def tokens(self, packed: PackedPairs) -> Tensor:
        """int64 ``[c, T]``: each point's run is that of the clean tokens up to the hook."""
        return packed.clean.expand(len(self.shares), -1)

    def hook(self) -> Hook:
        """Adds each point's share of the difference, and makes of it a leaf of autograd."""

        def hook(value: Tensor, hook: Any) -> Tensor:
            change = torch.einsum("c,l...->cl...", self.shares.to(value), self.difference.to(value))
            moved = value.detach().index_add(1, self.live.to(value.device), change)
            return moved.requires_grad_()

        return self.name, hook


def _tap(taps: dict[str, Tensor], name: str) -> Hook:
    """A hook that puts the value into ``taps``."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        # A new view, so that its gradient is that of this reader alone, not of the stream.
        taps[name] = value.view_as(value)
        return taps[name]

    return name, hook


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total.add_(more)


class Written:
    """What every node writes on corrupt minus clean prompts at live tokens, made when asked for."""

    def __init__(self, subject: Subject, delta: Record) -> None:
        self.subject, self.delta = subject, delta
        self.dtype, self.shape = accumulator(delta.embedding.dtype), delta.embedding.shape

    def embedding(self, tokens: Tensor) -> Tensor:
        """Of the embedding, ``[1, t, d]``, at some live tokens."""
        return self.delta.embedding[None, tokens].to(self.dtype)

    def layer(self, layer: int, tokens: Tensor) -> Tensor:
        """Of a layer's heads and its MLP, ``[H + 1, t, d]``."""
        output = Block(self.subject, layer).output().to(self.dtype)
        heads = self.delta.z[layer][tokens].to(self.dtype).transpose(0, 1) @ output
        return torch.cat([heads, self.delta.mlp[layer][None, tokens].to(self.dtype)])

    def all(self) -> Tensor:
        """Of every source, ``[n_sources, L, d]``."""
        tokens = torch.arange(self.shape[0])
        layers = range(len(self.delta.mlp))
        return torch.cat([self.embedding(tokens), *(self.layer(i, tokens) for i in layers)])


class Held(Written):
    """The same, kept as it was: the weights may have changed since.

    Args:
        values: ``[n_sources, L, d]``. n: sources of a layer.
    """

    def __init__(self, values: Tensor, n: int) -> None:
        self.values, self.n = values, n
        self.dtype, self.shape = values.dtype, values.shape[1:]

    def embedding(self, tokens: Tensor) -> Tensor:
        return self.values[:1, tokens]

    def layer(self, layer: int, tokens: Tensor) -> Tensor:
        first = 1 + layer * self.n
        return self.values[first : first + self.n, tokens]

    def all(self) -> Tensor:
        return self.values


def contract(
    graph: Graph,
    written: Written,
    gradients: Gradients,
    scores: Tensor,
    *,
    sources: range | None = None,
    size: int | None = None,
    groups: Tensor | None = None,
) -> None:
    """Add Σ (difference written by each source) · (gradient at each destination) to ``scores``.

    Args:
        scores: ``[n_sources, n_destinations]``; with ``groups`` ``[groups, …]``, one a group.
        sources: those to score; all by default.
        size: tokens that go through at once; all by default.
        groups: int64 ``[L]``, the group of each live token.
    """
    n_tokens = written.shape[0]
    sources = sources or range(graph.n_sources)
    order = torch.arange(n_tokens) if groups is None else groups.argsort(stable=True)
    for tokens in order.split(size or max(n_tokens, 1)):
        if groups is None:
            targets, lengths = [scores], [len(tokens)]
        else:
            found, counts = groups[tokens].unique_consecutive(return_counts=True)
            targets, lengths = [scores[i] for i in found.tolist()], counts.tolist()
        _contract(graph, written, gradients, sources, tokens, targets, lengths)


def _contract(
    graph: Graph,
    written: Written,
    gradients: Gradients,
    sources: range,
    tokens: Tensor,
    targets: list[Tensor],
    lengths: list[int],
) -> None:
    """Some tokens, of which neighbouring ``lengths`` go into each of ``targets``."""
    device, dtype, d = targets[0].device, targets[0].dtype, written.shape[1]
    writes = [torch.empty(len(sources), t, d, dtype=dtype, device=device) for t in lengths]

    def put(first: int, values: Tensor) -> None:
        skip = max(sources.start - first, 0)
        values = values[skip : max(sources.stop - first, 0)]
        if len(values):
            place = first + skip - sources.start
            for buffer, part in zip(writes, values.split(lengths, 1), strict=True):
                buffer[place : place + len(values)] = part.to(device)

    def score(n: int, destinations: slice, g: Tensor) -> None:
        n = min(n, sources.stop) - sources.start
        if n <= 0:
            return
        for target, buffer, part in zip(targets, writes, g.split(lengths, 1), strict=True):
            product = buffer[:n].flatten(1) @ part.flatten(1).T
            target[sources.start : sources.start + n, destinations] += product

    put(0, written.embedding(tokens))
    # What reads the stream between two layers' heads: an MLP, then all of an attention.
    reads = torch.zeros(graph.per_layer, len(tokens), d, dtype=dtype, device=device)
    for layer in range(graph.n_layers):
        attention = gradients.at_attention(layer, tokens)
        reads[1:] = 0 if attention is None else attention
        places = graph.attention_inputs(layer)
        first = min(layer, 1)  # no MLP before layer 0
        score(graph.head(layer), slice(places.start - first, places.stop), reads[1 - first :])
        put(graph.head(layer), written.layer(layer, tokens))
        mlp = gradients.mlp[layer]
        reads[0] = 0 if mlp is None else mlp[tokens]
    assert gradients.final is not None
    reads[1] = gradients.final[tokens]
    score(graph.n_sources, slice(graph.logits - 1, graph.logits + 1), reads[:2])


@dataclass(frozen=True, eq=False)
class Factors:
    """The two factors of a pack's scores, before their product sums over pairs and tokens.

    Attributes:
        delta: what nodes write on corrupt minus clean prompts.
        gradients: of the metric summed over pairs, summed over steps.
    """

    packed: PackedPairs
    delta: Record
    gradients: Gradients


@locked
def integrated(
    subject: Subject,
    packed: PackedPairs,
    *,
    steps: int = 5,
    metric: Metric = "logit_difference",
) -> Factors:
    """What EAP-IG's scores of a pack are products of; over ``steps`` and the number of pairs their
    ``contract`` is what ``attribute`` gives."""
    graph = graph_of(subject)
    delta, logits = difference(subject, graph, packed, ("z", "mlp"))
    reference = logits[0].float().log_softmax(-1) if metric == "kl" else None
    gradients = Gradients(subject, graph, delta, None, steps, packed.live)
    for shares in midpoints(steps).split(side_by_side(subject, packed)):
        points = Points("blocks.0.hook_in", delta.embedding, shares, packed.live)
        gradients.add(packed, points, summed(packed.pairs, metric, reference))
    return Factors(packed, delta, gradients)


def midpoints(steps: int) -> Tensor:
    """The midpoints of equal parts of the way from 0 to 1, float32 ``[steps]``."""
    return (torch.arange(steps) + 0.5) / steps


def side_by_side(subject: Subject, packed: PackedPairs) -> int:
    """How many runs of a pack make one pass of the size that the device runs best."""
    return max(1, pack_size(subject.device) // len(packed.pack))


def summed(pairs: Pairs, metric: Metric, reference: Tensor | None = None) -> Loss:
    """The metric summed over pairs and runs, of logits ``[c, N, vocabulary]``."""

    def loss(logits: Tensor) -> Tensor:
        return torch.stack([metric_values(metric, run, pairs, reference) for run in logits]).sum()

    return loss
