"""A circuit: a set of edges, and how well it alone does the task."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from mansu.circuits.graph import Graph, Sourced
from mansu.circuits.mask import Mask
from mansu.circuits.metric import Metric
from mansu.errors import BadInputError
from mansu.files import load_values, reading, save_values, typed
from mansu.show.numbers import ALONE, many, percent
from mansu.show.table import Shown, Table


@dataclass(frozen=True, repr=False, eq=False)
class Circuit(Shown, Sourced):
    """A set of edges, and how well it alone does the task.

    Attributes:
        layout: what the indices mean.
        order: int64 ``[n_edges]``, every edge as source · n_destinations + destination, by falling
            |score|; order_scores: float32, its score.
        kept: int64 ``[n]``, the circuit's edges in the same coding, by falling |score|.
        faithfulness: of ``kept``, measured; None where it was not (``top`` between curve points).
        interval: its bootstrap 95 % interval; None where it was not measured, or of one fact alone.
        curve: float32 ``[points, 4]``: edges asked for, faithfulness of the best so many edges
            without their orphans (``Graph.prune``), and its interval; ``[points, 2]``, without
            intervals, of one fact alone.
        tau: the faithfulness asked for. clean, corrupt: mean metric of the runs it lies between.
        metric, subject: how it was measured. fingerprint: of the subject's weights.
        n_pairs, pairs: how many it was measured on, and their digest. facts: how many they ask for,
            which intervals are over; None in a circuit of before, whose intervals are over pairs.
        mask: the parameters behind it; None where they were not looked for.
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
    fingerprint: str
    pairs: str
    facts: int | None = None
    mask: Mask | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.kept)

    def table(self) -> Table:
        """The ten edges of largest |score|."""
        caption = f"{len(self):,} of {self.layout.n_edges:,} edges on {self.subject}, faithfulness "
        caption += "not measured" if self.faithfulness is None else f"{self.faithfulness:.3f}"
        if self.interval is not None:
            caption += f" [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"
        elif self.faithfulness is not None and self.facts == 1:
            caption += f" {ALONE}"
        if self.mask is not None:
            mask = self.mask
            caption += f"; mask {mask.size:,} parameters ({percent(mask.fraction, 2)}), "
            caption += f"{percent(mask.mass, 0)} of its attribution"
        return self.layout.table(self.kept[:10], self.scores[:10], caption)

    @property
    def sampled(self) -> str:
        """What its intervals are over, in words: ``24 facts``."""
        return many(self.n_pairs, "pair") if self.facts is None else many(self.facts, "fact")

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
    def edge_mask(self) -> Tensor:
        """bool ``[n_sources, n_destinations]``."""
        return as_mask(self.layout, self.kept)

    def top(self, n: int) -> Circuit:
        """The best ``n`` edges by |score|, orphans dropped; faithfulness where the curve has it.

        Raises:
            BadInputError: ``n`` is negative.
        """
        if n < 0:
            raise BadInputError(f"A circuit has no {n} edges: ask for 0 or more.")
        kept = pruned(self.layout, self.order[:n])
        for size, value, *bounds in self.curve.tolist():
            if int(size) == n:
                interval = tuple(bounds) or None
                return replace(self, kept=kept, faithfulness=value, interval=interval, mask=None)
        return replace(self, kept=kept, faithfulness=None, interval=None, mask=None)

    def only(self, codes: Tensor) -> Circuit:
        """These edges alone (int64, coded), by falling |score|; its faithfulness is not measured.

        Raises:
            BadInputError: one is no edge of the layout.
        """
        places = torch.zeros(self.layout.n_sources * self.layout.n_destinations, dtype=torch.bool)
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(places):
            raise BadInputError(f"An edge's code lies from 0 to {len(places) - 1:,}.")
        places[codes] = True
        kept = self.order[places[self.order]]
        if len(kept) < int(places.sum()):
            raise BadInputError("A code is of no edge: its source comes after its destination.")
        return replace(self, kept=kept, faithfulness=None, interval=None, mask=None)

    def between(self, nodes: Collection[str]) -> Circuit:
        """Every edge of the graph, in the circuit or not, from one of these nodes to another."""
        layout = self.layout
        chosen = torch.tensor([layout.source_name(i) in nodes for i in range(layout.n_sources)])
        into = (layout.feeds & chosen).any(1)
        into[layout.logits] = "logits" in nodes
        edges = layout.edges & chosen[:, None] & into
        return self.only(edges.flatten().nonzero()[:, 0])

    def at(self, faithfulness: float) -> Circuit:
        """The smallest measured circuit at least this faithful; the largest one where none is."""
        enough = self.curve[self.curve[:, 1] >= faithfulness]
        row = enough[0] if len(enough) else self.curve[-1]
        found = self.top(int(row[0]))
        reached = self.faithfulness is not None and self.faithfulness >= faithfulness
        return self if reached and len(self) <= len(found) else found

    def node(self, index: int) -> dict[str, Any]:
        """Attributes of a source node (``n_sources`` is the logits), for graphs and tables.

        Raises:
            BadInputError: there is no node of that index.
        """
        graph = self.layout
        if not 0 <= index <= graph.n_sources:
            raise BadInputError(
                f"There is no node {index}: the sources are 0 to {graph.n_sources - 1:,}, and "
                f"{graph.n_sources:,} is the logits."
            )
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

    def save(self, folder: str | Path, of: Mapping[str, str] | None = None) -> None:
        """Write ``circuit.safetensors`` and, with a mask, ``mask.safetensors`` into ``folder``.

        Args:
            of: as ``save_values`` has it.
        """
        names = ("faithfulness", "interval", "tau", "clean", "corrupt")
        names += ("metric", "subject", "n_pairs", "fingerprint", "pairs", "facts")
        meta = {name: getattr(self, name) for name in names} | {"layout": self.layout.meta()}
        tensors = ("order", "order_scores", "kept", "curve")
        path = Path(folder) / "circuit.safetensors"
        if self.mask is not None:
            self.mask.save(folder, of)
        save_values(path, {name: getattr(self, name) for name in tensors}, meta, of)

    @classmethod
    def load(cls, folder: str | Path) -> Circuit:
        """Read what ``save`` wrote.

        Raises:
            NotMeasuredError: there is no such file. DamagedError: it is damaged.
        """
        mask = Mask.load(folder) if (Path(folder) / "mask.safetensors").is_file() else None
        path = Path(folder) / "circuit.safetensors"
        with reading(path):
            tensors, meta = load_values(path)
            layout = typed(Graph(**meta.pop("layout")))
            interval = meta.pop("interval")
            interval = interval and tuple(interval)
            found = cls(layout=layout, interval=interval, mask=mask, **tensors, **meta)
            typed(found)
            edges, most = (found.order, found.kept), layout.n_sources * layout.n_destinations
            if (
                len(found.order) < layout.n_destinations  # before anything of its size is made
                or len(found.order) != layout.n_edges
                or any(e.ndim != 1 or e.dtype != torch.long for e in edges)
                or any(len(e) and not 0 <= int(e.min()) <= int(e.max()) < most for e in edges)
                or found.order_scores.shape != found.order.shape
                or found.curve.shape[1:] != (2 if found.facts == 1 else 4,)
            ):
                raise ValueError("its edges are not those of its layout")
            if found.n_pairs < 1:
                raise ValueError("it has no pairs")
            return found


def as_mask(graph: Graph, kept: Tensor) -> Tensor:
    """Coded edges as bool ``[n_sources, n_destinations]``."""
    mask = torch.zeros(graph.n_sources * graph.n_destinations, dtype=torch.bool)
    mask[kept] = True
    return mask.view(graph.n_sources, graph.n_destinations)


def pruned(graph: Graph, kept: Tensor) -> Tensor:
    """``kept`` without orphans, in the same order."""
    return kept[graph.prune(as_mask(graph, kept)).flatten()[kept]]
