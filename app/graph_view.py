"""Figures of attributions and circuits. Colours work on light and dark grounds alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from pandas.io.formats.style import Styler
from torch import Tensor

from app.charts import INK, PALE
from mansu.circuits.attribution import Attribution
from mansu.circuits.circuit import Circuit
from mansu.show.numbers import many, written

# A score is the change of the metric when the edge is patched to its corrupt value, so an edge that
# carries the answer has a negative one. Blue, solid: carries it; orange, dotted: works against it.
FOR, AGAINST, NEUTRAL = (
    "#2b83ba",
    "#d95f02",
    "#8c8c8c",
)  # told apart in the three colour blindnesses
DIVERGING = [[0.0, FOR], [0.5, "rgba(140,140,140,0.12)"], [1.0, AGAINST]]
NUMBERED = [[0.0, FOR], [0.5, PALE], [1.0, AGAINST]]
"""Of a map with numbers: no colour that they are read on may depend on the theme."""


def node_scores(attribution: Attribution) -> Tensor:
    """Score of every node, the sum over its outgoing edges: ``[layers, heads + 1]``, MLP last."""
    graph = attribution.layout
    return attribution.scores.sum(1)[1:].view(graph.n_layers, graph.n_heads + 1)


def heat_map(attribution: Attribution) -> go.Figure:
    """Layer × head (and MLP), coloured by the node's score; layers go up as in the circuit."""
    graph, scores = attribution.layout, node_scores(attribution).numpy()
    columns = [f"h{i}" for i in range(graph.n_heads)] + ["MLP"]
    rows = [str(i) for i in range(graph.n_layers)]
    shades = np.sign(scores) * np.abs(scores) ** 0.5  # else one node outshines all the others
    limit = float(np.abs(shades).max()) or 1.0
    ticks = np.linspace(-limit, limit, 5)
    heat = go.Heatmap(
        z=shades,
        x=columns,
        y=rows,
        zmin=-limit,
        zmax=limit,
        colorscale=DIVERGING,
        xgap=2,
        ygap=2,
        colorbar={
            "title": {"text": "score"},
            "thickness": 12,
            "tickvals": ticks.tolist(),
            "ticktext": [written(np.sign(t) * t * t, "+.2g") if t else "0" for t in ticks],
        },
        customdata=scores,
        hovertemplate="layer %{y}, %{x}<br>score %{customdata:+.4f}<extra></extra>",
    )
    if scores.size <= 80:  # room for numbers; of the faintest shades they would say nothing
        strong = np.abs(scores) > 0.05 * np.abs(scores).max()
        numbers = np.where(strong, np.vectorize(written)(scores, "+.2f"), "")
        heat.update(text=numbers, texttemplate="%{text}", textfont={"color": INK})
        heat.update(colorscale=NUMBERED)
    figure = go.Figure(heat)
    figure.update_layout(height=130 + max(17 * len(rows), 120), margin=_margin(), dragmode=False)
    figure.update_xaxes(title="head, or the MLP", showgrid=False, type="category")
    figure.update_yaxes(title="layer", showgrid=False, type="category")
    return figure


def strongest(attribution: Attribution, n: int) -> Styler:
    """The ``n`` edges of largest |score|, a table row each."""
    graph, scores = attribution.layout, attribution.scores
    total = float(scores.abs().sum()) or 1.0
    order = scores.abs().flatten().topk(min(n, graph.n_edges)).indices.tolist()
    rows = []
    for source, destination in (divmod(i, graph.n_destinations) for i in order):
        score = float(scores[source, destination])
        rows.append(
            {
                "from": graph.source_name(source),
                "to": graph.destination_name(destination),
                "score": score,
                "share": 100 * abs(score) / total,  # in percent: a column cannot scale it
            }
        )
    return _scored(rows)


