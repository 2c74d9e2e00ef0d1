"""Minimal circuits: the fewest edges that carry a behaviour, and the parameters behind them.

A circuit is run by really patching every edge outside it (Wang et al. 2022; Hanna et al. 2024): the
input of a destination v is

    x_v = x_v^corrupt + Σ_{u → v in the circuit} (z_u − z_u^corrupt),

with z_u what u writes in this very run. Faithfulness is the metric so obtained, normalised so that
the corrupt run is 0 and the clean run is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from mansu.attribution import (
    MEMORY,
    Attribution,
    Metric,
    Progress,
    Record,
    attribute,
    logits_with,
    metric_values,
    post_scale,
    record,
    refuse_equal,
)
from mansu.edit import Edit
from mansu.errors import MansuError
from mansu.graph import Block, Graph, graph_of, load_values, save_values
from mansu.subjects import Subject
from mansu.tasks import Pairs

RESAMPLES = 1000
CURVE_POINTS = 12
BATCH = 4  # candidate circuits a pass, where memory allows
PRUNE_BLOCKS = 12
LOGITS: Metric = "logit_difference"


@dataclass(frozen=True)
class Circuit:
    """A set of edges, and how well it alone does the task.

    Attributes:
        layout: what the indices mean.
        order: int64 ``[n_edges]``, every edge as source · n_destinations + destination, by falling
            |score|; order_scores: float32, its score.
        kept: int64 ``[n]``, the circuit's edges in the same coding, by falling |score|.
        faithfulness: of ``kept``, measured; None where it was not (``top`` between curve points).
        interval: its bootstrap 95 % interval over pairs.
        curve: float32 ``[points, 4]``: edges asked for, faithfulness of the best so many edges, and
            its interval.
        tau: the faithfulness asked for. clean, corrupt: mean metric of the runs it lies between.
        metric, subject, n_pairs: how it was measured.
    """

    layout: Graph
    order: Tensor
    order_scores: Tensor
    kept: Tensor
    faithfulness: float | None
    interval: tuple[float, float] | None
    curve: Tensor
    tau: float
    clean: float
    corrupt: float
    metric: Metric
    subject: str
    n_pairs: int

    def __len__(self) -> int:
        return len(self.kept)

    @cached_property
    def edges(self) -> Tensor:
        """int64 ``[n, 2]``: source and destination of every edge."""
        d = self.layout.n_destinations
        return torch.stack([self.kept // d, self.kept % d], 1)

    @cached_property
    def scores(self) -> Tensor:
        """float32 ``[n]``: the score of every edge."""
        dense = torch.zeros(self.layout.n_sources * self.layout.n_destinations)
        dense[self.order] = self.order_scores
        return dense[self.kept]

    @cached_property
    def mask(self) -> Tensor:
        """bool ``[n_sources, n_destinations]``."""
        return edge_mask(self.layout, self.kept)

    def top(self, n: int) -> Circuit:
        """The best ``n`` edges by |score|, orphans dropped; faithfulness where the curve has it."""
        kept = _pruned(self.layout, self.order[:n])
        for size, value, low, high in self.curve.tolist():
            if int(size) == n:
                return replace(self, kept=kept, faithfulness=value, interval=(low, high))
        return replace(self, kept=kept, faithfulness=None, interval=None)

    def at(self, faithfulness: float) -> Circuit:
        """The smallest measured circuit at least this faithful; the largest one where none is."""
        enough = self.curve[self.curve[:, 1] >= faithfulness]
        row = enough[0] if len(enough) else self.curve[-1]
        found = self.top(int(row[0]))
        reached = self.faithfulness is not None and self.faithfulness >= faithfulness
        return self if reached and len(self) <= len(found) else found

    def node(self, index: int) -> dict[str, Any]:
        """Attributes of a source node (``n_sources`` is the logits), for graphs and tables."""
        graph = self.layout
        if index == graph.n_sources:
            return {"name": "logits", "kind": "logits", "layer": graph.n_layers, "head": None}
        name = graph.source_name(index)
        if index == 0:
            return {"name": name, "kind": "embedding", "layer": -1, "head": None}
        layer, head = divmod(index - 1, graph.n_heads + 1)
        if head == graph.n_heads:
            return {"name": name, "kind": "mlp", "layer": layer, "head": None}
        return {"name": name, "kind": "head", "layer": layer, "head": head}

    def graph(self) -> nx.DiGraph:
        """The circuit as a graph of nodes; parallel edges (q, k, v) are summed and listed.

        Node attributes: name, kind, layer, head, score (Σ score of its outgoing edges). Edge
        attributes: score, sign (−1, 0, 1), inputs (score of each destination it enters).
        """
        result = nx.DiGraph()
        for source, destination, score in zip(
            self.edges[:, 0].tolist(), self.edges[:, 1].tolist(), self.scores.tolist(), strict=True
        ):
            logits = destination == self.layout.logits
            fed = self.layout.feeds[destination].nonzero()[:, 0].tolist()
            name = self.layout.destination_name(destination)
            for target in [self.layout.n_sources] if logits else fed:
                begin, end = self.node(source), self.node(target)
                for node in (begin, end):
                    if node["name"] not in result:
                        result.add_node(node["name"], score=0.0, **node)
                if not result.has_edge(begin["name"], end["name"]):
                    result.add_edge(begin["name"], end["name"], score=0.0, inputs={})
                edge = result.edges[begin["name"], end["name"]]
                edge["inputs"][name] = score
                edge["score"] += score
                edge["sign"] = (edge["score"] > 0) - (edge["score"] < 0)
            result.nodes[self.node(source)["name"]]["score"] += score
        return result

    def save(self, folder: str | Path) -> None:
        """Write ``circuit.safetensors`` into ``folder``."""
        names = ("faithfulness", "interval", "tau", "clean", "corrupt")
        names += ("metric", "subject", "n_pairs")
        meta = {name: getattr(self, name) for name in names} | {"layout": self.layout.meta()}
        tensors = ("order", "order_scores", "kept", "curve")
        path = Path(folder) / "circuit.safetensors"
        save_values(path, {name: getattr(self, name) for name in tensors}, meta)

    @classmethod
    def load(cls, folder: str | Path) -> Circuit:
        """Read what ``save`` wrote.

        Raises:
            MansuError: it is missing or damaged.
        """
        tensors, meta = load_values(Path(folder) / "circuit.safetensors")
        layout = Graph(**meta.pop("layout"))
        interval = meta.pop("interval")
        return cls(layout=layout, interval=interval and tuple(interval), **tensors, **meta)


def edge_mask(graph: Graph, kept: Tensor) -> Tensor:
    """Coded edges as bool ``[n_sources, n_destinations]``."""
    mask = torch.zeros(graph.n_sources * graph.n_destinations, dtype=torch.bool)
    mask[kept] = True
    return mask.view(graph.n_sources, graph.n_destinations)


def _pruned(graph: Graph, kept: Tensor) -> Tensor:
    """``kept`` without orphans, in the same order."""
    return kept[graph.prune(edge_mask(graph, kept)).flatten()[kept]]


class Patched:
    """Runs a subject with every edge outside a circuit patched to its corrupt value.

    The corrupt run is recorded once; candidates then go through as many at a time as ``memory``
    holds. Values are per pair, so that intervals can be made.

    Attributes:
        clean, corrupt: the metric of every pair ``[N]`` in the clean and the corrupt run.
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
        self.graph = graph_of(subject)
        d = subject.config.hidden_size
        self.row = int(pairs.length.max()) * d * 4  # bytes of one node's output, one pair
        stored = self.row * self.graph.n_layers * 8
        chunk = max(1, min(len(pairs), memory // 4 // (stored + self.graph.n_sources * self.row)))
        self.parts: list[tuple[Pairs, Record, Tensor | None]] = []
        clean, corrupt = [], []
        for start in range(0, len(pairs), chunk):
            part = pairs.select(range(start, min(start + chunk, len(pairs))))
            run = record(subject, self.graph, part, part.clean, ())
            reference = run.logits.float().log_softmax(-1) if metric == "kl" else None
            clean.append(metric_values(metric, run.logits, part, reference))
            kept = ("inputs", "mlp_inputs", "qkv", "z", "mlp")
            run = record(subject, self.graph, part, part.corrupt, kept)
            corrupt.append(metric_values(metric, run.logits, part, reference))
            self.parts.append((part, run, reference))
        self.clean, self.corrupt = torch.cat(clean).cpu(), torch.cat(corrupt).cpu()
        refuse_equal(float(self.clean.mean()), float(self.corrupt.mean()), metric)

    def values(self, masks: Tensor) -> Tensor:
        """The metric of every pair under every candidate circuit.

        Args:
            masks: bool ``[candidates, n_sources, n_destinations]``.

        Returns:
            ``[candidates, N]``, float32 (float64 for a float64 model).
        """
        masks = torch.stack([self.graph.prune(mask) for mask in masks])
        live = int(masks.any(2).any(0).sum()) + 4 * self.graph.per_layer
        rows = max(len(part) for part, _, _ in self.parts)
        batch = max(1, min(BATCH, self.memory // 2 // max(1, live * rows * self.row)))
        return torch.cat(
            [
                torch.cat([self._run(some, *part) for part in self.parts], 1)
                for some in masks.split(batch)
            ]
        )

    def faithfulness(self, values: Tensor) -> Tensor:
        """Normalise metrics ``[candidates, N]`` to faithfulness ``[candidates]``."""
        corrupt = self.corrupt.mean()
        return (values.mean(1) - corrupt) / (self.clean.mean() - corrupt)

    def intervals(self, values: Tensor, seed: int = 0) -> Tensor:
        """Bootstrap 95 % intervals over pairs of the faithfulness, ``[candidates, 2]``."""
        n = values.shape[1]
        drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
        weights = torch.zeros(RESAMPLES, n, dtype=torch.float64)
        weights.scatter_add_(1, drawn, torch.ones_like(weights)).div_(n)
        corrupt = weights @ self.corrupt.double()
        gap = weights @ self.clean.double() - corrupt
        shares = (values.double() @ weights.T - corrupt) / gap
        return shares.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), 1).T.float()

    @torch.no_grad()
    def _run(
        self, masks: Tensor, pairs: Pairs, corrupt: Record, reference: Tensor | None
    ) -> Tensor:
        graph, subject = self.graph, self.subject
        c, n, p = len(masks), *pairs.clean.shape
        d = corrupt.embedding.shape[-1]
        dtype, device = corrupt.embedding.dtype, corrupt.embedding.device
        sources = masks.any(2).any(0).nonzero()[:, 0]  # the only ones that anyone reads
        place = {int(source): i for i, source in enumerate(sources)}
        weights = masks[:, sources].to(device, dtype)  # [c, live, destinations]
        into = masks.any(1).any(0)  # destinations with an edge in some candidate
        written = torch.zeros(c, len(sources), n * p * d, dtype=dtype, device=device)
        layer_state: dict[str, Tensor] = {}

        def read(stream: Tensor, destinations: Tensor, n_sources: int) -> Tensor:
            """Patched inputs ``[c, destinations, n, p, d]`` of the residual stream."""
            ready = int((sources < n_sources).sum())
            wanted = weights[:, :ready, destinations.to(device)].transpose(1, 2)
            change = wanted @ written[:, :ready].to(device)
            return change.view(c, len(destinations), n, p, d).to(stream.device) + stream

        def write(source: int, change: Tensor) -> None:
            if source in place:
                written[:, place[source]] = change.reshape(c, -1).to(device)

        def patch_qkv(block: Block, layer: int) -> None:
            where = graph.attention_inputs(layer)
            every = corrupt.qkv[layer]
            values = every.expand(c, *every.shape).clone()  # [c, n, p, V, k]
            live = into[where].nonzero()[:, 0]
            if len(live):
                x = read(corrupt.inputs[layer], live + where.start, graph.before_attention(layer))
                weight, bias = block.readers()
                live = live.to(weight.device)
                x = block.norm("ln1").module(x)  # the model's own norm, on every reader's stream
                heads = x.flatten(2, 3) @ weight[live] + bias[live, None]  # [c, V', n p, k]
                values[:, :, :, live] = heads.view(c, len(live), n, p, -1).permute(0, 2, 3, 1, 4)
            q, k, v = values.flatten(0, 1).split([graph.n_heads] + [graph.n_kv_heads] * 2, 2)
            layer_state.update(zip(block.hook_qkv, (q, k, v), strict=True))

        def write_heads(block: Block, layer: int, z: Tensor, attention: Tensor) -> None:
            first = graph.head(layer)
            heads = [h for h in range(graph.n_heads) if first + h in place]
            if not heads:
                return
            z = z * post_scale(block, attention).to(z.dtype)
            change = z.view(c, n, p, graph.n_heads, -1)[..., heads, :]
            change = change - corrupt.z[layer][..., heads, :]
            change = torch.einsum("cnphk,hkd->chnpd", change, block.output()[heads].to(z.dtype))
            for i, head in enumerate(heads):
                write(first + head, change[:, i])

        def patch_embedding(value: Tensor) -> None:
            write(0, value.view(c, n, p, d) - corrupt.embedding)

        def patch_mlp_in(value: Tensor, layer: int) -> Tensor:
            where = graph.mlp_input(layer)
            stream = corrupt.mlp_inputs[layer]
            if not bool(into[where]):
                return stream.expand(c, *stream.shape).reshape(value.shape)
            x = read(stream, torch.tensor([where]), graph.before_mlp(layer))
            return x.reshape(value.shape)

        def patch_final(value: Tensor) -> Tensor:
            x = read(corrupt.final, torch.tensor([graph.logits]), graph.n_sources)
            return x.reshape(value.shape)

        def qkv_hook(block: Block, layer: int, name: str) -> Callable[..., Tensor]:
            def hook(value: Tensor, hook: Any) -> Tensor:
                if name == block.hook_qkv[0]:
                    patch_qkv(block, layer)
                return layer_state.pop(name)

            return hook

        def z_hook(value: Tensor, hook: Any) -> None:
            layer_state["z"] = value

        hooks: list[Any] = [("blocks.0.hook_in", lambda value, hook: patch_embedding(value))]
        for layer in range(graph.n_layers):
            block = Block(subject, layer)
            hooks += [(name, qkv_hook(block, layer, name)) for name in block.hook_qkv]
            hooks += [
                (block.hook_z, z_hook),
                (
                    block.hook_attention,
                    lambda value, hook, b=block, i=layer: write_heads(
                        b, i, layer_state.pop("z"), value
                    ),
                ),
                (block.hook_mlp_in, lambda value, hook, i=layer: patch_mlp_in(value, i)),
                (
                    block.hook_mlp_write,
                    lambda value, hook, i=layer: write(
                        graph.mlp(i), value.view(c, n, p, d) - corrupt.mlp[i]
                    ),
                ),
            ]
        hooks.append(("ln_final.hook_in", lambda value, hook: patch_final(value)))
        repeated = pairs.select(torch.arange(n).repeat(c))
        logits = logits_with(subject, repeated, repeated.clean, hooks)
        again = None if reference is None else reference.repeat(c, 1)
        return metric_values(self.metric, logits, repeated, again).view(c, n).cpu()


def minimal_circuit(
    subject: Subject,
    pairs: Pairs,
    attribution: Attribution,
    *,
    tau: float = 0.85,
    prune: int = 1,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Circuit:
    """The fewest edges whose faithfulness reaches ``tau``.

    The best n edges by |score| are tried at sizes spread evenly in log n (the curve), then the
    first crossing of ``tau`` is narrowed to 1 % of n. Orphans never count. Then, ``prune`` times,
    the circuit is cut into blocks of neighbouring |score| and as many blocks are dropped, the least
    needed first, as keep it at ``tau``.

    So the circuit is minimal in blocks: to drop the next block in that order would take it below
    ``tau``. It is not minimal edge by edge, since some edges of a needed block may be spare.
    (SmolLM2, capitals: a further pass over 24 blocks took 398 edges to 381 with 29 more runs.)

    Args:
        attribution: scores of this subject; the metric is taken from it.
        tau: faithfulness to reach, in (0, 1].
        memory: bytes to hold beside the weights.

    Raises:
        MansuError: ``tau`` is out of range, the scores belong to another graph, or clean and
            corrupt prompts have the same metric.
    """
    if not 0 < tau <= 1:
        raise MansuError(f"Faithfulness tau must lie in (0, 1], not {tau}.")
    graph = graph_of(subject)
    if graph != attribution.layout:
        raise MansuError(
            f"The attribution is of {attribution.subject!r}, whose graph differs from that of "
            f"{subject.name!r}: attribute this subject."
        )
    patched = Patched(subject, pairs, attribution.metric, memory)
    codes = graph.edges.flatten().nonzero()[:, 0]
    scores = attribution.scores.flatten()[codes]
    ranking = scores.abs().argsort(descending=True, stable=True)
    order, order_scores = codes[ranking], scores[ranking]

    sizes = torch.logspace(0, torch.log10(torch.tensor(len(order))).item(), CURVE_POINTS)
    measured: dict[int, Tensor] = {}  # size → metric of every pair
    expected = CURVE_POINTS + 8 + prune * (PRUNE_BLOCKS + 5)
    done = 0

    def faithfulness(size: int) -> float:
        return float(patched.faithfulness(measured[size][None])[0])

    def measure(candidates: Sequence[Tensor]) -> Tensor:
        nonlocal done
        values = patched.values(torch.stack([edge_mask(graph, kept) for kept in candidates]))
        done += len(candidates)
        if progress is not None:
            progress(min(done, expected), expected)
        return values

    def measure_sizes(wanted: Sequence[int]) -> None:
        fresh = [size for size in dict.fromkeys(wanted) if size not in measured]
        for start in range(0, len(fresh), BATCH):
            some = fresh[start : start + BATCH]
            rows = measure([order[:size] for size in some])
            measured.update(zip(some, rows, strict=True))

    measure_sizes([min(len(order), max(1, round(s))) for s in sizes.tolist()])
    reached = [size for size in sorted(measured) if faithfulness(size) >= tau]
    high = reached[0] if reached else len(order)
    low = max((size for size in measured if size < high), default=0)
    while high - low > max(1, high // 100):
        step = max(1, (high - low) // 4)
        inner = [low + step, low + 2 * step, low + 3 * step]
        measure_sizes([size for size in inner if size < high])
        tried = sorted(size for size in measured if low < size <= high)
        high = next((s for s in tried if faithfulness(s) >= tau), high)
        low = max((s for s in measured if s < high), default=0)

    kept, values = _pruned(graph, order[:high]), measured[high]
    for _ in range(prune):
        kept, values = _drop_blocks(graph, patched, kept, values, tau, measure)
    curve_sizes = sorted(measured)
    stacked = torch.stack([measured[size] for size in curve_sizes])
    curve = torch.cat(
        [
            torch.tensor(curve_sizes, dtype=torch.float32)[:, None],
            patched.faithfulness(stacked)[:, None],
            patched.intervals(stacked),
        ],
        1,
    )
    low_end, high_end = patched.intervals(values[None])[0].tolist()
    if progress is not None:
        progress(expected, expected)
    return Circuit(
        graph,
        order,
        order_scores,
        kept,
        faithfulness=float(patched.faithfulness(values[None])[0]),
        interval=(low_end, high_end),
        curve=curve,
        tau=tau,
        clean=float(patched.clean.mean()),
        corrupt=float(patched.corrupt.mean()),
        metric=attribution.metric,
        subject=subject.name,
        n_pairs=len(pairs),
    )


def _drop_blocks(
    graph: Graph,
    patched: Patched,
    kept: Tensor,
    values: Tensor,
    tau: float,
    measure: Callable[[Sequence[Tensor]], Tensor],
) -> tuple[Tensor, Tensor]:
    """Drop as many blocks of edges as keep the circuit at ``tau``, the least needed first."""
    blocks = [block for block in kept.chunk(PRUNE_BLOCKS) if len(block) < len(kept)]
    if not blocks:
        return kept, values

    def without(some: Sequence[int]) -> Tensor:
        gone = torch.cat([blocks[i] for i in some])
        return _pruned(graph, kept[~torch.isin(kept, gone)])

    alone = measure([without([i]) for i in range(len(blocks))])
    by_need = patched.faithfulness(alone).argsort(descending=True).tolist()
    best, best_values, low, high = kept, values, 0, len(blocks)
    while high - low > 1:  # drop ``low`` blocks: faithful; ``high``: not, or all
        middle = (low + high) // 2
        candidate = without(by_need[:middle])
        result = measure([candidate])[0] if len(candidate) else patched.corrupt
        if float(patched.faithfulness(result[None])[0]) >= tau:
            best, best_values, low = candidate, result, middle
        else:
            high = middle
    return best, best_values


def activation_patching(
    subject: Subject,
    pairs: Pairs,
    *,
    metric: Metric = "logit_difference",
    edges: Tensor | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
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
        if progress is not None:
            progress(start + len(some), len(codes))
    return effects.view(graph.edges.shape)


@dataclass(frozen=True)
class Stability:
    """How far a circuit depends on the pairs that were drawn.

    Attributes:
        overlap: mean Jaccard overlap of the best n edges of a bootstrap resample with those of
            all pairs; interval: its central 95 % over resamples.
        edges: int64 ``[n]``, the best n edges of all pairs, coded; frequency: float32 ``[n]``, the
            share of resamples whose best n have it.
    """

    overlap: float
    interval: tuple[float, float]
    edges: Tensor
    frequency: Tensor


def stability(
    subject: Subject,
    pairs: Pairs,
    n: int,
    *,
    groups: int = 8,
    resamples: int = 200,
    seed: int = 0,
    memory: int = MEMORY,
    **options: Any,
) -> Stability:
    """Bootstrap the best ``n`` edges over ``groups`` equal groups of pairs.

    Scores are means over pairs, so a resample of groups is a weighted mean of their scores: the
    cost is one attribution in all.

    Args:
        options: ``method``, ``steps``, ``metric`` of ``attribute``.

    Raises:
        MansuError: there are fewer pairs than two, or as ``attribute``.
    """
    groups = min(groups, len(pairs))
    if groups < 2:
        raise MansuError("Stability needs at least two pairs: give the task more forget facts.")
    shuffled = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    parts = [pairs.select(index) for index in shuffled.chunk(groups)]
    layout = graph_of(subject)
    codes = layout.edges.flatten().nonzero()[:, 0]
    scores = torch.stack(
        [
            attribute(subject, part, memory=memory, **options).scores.flatten()[codes] * len(part)
            for part in parts
        ]
    )
    generator = torch.Generator().manual_seed(seed)
    best = scores.sum(0).abs().topk(n).indices
    inside = torch.zeros(scores.shape[1], dtype=torch.bool)
    inside[best] = True
    counts, overlaps = torch.zeros(scores.shape[1]), []
    for _ in range(resamples):
        drawn = torch.randint(len(parts), (len(parts),), generator=generator)
        again = scores[drawn].sum(0).abs().topk(n).indices
        counts[again] += 1
        shared = int(inside[again].sum())
        overlaps.append(shared / (2 * n - shared))
    all_overlaps = torch.tensor(overlaps)
    low, high = all_overlaps.quantile(torch.tensor([0.025, 0.975])).tolist()
    return Stability(float(all_overlaps.mean()), (low, high), codes[best], counts[best] / resamples)


@dataclass(frozen=True)
class Criteria:
    """Completeness and minimality of a circuit C in a model M (Wang et al. 2022, section 4).

    Attributes:
        completeness: float32 ``[subsets, 2]``: faithfulness of C \\ K and of M \\ K for random
            sets K of the circuit's nodes; incompleteness is their mean distance.
        nodes: the circuit's nodes by name; minimality: float32 ``[nodes]``, how much faithfulness
            the circuit loses without each node.
    """

    completeness: Tensor
    nodes: tuple[str, ...]
    minimality: Tensor

    @property
    def incompleteness(self) -> float:
        """Mean of |F(C \\ K) − F(M \\ K)|."""
        return float((self.completeness[:, 0] - self.completeness[:, 1]).abs().mean())


def criteria(
    subject: Subject,
    pairs: Pairs,
    circuit: Circuit,
    *,
    subsets: int = 8,
    nodes: int = 32,
    seed: int = 0,
    memory: int = MEMORY,
) -> Criteria:
    """Measure completeness on random subsets of nodes, and minimality node by node.

    Args:
        subsets: how many sets K; a node is in K with probability 1/4.
        nodes: minimality of this many nodes at most, drawn with ``seed``.
    """
    patched = Patched(subject, pairs, circuit.metric, memory)
    layout, kept = circuit.layout, circuit.mask
    generator = torch.Generator().manual_seed(seed)
    inner = kept.any(1)
    inner[0] = False  # the embedding is the input, not a part to remove
    sources = inner.nonzero()[:, 0]

    def without(edges: Tensor, gone: Tensor) -> Tensor:
        edges = edges.clone()
        edges[gone] = False
        return edges

    drawn = [sources[torch.rand(len(sources), generator=generator) < 0.25] for _ in range(subsets)]
    masks = [without(edges, gone) for gone in drawn for edges in (kept, layout.edges)]
    some = sources[torch.randperm(len(sources), generator=generator)[:nodes]].sort().values
    masks += [kept, *(without(kept, node[None]) for node in some)]
    values = torch.cat([patched.values(mask[None]) for mask in masks])
    shares = patched.faithfulness(values).float()
    return Criteria(
        completeness=shares[: 2 * subsets].view(subsets, 2),
        nodes=tuple(layout.source_name(int(node)) for node in some),
        minimality=shares[2 * subsets] - shares[2 * subsets + 1 :],
    )


@dataclass(frozen=True)
class Mask:
    """The parameters behind a circuit: whole rows and columns of weight matrices.

    Attributes:
        rows, columns: parameter name → int64 indices along axis 0 and 1, sorted; an entry is in
            the mask when its row or its column is.
        shapes: parameter name → its shape.
        total: parameters of the model.
        mass: share of the circuit's attribution (|score| of head slices and neurons) covered.
        n_slices, n_neurons: head slices (of q, k, v, o) and MLP neurons chosen.
    """

    rows: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, int]]
    total: int
    mass: float
    n_slices: int
    n_neurons: int

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters that have an entry in the mask."""
        return tuple(self.shapes)

    def dense(self, name: str) -> Tensor:
        """bool, the parameter's shape."""
        mask = torch.zeros(self.shapes[name], dtype=torch.bool)
        mask[self.rows.get(name, torch.empty(0, dtype=torch.long))] = True
        mask[:, self.columns.get(name, torch.empty(0, dtype=torch.long))] = True
        return mask

    def tensors(self) -> dict[str, Tensor]:
        """Parameter name → bool tensor of its shape."""
        return {name: self.dense(name) for name in self.names}

    @cached_property
    def size(self) -> int:
        """Parameters in the mask."""
        total = 0
        for name, (height, width) in self.shapes.items():
            r, c = len(self.rows.get(name, ())), len(self.columns.get(name, ()))
            total += r * width + c * height - r * c
        return total

    @property
    def fraction(self) -> float:
        """``size`` as a fraction of all parameters."""
        return self.size / self.total

    def save(self, folder: str | Path) -> None:
        """Write ``mask.safetensors`` into ``folder``."""
        tensors = {f"rows:{name}": index for name, index in self.rows.items()}
        tensors |= {f"columns:{name}": index for name, index in self.columns.items()}
        meta = {"shapes": {name: list(shape) for name, shape in self.shapes.items()}}
        meta |= {name: getattr(self, name) for name in ("total", "mass", "n_slices", "n_neurons")}
        save_values(Path(folder) / "mask.safetensors", tensors, meta)

    @classmethod
    def load(cls, folder: str | Path) -> Mask:
        """Read what ``save`` wrote.

        Raises:
            MansuError: it is missing or damaged.
        """
        tensors, meta = load_values(Path(folder) / "mask.safetensors")
        shapes = {name: tuple(shape) for name, shape in meta.pop("shapes").items()}
        kinds = {
            kind: {k.split(":", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{kind}:")}
            for kind in ("rows", "columns")
        }
        return cls(shapes=shapes, **kinds, **meta)


@dataclass(frozen=True)
class _Units:
    """What a mask is put together from: every head slice and every neuron of a model.

    Attributes:
        kind: int64 ``[units]``, as in ``KINDS``. layer, index: int64 ``[units]``.
        cost: float32 ``[units]``, parameters.
    """

    kind: Tensor
    layer: Tensor
    index: Tensor
    cost: Tensor


KINDS = ("q", "k", "v", "o", "neuron")


def parameter_mask(
    subject: Subject,
    circuit: Circuit,
    attribution: Attribution,
    *,
    share: float = 0.9,
    max_fraction: float = 0.005,
) -> Mask:
    """The parameters behind a circuit.

    Candidates are the q, k, v slices that one of the circuit's edges enters, the o slice of every
    head that one leaves, and the neurons of every MLP that one leaves (a neuron is its row of the
    up and gate projections and its column of the down projection). They are taken by falling
    |attribution| a parameter until they hold ``share`` of the candidates' attribution, or
    ``max_fraction`` of all parameters. Biases, norms and embeddings are never in the mask.

    Raises:
        MansuError: a share is out of range, or nothing fits.
    """
    for name, value in (("share", share), ("max_fraction", max_fraction)):
        if not 0 < value <= 1:
            raise MansuError(f"The mask's {name} must lie in (0, 1], not {value}.")
    units = _units(subject)
    score, used = _score_and_use(circuit, attribution)
    chosen = used.nonzero()[:, 0]
    density = score[chosen] / units.cost[chosen]
    chosen = chosen[density.argsort(descending=True, stable=True)]
    mass = score[chosen].double().cumsum(0)
    total_mass = float(mass[-1]) if len(mass) else 0.0
    within = units.cost[chosen].double().cumsum(0) <= max_fraction * subject.n_parameters
    needed = torch.cat([torch.ones(1, dtype=torch.bool), mass[:-1] < share * total_mass])
    take = within & needed[: len(within)]
    if not bool(take.any()):
        raise MansuError(
            f"No slice of this circuit of {len(circuit)} edges fits into {max_fraction:.2%} of the "
            "parameters: raise max_fraction."
        )
    chosen = chosen[take]
    return _assemble(subject, units, chosen, float(score[chosen].sum()) / total_mass)


def _units(subject: Subject) -> _Units:
    layout = graph_of(subject)
    parts: list[tuple[int, int, int, int]] = []  # kind, layer, units, parameters of each
    for layer in range(layout.n_layers):
        block = Block(subject, layer)
        for kind, label in enumerate(KINDS):
            slices = [
                (subject.parameters[n].shape, axis, w) for n, axis, _, w in block.slices(label)
            ]
            shape, axis, _ = slices[0]
            heads = layout.n_heads if label in "qo" else layout.n_kv_heads
            count = shape[axis] if label == "neuron" else heads
            parts.append((kind, layer, count, sum(s[1 - a] * w for s, a, w in slices)))
    return _Units(
        kind=torch.cat([torch.full((n,), kind) for kind, _, n, _ in parts]),
        layer=torch.cat([torch.full((n,), layer) for _, layer, n, _ in parts]),
        index=torch.cat([torch.arange(n) for _, _, n, _ in parts]),
        cost=torch.cat([torch.full((n,), float(cost)) for _, _, n, cost in parts]),
    )


def _score_and_use(circuit: Circuit, attribution: Attribution) -> tuple[Tensor, Tensor]:
    """Of each unit, in the order of ``_units``: |attribution|, and whether the circuit uses it."""
    layout, edges = circuit.layout, circuit.mask
    inputs, outputs = edges.any(0), edges.any(1)
    h, g = layout.n_heads, layout.n_kv_heads
    scores, used = [], []
    for layer in range(layout.n_layers):
        neurons = attribution.neurons[layer]
        scores += [attribution.queries[layer], attribution.keys[layer], attribution.values[layer]]
        scores += [attribution.outputs[layer], neurons]
        used += inputs[layout.attention_inputs(layer)].split([h, g, g])
        used += [outputs[layout.head(layer) : layout.mlp(layer)]]
        used += [outputs[layout.mlp(layer)].expand(len(neurons))]
    return torch.cat(scores).abs(), torch.cat(used)


def _assemble(subject: Subject, units: _Units, chosen: Tensor, mass: float) -> Mask:
    """Turn chosen units into rows and columns of named weights."""
    lines: dict[tuple[int, str], list[Tensor]] = {}
    shapes: dict[str, tuple[int, int]] = {}
    kinds, layers = units.kind[chosen], units.layer[chosen]
    for layer in layers.unique().tolist():
        block = Block(subject, layer)
        for kind in kinds[layers == layer].unique().tolist():
            index = units.index[chosen[(layers == layer) & (kinds == kind)]]
            for name, axis, start, width in block.slices(KINDS[kind]):
                spread = index[:, None] * width + torch.arange(width) + start
                lines.setdefault((axis, name), []).append(spread.flatten())
                shape = subject.parameters[name].shape
                shapes[name] = (shape[0], shape[1])
    sorted_lines = {key: torch.cat(found).unique() for key, found in lines.items()}
    return Mask(
        rows={name: index for (axis, name), index in sorted_lines.items() if axis == 0},
        columns={name: index for (axis, name), index in sorted_lines.items() if axis == 1},
        shapes=shapes,
        total=subject.n_parameters,
        mass=mass,
        n_slices=int((kinds < 4).sum()),
        n_neurons=int((kinds == 4).sum()),
    )


@dataclass(frozen=True)
class Ablation:
    """The metric on clean prompts with a mask's parameters set to zero, beside random masks.

    Attributes:
        whole: mean metric of the untouched model. masked: with the circuit's mask at zero.
        random: float32 ``[draws]``, with random masks of the same number of slices and neurons.
        size, random_sizes: parameters in each.
    """

    whole: float
    masked: float
    random: Tensor
    size: int
    random_sizes: tuple[int, ...]


def ablate(
    subject: Subject,
    pairs: Pairs,
    circuit: Circuit,
    mask: Mask,
    *,
    draws: int = 5,
    seed: int = 0,
) -> Ablation:
    """Compare zeroing a mask with zeroing random masks of the same size.

    A random mask has as many slices of each kind and as many neurons, drawn from the whole model.
    """
    generator = torch.Generator().manual_seed(seed)
    dense = mask.tensors()
    masks = [mask, *(random_mask(subject, dense, generator) for _ in range(draws))]

    metric: Metric = "log_probability" if circuit.metric == "log_probability" else LOGITS

    def value() -> float:
        with torch.no_grad():
            logits = subject.next_token_logits(pairs.clean, pairs.length)
        return float(metric_values(metric, logits, pairs).mean())

    values = []
    for each in masks:
        changes = {}
        for name in each.names:
            where = each.dense(name).flatten().nonzero()[:, 0]
            parameter = subject.parameters[name]
            changes[name] = (where, torch.zeros(len(where), dtype=parameter.dtype))
        with Edit(changes, "ablation").applied(subject):
            values.append(value())
    return Ablation(
        value(), values[0], torch.tensor(values[1:]), mask.size, tuple(m.size for m in masks[1:])
    )


def random_mask(subject: Subject, mask: Mapping[str, Tensor], generator: torch.Generator) -> Mask:
    """A mask of as many head slices of each kind and as many neurons, drawn from all layers.

    Args:
        mask: parameter name → bool tensor of its shape, whole slices and neurons (as
            ``Mask.tensors`` gives it).
    """
    units = _units(subject)
    drawn = []
    for kind, count in enumerate(_kind_counts(subject, units, mask)):
        pool = (units.kind == kind).nonzero()[:, 0]
        drawn.append(pool[torch.randperm(len(pool), generator=generator)[:count]])
    return _assemble(subject, units, torch.cat(drawn), 0.0)


def _kind_counts(subject: Subject, units: _Units, mask: Mapping[str, Tensor]) -> list[int]:
    """How many units of each kind a mask has, read back from its whole rows and columns."""
    counts = []
    for kind, label in enumerate(KINDS):
        found = 0
        for layer in units.layer[units.kind == kind].unique().tolist():
            n = int(((units.kind == kind) & (units.layer == layer)).sum())
            name, axis, start, width = Block(subject, layer).slices(label)[0]
            if name in mask:
                line = mask[name].cpu().all(1 - axis)[start : start + n * width]
                found += int(line.view(n, width).all(1).sum())
        counts.append(found)
    return counts
