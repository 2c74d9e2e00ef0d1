"""Figures of attributions and circuits. Colours work on light and dark grounds alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
import plotly.graph_objects as go
from torch import Tensor

from mansu.circuits.attribution import Attribution
from mansu.circuits.circuit import Circuit
from mansu.circuits.graph import Graph

# A score is the change of the metric when the edge is patched to its corrupt value, so an edge that
# carries the answer has a negative one. Blue, solid: carries it; orange, dotted: works against it.
FOR, AGAINST, NEUTRAL = (
    "#2b83ba",
    "#d95f02",
    "#8c8c8c",
)  # told apart in the three colour blindnesses
DIVERGING = [[0.0, FOR], [0.5, "rgba(140,140,140,0.12)"], [1.0, AGAINST]]
DRAWN = 600  # edges drawn at most: more is a blot
WIDTHS = (0.7, 1.4, 2.4, 4.0, 6.5)
CURVE = np.linspace(0, 1, 13)


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
            "ticktext": [f"{np.sign(t) * t * t:+.2g}" if t else "0" for t in ticks],
        },
        customdata=scores,
        hovertemplate="layer %{y}, %{x}<br>score %{customdata:+.4f}<extra></extra>",
    )
    if scores.size <= 80:  # room for numbers; on the faintest shades they could not be read
        strong = np.abs(scores) > 0.05 * np.abs(scores).max()
        numbers = np.where(strong, np.char.mod("%+.2f", scores), "")
        heat.update(text=numbers, texttemplate="%{text}")
    figure = go.Figure(heat)
    figure.update_layout(height=130 + max(17 * len(rows), 120), margin=_margin(), dragmode=False)
    figure.update_xaxes(title="head, or the MLP", showgrid=False, type="category")
    figure.update_yaxes(title="layer", showgrid=False, type="category")
    return figure


def strongest(attribution: Attribution, n: int) -> list[dict[str, Any]]:
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
                "share": abs(score) / total,
            }
        )
    return rows


def faithfulness_curve(circuit: Circuit, shown: Circuit) -> go.Figure:
    """Faithfulness by number of edges, with its interval, the τ asked for and what is shown."""
    curve = circuit.curve[circuit.curve[:, 0].argsort()].numpy()
    n, value, low, high = curve.T
    figure = go.Figure()
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
        name="best edges by |score|",
        hovertemplate="%{x:,} edges<br>faithfulness %{y:.1%}<extra></extra>",
    )
    if shown.faithfulness is not None:
        figure.add_scatter(
            x=[len(shown)],
            y=[shown.faithfulness],
            mode="markers",
            marker={"symbol": "star", "size": 15, "color": AGAINST},
            name="shown",
            hovertemplate="shown: %{x:,} edges<br>faithfulness %{y:.1%}<extra></extra>",
        )
    figure.add_hline(circuit.tau, line_dash="dash", line_color=NEUTRAL, annotation_text="τ")
    figure.update_layout(height=300, margin=_margin(), legend=_legend(), dragmode=False)
    figure.update_xaxes(title="edges (log scale)", type="log", dtick=1)
    figure.update_yaxes(title="faithfulness", tickformat=".0%")
    return figure


def circuit_graph(circuit: Circuit, selected: str | None = None) -> tuple[go.Figure, int]:
    """The circuit, embedding below and logits above: heads left to right, the MLP rightmost.

    Clickable points carry the node's name in ``customdata``.

    Args:
        selected: a node whose edges are drawn in front of the others.

    Returns:
        The figure and the number of edges left out because they are too many to draw.
    """
    graph, layout = circuit.graph(), circuit.layout
    edges = sorted(graph.edges(data=True), key=lambda edge: -abs(edge[2]["score"]))
    left_out = len(edges) - min(len(edges), DRAWN)
    edges = edges[:DRAWN]
    place = {name: _place(layout, about) for name, about in graph.nodes(data=True)}
    figure = go.Figure()
    _draw_absent(figure, circuit, set(graph))
    _draw_edges(figure, edges, place, selected)
    _draw_nodes(figure, graph, place, selected)
    top = layout.n_layers + 0.4
    figure.update_layout(
        height=int(150 + 27 * (layout.n_layers + 2) + max(0, 5 - layout.n_layers) * 40),
        margin=_margin(),
        legend=_legend(),
        hovermode="closest",
        dragmode=False,
        clickmode="event+select",
    )
    heads = list(range(layout.n_heads))
    figure.update_xaxes(
        tickvals=[*heads, layout.n_heads + 0.6],
        ticktext=[*(f"h{i}" for i in heads), "MLP"],
        showgrid=False,
        zeroline=False,
        range=[-0.8, layout.n_heads + 2.2],
    )
    figure.update_yaxes(
        tickvals=list(range(layout.n_layers)),
        title="layer",
        showgrid=False,
        zeroline=False,
        range=[-2.6, top + 1.2],
    )
    return figure, left_out


def _place(layout: Graph, about: dict[str, Any]) -> tuple[float, float]:
    if about["kind"] == "embedding":
        return (layout.n_heads - 1) / 2, -1.4
    if about["kind"] == "logits":
        return (layout.n_heads - 1) / 2, layout.n_layers + 0.4
    if about["kind"] == "mlp":
        return layout.n_heads + 0.6, about["layer"] + 0.3  # after the heads of its layer
    return about["head"], about["layer"]


def _draw_absent(figure: go.Figure, circuit: Circuit, present: set[str]) -> None:
    nodes = [circuit.node(i) for i in range(1, circuit.layout.n_sources)]
    places = [_place(circuit.layout, node) for node in nodes if node["name"] not in present]
    figure.add_scatter(
        x=[x for x, _ in places],
        y=[y for _, y in places],
        mode="markers",
        marker={"size": 4, "color": NEUTRAL, "opacity": 0.35},
        hoverinfo="skip",
        name="not in the circuit",
    )


def _draw_edges(
    figure: go.Figure,
    edges: Sequence[tuple[str, str, dict[str, Any]]],
    place: dict[str, tuple[float, float]],
    selected: str | None,
) -> None:
    """Lines of like sign and width share a trace; invisible points carry the hover."""
    largest = max((abs(e["score"]) for _, _, e in edges), default=1.0) or 1.0
    strokes: dict[tuple[bool, bool, int], tuple[list[float | None], list[float | None]]] = {}
    middles: list[tuple[float, float, str]] = []
    for begin, end, about in edges:
        (x0, y0), (x1, y1) = place[begin], place[end]
        bend = (
            0.09 * (y1 - y0) if abs(x1 - x0) < 0.5 else 0.0
        )  # else it runs through what lies between
        cx, cy = (x0 + x1) / 2 + min(bend, 1.5) * 2, (y0 + y1) / 2
        x = (1 - CURVE) ** 2 * x0 + 2 * CURVE * (1 - CURVE) * cx + CURVE**2 * x1
        y = (1 - CURVE) ** 2 * y0 + 2 * CURVE * (1 - CURVE) * cy + CURVE**2 * y1
        share = abs(about["score"]) / largest
        width = min(int(share**0.5 * len(WIDTHS)), len(WIDTHS) - 1)
        front = selected in (None, begin, end)
        xs, ys = strokes.setdefault((front, about["score"] <= 0, width), ([], []))
        xs += [*x.tolist(), None]
        ys += [*y.tolist(), None]
        if front:
            inputs = "<br>".join(f"into {i}: {s:+.4f}" for i, s in about["inputs"].items())
            middles.append(
                (x[6], y[6], f"<b>{begin} → {end}</b>: {about['score']:+.4f}<br>{inputs}")
            )
    for (front, carries, width), (xs, ys) in sorted(strokes.items()):
        colour = FOR if carries else AGAINST
        figure.add_scatter(
            x=xs,
            y=ys,
            mode="lines",
            line={"color": colour, "width": WIDTHS[width], "dash": "solid" if carries else "dot"},
            opacity=min(1.0, (0.35 if selected is None else 0.7) + 0.13 * width) if front else 0.05,
            hoverinfo="skip",
            showlegend=False,
        )
    for carries in (True, False):
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines",
            line={
                "color": FOR if carries else AGAINST,
                "width": 3,
                "dash": "solid" if carries else "dot",
            },
            name="carries the answer" if carries else "works against it",
        )
    figure.add_scatter(
        x=[m[0] for m in middles],
        y=[m[1] for m in middles],
        mode="markers",
        marker={"size": 9, "opacity": 0},
        text=[m[2] for m in middles],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
        name="edges",
    )


def _draw_nodes(
    figure: go.Figure,
    graph: nx.DiGraph,
    place: dict[str, tuple[float, float]],
    selected: str | None,
) -> None:
    largest = max((abs(about["score"]) for _, about in graph.nodes(data=True)), default=1.0) or 1.0
    symbols = {"head": "circle", "mlp": "square", "embedding": "diamond", "logits": "diamond"}
    labels = {"head": "attention head", "mlp": "MLP", "embedding": "embedding, logits"}
    for kind in ("head", "mlp", "embedding"):
        wanted = (kind, "logits") if kind == "embedding" else (kind,)
        nodes = [(name, about) for name, about in graph.nodes(data=True) if about["kind"] in wanted]
        figure.add_scatter(
            x=[place[name][0] for name, _ in nodes],
            y=[place[name][1] for name, _ in nodes],
            mode="markers+text" if kind == "embedding" else "markers",
            text=[name if kind == "embedding" else "" for name, _ in nodes],
            textposition=[
                "bottom center" if name == "embed" else "top center" for name, _ in nodes
            ],
            customdata=[[name, meaning(graph, name)] for name, _ in nodes],
            hovertemplate="%{customdata[1]}<extra></extra>",
            marker={
                "symbol": [symbols[about["kind"]] for _, about in nodes],
                "size": [9 + 9 * (abs(about["score"]) / largest) ** 0.5 for _, about in nodes],
                "color": [
                    NEUTRAL
                    if about["kind"] == "logits"
                    else (FOR if about["score"] <= 0 else AGAINST)
                    for _, about in nodes
                ],
                "line": {
                    "width": [4 if name == selected else 1 for name, _ in nodes],
                    "color": ["#e7298a" if name == selected else "white" for name, _ in nodes],
                },
            },
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 1}},
            name=labels[kind],
        )


def node_table(graph: nx.DiGraph) -> list[dict[str, Any]]:
    """A row a node, the strongest first."""
    rows = [
        {
            "node": name,
            "kind": about["kind"],
            "score": round(about["score"], 4),
            "edges in": graph.in_degree(name),
            "edges out": graph.out_degree(name),
        }
        for name, about in graph.nodes(data=True)
    ]
    return sorted(rows, key=lambda row: -abs(row["score"]))


def meaning(graph: nx.DiGraph, name: str) -> str:
    """What a node is, its score and its strongest neighbours, as lines of HTML."""
    about = graph.nodes[name]
    what = {
        "embedding": "the token embedding",
        "logits": "the model's prediction",
        "mlp": f"the MLP of layer {about['layer']}",
        "head": f"attention head {about['head']} of layer {about['layer']}",
    }[about["kind"]]
    lines = [f"<b>{name}</b>: {what}"]
    if about["kind"] != "logits":
        lines.append(
            f"score {about['score']:+.4f} over its edges here: "
            + ("carries the answer" if about["score"] <= 0 else "works against it")
        )
    for verb, found in (
        ("reads", [(b, e["score"]) for b, _, e in graph.in_edges(name, data=True)]),
        ("feeds", [(b, e["score"]) for _, b, e in graph.out_edges(name, data=True)]),
    ):
        if found:
            found.sort(key=lambda item: -abs(item[1]))
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            lines.append(f"{verb} {', '.join(f'{b} ({s:+.3f})' for b, s in found[:3])}{more}")
    return "<br>".join(lines)


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


def token_bars(raised: Tensor, words: Sequence[str], highlight: Sequence[int]) -> go.Figure:
    """Logit changes of a few tokens as bars; ``highlight`` are indices of answer and foil."""
    marks = {i: mark for i, mark in zip(highlight, ("answer", "foil"), strict=False)}
    names = [f"{word} ({marks[i]})" if i in marks else word for i, word in enumerate(words)]
    values = raised.tolist()
    figure = go.Figure(
        go.Bar(
            x=values,
            y=list(range(len(names))),
            orientation="h",
            marker={"color": [FOR if v >= 0 else AGAINST for v in values]},
            text=[f"{v:+.2f}" for v in values],
            hovertemplate="%{x:+.3f}<extra></extra>",
        )
    )
    figure.update_layout(height=90 + 26 * len(names), margin=_margin(), dragmode=False)
    figure.update_xaxes(title="change of the logit, clean − corrupt")
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, autorange="reversed", showgrid=False
    )
    return figure


def _margin() -> dict[str, int]:
    return {"l": 10, "r": 10, "t": 30, "b": 10}


def _legend() -> dict[str, Any]:
    return {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0}