def faithfulness_curve(circuit: Circuit, shown: Circuit) -> go.Figure:
    """Faithfulness by number of edges, with its interval, the τ asked for and what was found.

    Args:
        shown: the edges that are looked at; how many they are is marked where they are others.
    """
    curve = circuit.curve[circuit.curve[:, 0].argsort()].numpy()
    n, value, *bounds = curve.T
    figure = go.Figure()
    if bounds:  # there are none of one fact alone
        low, high = bounds
        figure.add_scatter(
            x=np.concatenate([n, n[::-1]]),
            y=np.concatenate([high, low[::-1]]),
            fill="toself",
            fillcolor="rgba(43,131,186,0.3)",
            line={"width": 0},
            hoverinfo="skip",
            name="95 % interval",
        )
    figure.add_scatter(
        x=n,
        y=value,
        mode="lines+markers",
        line={"color": FOR},
        name="best edges by |score|, without orphans",
        hovertemplate="%{x:,} edges<br>faithfulness %{y:.1%}<extra></extra>",
    )
    if circuit.faithfulness is not None:
        figure.add_scatter(
            x=[len(circuit)],
            y=[circuit.faithfulness],
            mode="markers",
            marker={"symbol": "star", "size": 15, "color": AGAINST},
            name="the circuit found",
            hovertemplate="found: %{x:,} edges<br>faithfulness %{y:.1%}<extra></extra>",
        )
    if len(shown) and not torch.equal(shown.edge_mask, circuit.edge_mask):
        figure.add_scatter(  # a filter or a comparison was not patched: it has no height
            x=[len(shown)] * 2,
            y=[min(0.0, float(low.min())), max(1.0, float(high.max()))],
            mode="lines",
            line={"color": NEUTRAL, "dash": "dot"},
            name=f"shown: {many(len(shown), 'edge')}",
            hoverinfo="name",
        )
    figure.add_hline(circuit.tau, line_dash="dash", line_color=NEUTRAL, annotation_text="τ")
    figure.update_layout(height=300, margin=_margin(), legend=_legend(), dragmode=False)
    figure.update_xaxes(title="edges (log scale)", type="log", dtick=1)
    figure.update_yaxes(title="faithfulness", tickformat=".0%")
    return figure


def node_table(graph: nx.DiGraph) -> Styler:
    """A row a node, the strongest first."""
    rows = [
        {
            "node": name,
            "kind": about["kind"],
            "score": about["score"],
            "edges in": graph.in_degree(name),
            "edges out": graph.out_degree(name),
        }
        for name, about in graph.nodes(data=True)
    ]
    return _scored(sorted(rows, key=lambda row: -abs(row["score"])))


def _scored(rows: list[dict[str, Any]]) -> Styler:
    """Rows of a table that sorts by numbers and shows scores as they are written elsewhere."""
    table = pd.DataFrame(rows).style
    table.format({"score": lambda score: written(score, "+.4f")})
    return table


def attention_map(pattern: Tensor, words: Sequence[str]) -> go.Figure:
    """Attention ``[T, T]`` from each position (rows, downwards) to each earlier one."""
    ticks = list(range(len(words)))
    figure = go.Figure(
        go.Heatmap(
            z=pattern.numpy(),
            zmin=0,
            zmax=1,
            colorscale=[[0, "rgba(140,140,140,0.10)"], [1, FOR]],
            xgap=1,
            ygap=1,
            customdata=[[[words[i], words[j]] for j in ticks] for i in ticks],
            hovertemplate="from “%{customdata[0]}” to “%{customdata[1]}”: %{z:.1%}<extra></extra>",
            colorbar={"tickformat": ".0%", "thickness": 12},
        )
    )
    figure.update_layout(height=max(260, 130 + 24 * len(words)), margin=_margin(), dragmode=False)
    figure.update_xaxes(title="to", tickvals=ticks, ticktext=list(words), showgrid=False)
    figure.update_yaxes(
        title="from", tickvals=ticks, ticktext=list(words), showgrid=False, autorange="reversed"
    )
    return figure


def token_bars(
    raised: Tensor, words: Sequence[str], highlight: Sequence[int], limit: float, *, of: str
) -> go.Figure:
    """Logit changes of a few tokens as bars, on an axis from −limit to limit.

    Args:
        highlight: indices of answer and foil. of: what the numbers are.
    """
    marks = {i: mark for i, mark in zip(highlight, ("answer", "foil"), strict=False)}
    names = [f"{word} ({marks[i]})" if i in marks else word for i, word in enumerate(words)]
    values = raised.tolist()
    figure = go.Figure(
        go.Bar(
            x=values,
            y=list(range(len(names))),
            orientation="h",
            marker={"color": [FOR if v >= 0 else AGAINST for v in values]},
            text=[written(v, "+.2f") for v in values],
            hovertemplate="%{x:+.3f}<extra></extra>",
        )
    )
    figure.update_layout(height=90 + 26 * len(names), margin=_margin(), dragmode=False)
    room = 1.25 * limit or 1.0  # for the numbers at the bars' ends
    figure.update_xaxes(title=of, range=[-room, room])
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, autorange="reversed", showgrid=False
    )
    return figure


def _margin() -> dict[str, int]:
    return {"l": 10, "r": 10, "t": 30, "b": 10}


def _legend() -> dict[str, Any]:
    return {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0}
