"""The circuit diff for whoever reads a dossier: what is kept, gone, back after NF4, or new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mansu.circuits.diff import Change, Diff, diff
from mansu.circuits.graph import Graph
from mansu.job.runs import Run
from mansu.show.numbers import many, percent, written
from mansu.show.sentences import capitalised
from mansu.show.table import Table

MODELS = ("unedited", "edited", "edited, NF4")
TITLES: Mapping[Change, str] = {
    "kept": "kept",
    "gone": "gone",
    "back": "back after NF4",
    "new": "new",
}
LEFT: Sequence[Change] = ("kept", "back")
"""Edges of the circuit that are there in NF4."""
MOST, TOLD = 2000, 8
"""Edges that a dossier holds, and those of each kind that it names."""
WEAK = 0.1
"""An edge that has less than this share of its score left is there, but weakened."""


@dataclass(frozen=True)
class Edge:
    """One edge of the circuit before an edit, after it, or after it in NF4.

    Attributes:
        source, destination: names. nodes: numbers of the source and of the nodes that the
            destination is part of, as ``Graph`` counts sources; the logits come after the last.
        change: what became of it. scores: in each of ``MODELS``.
    """

    source: str
    destination: str
    nodes: Sequence[int]
    change: Change
    scores: Sequence[float]

    @property
    def strength(self) -> float:
        """The largest |score| that it has in a model."""
        return max(map(abs, self.scores))

    @property
    def drawn(self) -> float:
        """The |score| that it is drawn by: in NF4, where some of it is left there."""
        return abs(self.scores[2]) if self.change in LEFT else self.strength

    @property
    def fate(self) -> str:
        """What became of it, for people: ``kept, but reversed``.

        By the least that is left, in NF4 and, of one that was never gone, in full precision.
        """
        title, (before, *after) = TITLES[self.change], self.scores
        if self.change not in LEFT:
            return title
        least = min(score * before for score in (after if self.change == "kept" else after[1:]))
        if least < 0:
            return f"{title}, but reversed"
        return f"{title}, but weakened" if least < WEAK * before**2 else title


@dataclass(frozen=True)
class Changes:
    """What an edit leaves of a circuit.

    Attributes:
        layers, heads: of the model. bar: |score| from which an edge counts.
        sizes: edges in the circuit of each of ``MODELS``. counts: edges of each kind.
        edges: the strongest first, at most ``MOST``.
        weak: of those kept or back, how many are weakened or reversed; None in a dossier of before.
    """

    layers: int
    heads: int
    bar: float
    sizes: Sequence[int]
    counts: Mapping[Change, int]
    edges: Sequence[Edge]
    weak: int | None = None


def changes(run: Run, method: str) -> Changes | None:
    """The circuit diff of an edit; None where its edges were not measured.

    Raises:
        DamagedError, MismatchError: a file is damaged, or of another edit or model.
    """
    if not (run.has("circuit") and run.has("edges", method)):
        return None
    circuit = run.circuit()
    return told(circuit.layout, diff(circuit, run.edge_scores(method)))


def told(layout: Graph, found: Diff) -> Changes:
    """A circuit diff, for people."""
    edges = []
    for code, change, scores in zip(
        found.codes.tolist(), found.changes, found.scores.tolist(), strict=True
    ):
        source, destination = divmod(code, layout.n_destinations)
        last = destination == layout.logits
        fed = [layout.n_sources] if last else layout.feeds[destination].nonzero()[:, 0].tolist()
        names = layout.source_name(source), layout.destination_name(destination)
        values = [float(f"{score:.6g}") for score in scores]
        edges.append(Edge(*names, [source, *fed], change, values))
    edges.sort(key=lambda edge: -edge.strength)
    return Changes(
        layout.n_layers,
        layout.n_heads,
        found.bar,
        found.member.sum(0).tolist(),
        found.counts(),
        edges[:MOST],
        sum(edge.fate != TITLES[edge.change] for edge in edges),
    )


def sentence(found: Changes) -> str:
    """How much of the circuit is left, in words."""
    was, _, nf4 = found.sizes
    n = found.counts
    left = n["kept"] + n["back"]  # in NF4, where there are new ones beside them
    weak = (
        f" Of the {left:,} that are left, {many(found.weak, 'is', 'are')} weakened or reversed, by "
        f"the edit or by NF4: less than {percent(WEAK, 0)} of the score is left, or it has the "
        "other sign."
        if found.weak
        else ""
    )
    return (
        f"Of the circuit's {was:,} edges {n['kept']:,} are kept, {n['back']:,} are gone after the "
        f"edit but back after NF4, and {n['gone']:,} are gone in NF4 (by the edit, or by NF4 "
        f"alone). In NF4 {left:,} of them are left, beside {many(nf4 - left, 'new edge')}; "
        f"{n['new']:,} are new in full precision or NF4.{weak} An edge counts while its |score| is "
        f"at least {found.bar:.3g}, that of the circuit's weakest edge, and while it is on a path "
        "from the embedding to the logits."
    )


NAMED = (
    "m3 is the MLP of layer 3 and a3.h2 its head 2; <q>, <k> and <v> are a head's query, key and "
    "value (kv0: shared by several heads). Negative: the edge supports the answer."
)
"""How edges are named."""


def edges_table(found: Changes) -> Table:
    """The strongest edges of each kind, with their scores in the three models."""
    rows = []
    for change in ("back", "new", "gone", "kept"):
        some = [edge for edge in found.edges if edge.change == change][:TOLD]
        rows += [
            (
                capitalised(edge.fate),
                f"{edge.source} → {edge.destination}",
                *(written(score, "+.3f") for score in edge.scores),
            )
            for edge in some
        ]
    return Table(("What became of it", "Edge", *map(capitalised, MODELS)), rows, align="<<>>>")
