"""The computation graph that attribution and circuits share: which edges exist, and the weights.

Nodes are what writes to the residual stream: the embedding, every attention head, every MLP.
Destinations are what reads it: the query of every head, the key and the value of every key/value
head, every MLP input, the logits. An edge is one node's output inside one destination's input
(Elhage et al. 2021; Wang et al. 2022; Syed et al. 2023).

Node ``0`` is the embedding; node ``1 + l (H + 1) + h`` is head ``h`` of layer ``l`` and
``1 + l (H + 1) + H`` its MLP. Destinations of a layer are its H queries, its G keys, its G values
and its MLP, in this order; the last destination is the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mansu.errors import MismatchError
from mansu.show.numbers import written
from mansu.show.table import Table
from mansu.subjects.subject import Subject
from mansu.subjects.weights import Heads, family_of
from mansu.tasks.tokens import Pairs


@dataclass(frozen=True)
class Graph:
    """Layout of nodes, destinations and edges.

    Attributes:
        n_layers, n_heads, n_kv_heads: L, H, G.
        parallel: the MLP reads the same residual stream as the attention of its layer (GPT-NeoX).
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool

    @property
    def per_layer(self) -> int:
        """Destinations a layer: H + 2 G + 1."""
        return self.n_heads + 2 * self.n_kv_heads + 1

    @property
    def n_sources(self) -> int:
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_destinations(self) -> int:
        return self.n_layers * self.per_layer + 1

    @property
    def logits(self) -> int:
        """Index of the last destination, the logits."""
        return self.n_destinations - 1

    def head(self, layer: int, head: int = 0) -> int:
        """Source index of a head; with the default, where the layer's heads begin."""
        return 1 + layer * (self.n_heads + 1) + head

    def mlp(self, layer: int) -> int:
        """Source index of a layer's MLP."""
        return self.head(layer, self.n_heads)

    def attention_inputs(self, layer: int) -> slice:
        """Destination indices of a layer's queries, keys and values."""
        start = layer * self.per_layer
        return slice(start, start + self.per_layer - 1)

    def mlp_input(self, layer: int) -> int:
        """Destination index of a layer's MLP."""
        return (layer + 1) * self.per_layer - 1

    def before_attention(self, layer: int) -> int:
        """How many sources a layer's attention can read (they are the first ones)."""
        return self.head(layer)

    def before_mlp(self, layer: int) -> int:
        """How many sources a layer's MLP can read."""
        return self.head(layer) if self.parallel else self.mlp(layer)

    @cached_property
    def readable(self) -> Tensor:
        """int64 ``[n_destinations]``: how many sources, the first ones, each one can read."""
        counts = []
        for layer in range(self.n_layers):
            counts += [self.before_attention(layer)] * (self.per_layer - 1)
            counts.append(self.before_mlp(layer))
        return torch.tensor([*counts, self.n_sources])

    @cached_property
    def edges(self) -> Tensor:
        """bool ``[n_sources, n_destinations]``: where an edge exists."""
        return torch.arange(self.n_sources)[:, None] < self.readable

    @property
    def n_edges(self) -> int:
        return int(self.readable.sum())

    @cached_property
    def feeds(self) -> Tensor:
        """bool ``[n_destinations, n_sources]``: the nodes whose output a destination enters.

        A key or value feeds every head of its group; the logits feed no node.
        """
        feeds = torch.zeros(self.n_destinations, self.n_sources, dtype=torch.bool)
        heads = torch.arange(self.n_heads)
        group = heads // (self.n_heads // self.n_kv_heads)
        for layer in range(self.n_layers):
            start = self.attention_inputs(layer).start
            nodes = self.head(layer) + heads
            feeds[start + heads, nodes] = True
            feeds[start + self.n_heads + group, nodes] = True
            feeds[start + self.n_heads + self.n_kv_heads + group, nodes] = True
            feeds[self.mlp_input(layer), self.mlp(layer)] = True
        return feeds

    def prune(self, kept: Tensor) -> Tensor:
        """Drop the edges on no path from the embedding to the logits.

        What is not reached from the embedding carries its corrupt value, and what does not reach
        the logits is not read, so dropping them changes no output, but for post norms (Gemma 2 and
        3, OLMo 2): there a head that reaches nothing still enters the size by which its layer's
        norm divides what the other heads write, and with the edges into it dropped it enters with
        its corrupt value. What is measured is of the edges that are left.

        Args:
            kept: bool ``[n_sources, n_destinations]``.
        """
        kept = kept & self.edges
        into = self.feeds.float()
        step = kept.float()
        forward = torch.zeros(self.n_sources)
        forward[0] = 1
        backward = torch.zeros(self.n_destinations)
        backward[self.logits] = 1
        while True:  # at most two sweeps a layer deep; each is two small products
            ahead = ((forward @ step @ into + forward) > 0).float()
            back = (((into @ (step @ backward)) + backward) > 0).float()
            if torch.equal(ahead, forward) and torch.equal(back, backward):
                return kept & (forward[:, None] > 0) & (backward > 0)
            forward, backward = ahead, back

    def source_name(self, index: int) -> str:
        """``embed``, ``a3.h2`` (layer 3, head 2) or ``m3``.

        Raises:
            IndexError: there is no such source.
        """
        if not 0 <= index < self.n_sources:
            raise IndexError(f"There is no source {index}: they are 0 to {self.n_sources - 1}.")
        if index == 0:
            return "embed"
        layer, head = divmod(index - 1, self.n_heads + 1)
        return f"m{layer}" if head == self.n_heads else f"a{layer}.h{head}"

    def destination_name(self, index: int) -> str:
        """``a3.h2<q>``, ``a3.kv1<k>``, ``a3.kv1<v>``, ``m3`` or ``logits``.

        Raises:
            IndexError: there is no such destination.
        """
        if not 0 <= index <= self.logits:
            raise IndexError(f"There is no destination {index}: they are 0 to {self.logits}.")
        if index == self.logits:
            return "logits"
        layer, place = divmod(index, self.per_layer)
        if place < self.n_heads:
            return f"a{layer}.h{place}<q>"
        if place == self.per_layer - 1:
            return f"m{layer}"
        kind, head = divmod(place - self.n_heads, self.n_kv_heads)
        return f"a{layer}.kv{head}<{'kv'[kind]}>"

    def table(self, edges: Tensor, scores: Tensor, caption: str) -> Table:
        """Edges (int64 ``[n]``, source · n_destinations + destination) with their scores."""
        rows = []
        for edge, score in zip(edges.tolist(), scores.tolist(), strict=True):
            source, destination = divmod(edge, self.n_destinations)
            names = self.source_name(source), self.destination_name(destination)
            rows.append((*names, written(score, "+.3f")))
        return Table(("From", "To", "Score"), rows, caption, "<<>")

    def meta(self) -> dict[str, Any]:
        return {
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads,
            "parallel": self.parallel,
        }


