"""Real patching: a circuit is run with every edge outside it at its corrupt value.

The input of a destination v is (Wang et al. 2022; Hanna et al. 2024)

    x_v = x_v^corrupt + Σ_{u → v in the circuit} (z_u − z_u^corrupt),

with z_u what u writes in this very run. Edges on no path from the embedding to the logits are
dropped first, which changes a result only where there are post norms (``Graph.prune``).
Faithfulness is the metric so obtained, normalised so that the corrupt run is 0 and the clean run
is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mansu.circuits.graph import Graph, graph_of
from mansu.circuits.metric import MEMORY, Metric, metric_values, refuse_equal
from mansu.circuits.record import Hook, PackedPairs, Record, packed, post_scale, record
from mansu.progress import OnStep, Step, silent
from mansu.statistics import Interval
from mansu.subjects.blocks import Block
from mansu.subjects.packing import pack_size
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Pairs

RESAMPLES = 1000
BATCH = 4  # candidate circuits a pass, where memory allows


class Patched:
    """Runs a subject with every edge outside a circuit patched to its corrupt value.

    The corrupt run is recorded once; candidates then go through as many at a time as ``memory``
    holds. Values are per pair, so that intervals can be made.

    Attributes:
        clean, corrupt: the metric of every pair ``[N]`` in the clean and the corrupt run.
        fact: int64 ``[N]``, which fact each pair asks for. facts: how many there are.
    """

    def __init__(
        self,
        subject: Subject,
        pairs: Pairs,
        metric: Metric = "logit_difference",
        memory: int = MEMORY,
    ) -> None:
        self.metric: Metric = metric
        self.subject, self.memory = subject, memory
        self.fact = torch.from_numpy(pairs.clusters)
        self.facts = 1 + int(self.fact.max())
        self.graph = graph_of(subject)
        self.token = subject.config.hidden_size * 4  # bytes of one node's output at one token
        stored = self.token * self.graph.n_layers * 8
        most = memory // 4 // (stored + self.graph.n_sources * self.token)
        parts = packed(subject, pairs, max(1, min(most, pack_size(subject.device))))
        self.parts: list[tuple[PackedPairs, Record, Tensor | None]] = []
        clean, corrupt = [], []
        for part in parts:
            run = record(subject, self.graph, part, part.clean, ())
            reference = run.logits.float().log_softmax(-1) if metric == "kl" else None
            clean.append(metric_values(metric, run.logits, part.pairs, reference))
            kept = ("inputs", "mlp_inputs", "qkv", "z", "mlp")
            run = record(subject, self.graph, part, part.corrupt, kept)
            corrupt.append(metric_values(metric, run.logits, part.pairs, reference))
            self.parts.append((part, run, reference))
        self.order = torch.cat([part.pack.rows for part in parts]).argsort()
        self.clean, self.corrupt = (
            torch.cat(values).cpu()[self.order] for values in (clean, corrupt)
        )
        refuse_equal(float(self.clean.mean()), float(self.corrupt.mean()), metric)

    def values(self, masks: Tensor) -> Tensor:
        """The metric of every pair under every candidate circuit.

        Args:
            masks: bool ``[candidates, n_sources, n_destinations]``; each is measured without its
                orphans (``Graph.prune``).

        Returns:
            ``[candidates, N]``, float32 (float64 for a float64 model).
        """
        masks = torch.stack([self.graph.prune(mask) for mask in masks])
        values = self.corrupt.repeat(len(masks), 1)
        whole = (masks == self.graph.edges).flatten(1).all(1)
        values[whole] = self.clean
        some = masks.flatten(1).any(1) & ~whole  # of no edge and of all the runs are known
        if some.any():
            values[some] = self._measured(masks[some])
        return values

    def _measured(self, masks: Tensor) -> Tensor:
        live = int(masks.any(2).any(0).sum()) + 4 * self.graph.per_layer
        tokens = max(len(part.pack) for part, _, _ in self.parts)
        batch = max(1, min(BATCH, self.memory // 2 // max(1, live * tokens * self.token)))
        values = torch.cat(
            [
                torch.cat([self._run(some, *part) for part in self.parts], 1)
                for some in masks.split(batch)
            ]
        )
        return values[:, self.order]

    def faithfulness(self, values: Tensor) -> Tensor:
        """Normalise metrics ``[candidates, N]`` to faithfulness ``[candidates]``."""
        corrupt = self.corrupt.mean()
        return (values.mean(1) - corrupt) / (self.clean.mean() - corrupt)

    def intervals(self, values: Tensor, seed: int = 0) -> Tensor:
        """Bootstrap 95 % intervals over facts of the faithfulness, ``[candidates, 2]``, as wide as
        few facts ask for (``statistics.Interval.stretched``).

        A fact's pairs are drawn together: its templates are no independent evidence. Of one fact
        alone there is no interval: ``[candidates, 0]``.
        """
        n = self.facts
        if n == 1:
            return torch.empty(len(values), 0)
        drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
        times = torch.zeros(RESAMPLES, n, dtype=torch.float64)
        weights = times.scatter_add_(1, drawn, torch.ones_like(times))[:, self.fact]
        weights /= weights.sum(1, keepdim=True)
        corrupt = weights @ self.corrupt.double()
        gap = weights @ self.clean.double() - corrupt
        shares = (values.double() @ weights.T - corrupt) / gap
        bounds = shares.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), 1).T
        told = zip(self.faithfulness(values).tolist(), bounds.tolist(), strict=True)
        found = [Interval(value, *ends).stretched(n) for value, ends in told]
        return torch.tensor([[interval.low, interval.high] for interval in found])

    @torch.no_grad()
    def _run(
        self, masks: Tensor, packed: PackedPairs, corrupt: Record, reference: Tensor | None
    ) -> Tensor:
        c, n, subject = len(masks), len(packed), self.subject
        run = _Pass(subject, self.graph, masks, corrupt)
        with subject.lock, run.skipping(), subject.bridge.hooks(fwd_hooks=run.hooks()):
            hidden = subject.run(packed.pack, packed.clean.expand(c, -1), hooked=True)
            logits = subject.head(packed.ends(hidden).flatten(0, 1))
        repeated = packed.pairs.select(torch.arange(n).repeat(c))
        again = None if reference is None else reference.repeat(c, 1)
        return metric_values(self.metric, logits, repeated, again).view(c, n).cpu()


def faithfulness_of(patched: Patched, edges: Tensor) -> tuple[float, float, float] | tuple[float]:
    """Faithfulness of some edges alone, measured, with its bootstrap 95 % interval over facts.

    Value and bounds; the value only where the pairs are of one fact.

    Args:
        edges: bool ``[n_sources, n_destinations]``; measured without their orphans.
    """
    with patched.subject.lock:
        values = patched.values(edges[None])
    value = float(patched.faithfulness(values))
    if patched.facts == 1:
        return (value,)
    low, high = patched.intervals(values)[0].tolist()
    return value, low, high


class _Pass:
    """One run of candidate circuits side by side: its hooks, and what nodes have written so far.

    c candidates, T tokens; the model runs c rows.

    Attributes:
        sources: int64 ``[live]``, the only nodes that any candidate reads; place: node → which.
        weights: ``[c, live, destinations]``, 1 for an edge of a candidate; into: bool
            ``[destinations]``, whether any candidate has an edge into one.
        written: ``[c, live, n p d]``, what each wrote in this run less what it writes when corrupt.
        waiting: values that a later hook of the same layer takes, by hook.
    """

    def __init__(self, subject: Subject, graph: Graph, masks: Tensor, corrupt: Record) -> None:
        self.subject, self.graph, self.corrupt = subject, graph, corrupt
        embedding = corrupt.embedding
        self.shape = (len(masks), *embedding.shape)  # c, T, d
        self.device = embedding.device
        self.sources = masks.any(2).any(0).nonzero()[:, 0]
        self.place = {int(source): i for i, source in enumerate(self.sources)}
        self.weights = masks[:, self.sources].to(embedding)
        self.into = masks.any(1).any(0)
        self.written = embedding.new_zeros(len(masks), len(self.sources), embedding.numel())
        self.waiting: dict[str, Tensor] = {}

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Attentions and MLPs that nothing reads give zero, unasked, inside the block only."""
        graph, modules = self.graph, []

        def skip(give: Callable[[Tensor], Any]) -> Callable[..., Any]:
            def forward(*args: Tensor, **kwargs: Any) -> Any:
                x = args[0] if args else kwargs["hidden_states"]
                return give(x.new_zeros(1))

            return forward

        for layer in range(graph.n_layers):
            block, heads = (
                self.subject.bridge.blocks[layer],
                range(graph.head(layer), graph.mlp(layer)),
            )
            if not any(head in self.place for head in heads):
                modules.append((block.attn, lambda x: (x, None)))
            if graph.mlp(layer) not in self.place:
                modules.append((block.mlp, lambda x: x))
        try:
            for module, give in modules:
                # Not by setattr, which a bridge passes on to the module that it wraps.
                module.__dict__["forward"] = skip(give)
            yield
        finally:
            for module, _ in modules:
                module.__dict__.pop("forward", None)

    def hooks(self) -> list[Hook]:
        """All of them, for c runs of the pack side by side."""
        hooks: list[Hook] = [("blocks.0.hook_in", lambda value, hook: self._embedding(value))]
        for layer in range(self.graph.n_layers):
            hooks += self._layer_hooks(Block(self.subject, layer), layer)
        return [*hooks, ("ln_final.hook_in", lambda value, hook: self._final(value))]

    def _layer_hooks(self, block: Block, layer: int) -> list[Hook]:
        def qkv(name: str) -> Callable[..., Tensor]:
            def hook(value: Tensor, hook: Any) -> Tensor:
                if name == block.hook_qkv[0]:
                    self._qkv(block, layer)
                return self.waiting.pop(name)

            return hook

        def z(value: Tensor, hook: Any) -> None:
            self.waiting[block.hook_z] = value

        def attention(value: Tensor, hook: Any) -> None:
            self._heads(block, layer, self.waiting.pop(block.hook_z), value)

        def mlp(value: Tensor, hook: Any) -> None:
            if self.graph.mlp(layer) in self.place:  # else it may be skipped, but for its norm
                self._write(self.graph.mlp(layer), value.view(self.shape) - self.corrupt.mlp[layer])

        return [
            *((name, qkv(name)) for name in block.hook_qkv),
            (block.hook_z, z),
            (block.hook_attention, attention),
            (block.hook_mlp_in, lambda value, hook: self._mlp_in(value, layer)),
            (block.hook_mlp_write, mlp),
        ]

    def _read(self, stream: Tensor, destinations: Tensor, n_sources: int) -> Tensor:
        """Patched inputs ``[c, destinations, T, d]`` of the residual stream."""
        c, *rest = self.shape
        ready = int((self.sources < n_sources).sum())
        wanted = self.weights[:, :ready, destinations.to(self.device)].transpose(1, 2)
        change = wanted @ self.written[:, :ready]
        return change.view(c, len(destinations), *rest).to(stream.device) + stream

    def _write(self, source: int, change: Tensor) -> None:
        if source in self.place:
            self.written[:, self.place[source]] = change.flatten(1).to(self.device)

    def _embedding(self, value: Tensor) -> None:
        self._write(0, value.view(self.shape) - self.corrupt.embedding)

    def _qkv(self, block: Block, layer: int) -> None:
        """Make the layer's queries, keys and values, each from its own patched input."""
        graph, c = self.graph, self.shape[0]
        where, every = graph.attention_inputs(layer), self.corrupt.qkv[layer]
        values = every.expand(c, *every.shape).clone()  # [c, T, V, k]
        live = self.into[where].nonzero()[:, 0]
        if len(live):
            before = graph.before_attention(layer)
            x = self._read(self.corrupt.inputs[layer], live + where.start, before)
            weight, bias = block.readers()
            live, norm = live.to(weight.device), block.norm
            # the model's own norm, on every reader's stream
            x = x if norm is None else norm.module(x)
            values[:, :, live] = (x @ weight[live] + bias[live, None]).transpose(1, 2)
        parts = values.split([graph.n_heads] + [graph.n_kv_heads] * 2, 2)
        self.waiting.update(zip(block.hook_qkv, parts, strict=True))

    def _heads(self, block: Block, layer: int, z: Tensor, attention: Tensor) -> None:
        first = self.graph.head(layer)
        heads = [h for h in range(self.graph.n_heads) if first + h in self.place]
        if not heads:
            return
        z = z * post_scale(block, attention).to(z.dtype)
        change = z[:, :, heads] - self.corrupt.z[layer][:, heads]
        change = torch.einsum("cthk,hkd->chtd", change, block.output()[heads].to(z.dtype))
        for i, head in enumerate(heads):
            self._write(first + head, change[:, i])

    def _mlp_in(self, value: Tensor, layer: int) -> Tensor:
        where, stream = self.graph.mlp_input(layer), self.corrupt.mlp_inputs[layer]
        if not bool(self.into[where]):
            return stream.expand(self.shape).reshape(value.shape)
        x = self._read(stream, torch.tensor([where]), self.graph.before_mlp(layer))
        return x.reshape(value.shape)

    def _final(self, value: Tensor) -> Tensor:
        logits = torch.tensor([self.graph.logits])
        return self._read(self.corrupt.final, logits, self.graph.n_sources).reshape(value.shape)


