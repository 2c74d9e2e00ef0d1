"""A circuit as columns of plain values, for what draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mansu.circuits.circuit import Circuit

RANKED = 5000
"""So many best edges are there to be shown, and the circuit's own."""


def columns(circuit: Circuit, *, ranked: int = RANKED, extra: Sequence[int] = ()) -> dict[str, Any]:
    """Nodes, destinations and edges for the browser, plain JSON values.

    Edges are the ``ranked`` best by falling |score|, then the circuit's own and ``extra`` ones
    (coded) that are not among them. Nodes are numbered as sources are, the logits last.
    """
    layout = circuit.layout
    best = circuit.order[:ranked].tolist()
    there = set(best)
    more = [code for code in [*circuit.kept.tolist(), *extra] if code not in there]
    codes = [*best, *dict.fromkeys(more)]
    own = set(circuit.kept.tolist())
    scores = dict(zip(circuit.order.tolist(), circuit.order_scores.tolist(), strict=True))
    width = layout.n_destinations
    nodes = [circuit.node(i) for i in range(layout.n_sources + 1)]
    feeds: list[list[int]] = [[] for _ in range(width)]
    for destination, node in layout.feeds.nonzero().tolist():
        feeds[destination].append(node)
    feeds[layout.logits] = [layout.n_sources]
    return {
        "layers": layout.n_layers,
        "heads": layout.n_heads,
        "total": layout.n_edges,
        "ranked": len(best),
        "nodes": [[n["name"], n["kind"], n["layer"], n["head"]] for n in nodes],
        "destinations": [[layout.destination_name(d), fed] for d, fed in enumerate(feeds)],
        "edges": {
            "code": codes,
            "source": [code // width for code in codes],
            "destination": [code % width for code in codes],
            "score": [float(f"{scores[code]:.6g}") for code in codes],
            "kept": [int(code in own) for code in codes],
        },
    }