class Sourced:
    """What was measured on one subject's weights and some pairs, and is of no others.

    Attributes:
        layout: the subject's graph. subject, fingerprint: its name, and that of its weights.
        pairs: the pairs' digest.
    """

    layout: Graph
    subject: str
    fingerprint: str
    pairs: str

    def refuse_other(self, subject: Subject, pairs: Pairs | None = None) -> None:
        """Refuse a subject, or pairs, that this is not of.

        Raises:
            MismatchError: which one it is.
        """
        what = type(self).__name__.lower()
        if self.layout != graph_of(subject) or self.fingerprint != subject.fingerprint:
            raise MismatchError(
                f"The {what} is of {self.subject!r} with other weights than {subject.name!r} has "
                f"now ({self.fingerprint}, not {subject.fingerprint}): make it of this subject."
            )
        if pairs is not None and pairs.digest != self.pairs:
            raise MismatchError(
                f"The {what} was made with other clean–corrupt pairs: use the same task, number of "
                "pairs and seed, or make it again."
            )


def graph_of(subject: Subject) -> Graph:
    """The graph of a subject.

    Raises:
        MansuError: its architecture is not known.
    """
    family_of(subject)
    config, heads = subject.config, Heads.of(subject.config)
    parallel = bool(getattr(config, "use_parallel_residual", False))
    return Graph(config.num_hidden_layers, heads.n, heads.kv, parallel)