def activation_patching(
    subject: Subject,
    pairs: Pairs,
    *,
    metric: Metric = "logit_difference",
    edges: Tensor | None = None,
    memory: int = MEMORY,
    on_step: OnStep = silent,
) -> Tensor:
    """The exact effect of every edge: what attribution estimates, at one forward pass an edge.

    Args:
        edges: int64 coded edges (source · n_destinations + destination); all where None.

    Returns:
        ``[n_sources, n_destinations]``: mean metric with that edge alone corrupt, minus the clean
        one (Meng et al. 2022, per edge); 0 where not asked for.

    Raises:
        MansuError: as ``Patched``.
    """
    patched = Patched(subject, pairs, metric, memory)
    graph = patched.graph
    codes = graph.edges.flatten().nonzero()[:, 0] if edges is None else edges
    effects = torch.zeros(graph.n_sources * graph.n_destinations, dtype=patched.clean.dtype)
    for start in range(0, len(codes), BATCH):
        some = codes[start : start + BATCH]
        masks = graph.edges.flatten().repeat(len(some), 1)
        masks[torch.arange(len(some)), some] = False
        values = patched.values(masks.view(len(some), *graph.edges.shape))
        effects[some] = (values - patched.clean).mean(1)
        on_step(Step("patching", start + len(some), len(codes)))
    return effects.view(graph.edges.shape)
