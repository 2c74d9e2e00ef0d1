"""The lesson's charts: what was measured, with the prediction drawn on it.

Large type where the page is projected. A prediction is always the dotted line, or the cross.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log2

import pandas  # noqa: F401  # whole before Plotly looks at it: see app/serve.py
import plotly.graph_objects as go
import streamlit as st

from app.charts import BLUE, GREY, HATCH, INK, ORANGE, PALE, PURPLE, verticals
from mansu.evidence.tradeoff import Cell
from mansu.measure.scores import Scores
from mansu.quant.survival import EDGES, Survival
from mansu.show.numbers import number, percent
from mansu.statistics import Interval
from mansu.tasks.facts import CHANCE

PROJECTED = "lesson projected"
"""In the session's state: whether type is to be large."""

GUESS = {"color": PURPLE, "dash": "dot", "width": 3}
ASIDE = 0.38
"""Of a field: how far from its middle the way runs, which the numbers stand in."""

SOURCE = "arXiv 2605.15138"
"""Of the paper that the lesson follows."""

MODELS = ((BLUE, "circle"), (ORANGE, "square"), (GREY, "diamond"))
"""Of MANSU's model, of a suppressor's, and of one that does not know: alike in every chart."""

PAPER = (47, 828)
"""Median bin width ÷ update of gradient methods, least and most, as the paper reports it."""


def finished(figure: go.Figure, height: int, title: str = "") -> go.Figure:
    """Margins that fit 400 px, the legend above, type as large as the room needs."""
    large = bool(st.session_state.get(PROJECTED))
    spare = 32 if not title and len(figure.to_dict()["data"]) == 1 else 0  # it has no legend
    return figure.update_layout(
        height=round((height - spare) * (1.25 if large else 1)),
        font_size=20 if large else 13,
        margin={"l": 8, "r": 8, "t": 64 if title else 40 - spare, "b": 8},
        title={"text": title, "font_size": 24 if large else 15} if title else None,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        hovermode="closest",
    )


def strip(
    before: Sequence[float],
    after: Sequence[float],
    changed: Sequence[bool],
    boundaries: Sequence[float],
) -> go.Figure:
    """Weights of a block on the line of codes, before and after, a point each.

    Args:
        before, after: in units of the largest; ``after`` empty where it is not to be told yet.
        changed: which of them have another code after. boundaries: between two codes.
    """
    figure = go.Figure()
    verticals(figure, boundaries, {"color": GREY, "dash": "dot", "width": 1})

    def points(name: str, xs: Sequence[float], y: int, marker: dict[str, object]) -> None:
        figure.add_scatter(
            name=name,
            x=list(xs),
            y=[y] * len(xs),
            mode="markers",
            marker={"size": 10, **marker},
            hovertemplate="%{x:.3f} of the largest<extra></extra>",
        )

    points("before", before, 1, {"color": BLUE})
    if after:
        same = [x for x, moved in zip(after, changed, strict=True) if not moved]
        other = [x for x, moved in zip(after, changed, strict=True) if moved]
        points("after, the same code", same, 0, {"color": BLUE, "symbol": "circle-open"})
        points("after, another code", other, 0, {"color": ORANGE, "symbol": "x"})
    figure.update_xaxes(title="in units of the largest (dotted: boundaries)", range=[-1.05, 1.05])
    figure.update_yaxes(visible=False, range=[-0.7 if after else 0.3, 1.7])
    return finished(figure, 210 if after else 170)


def curve(points: Sequence[tuple[float, float]], at: float, guess: float, of: int) -> go.Figure:
    """How many of a block's other weights change their code, by how much its largest grows."""
    figure = go.Figure()
    figure.add_scatter(
        name="measured",
        x=[x for x, _ in points],
        y=[y for _, y in points],
        mode="lines",
        line={"color": BLUE, "shape": "hv", "width": 3},
        hovertemplate="%{x:.0%} larger: %{y} change<extra></extra>",
    )
    truth = next(y for x, y in reversed(points) if x <= at + 1e-9)
    figure.add_scatter(
        name="your prediction",
        x=[at, at],
        y=[guess, truth],
        mode="lines+markers",
        line=GUESS,
        marker={"symbol": ["x", "circle"], "size": 13, "color": [PURPLE, BLUE]},
        hovertemplate="%{y}<extra></extra>",
    )
    figure.update_xaxes(title="The largest weight grows by", tickformat=".0%")
    figure.update_yaxes(title=f"of the other {of}, change code", range=[-2, of + 2])
    return finished(figure, 380)


def ratios(edits: Mapping[str, Survival], guess: float) -> go.Figure:
    """Bin width ÷ update of every moved weight, an outline an edit, on a log scale."""
    figure = go.Figure()
    colours = (BLUE, ORANGE)
    shares = {name: [n / max(sum(s.before), 1) for n in s.before] for name, s in edits.items()}
    for i, (name, survival) in enumerate(edits.items()):
        figure.add_scatter(
            name=f"{name}, median {number(survival.width_over_update)} ×",
            x=[10 ** -((a + b) / 2) for a, b in pairwise(EDGES)],
            y=shares[name],
            mode="lines",
            line={"color": colours[i % 2], "width": 3, "dash": ("solid", "dash")[i % 2]},
            fill="tozeroy" if i == 0 else None,
            hovertemplate=f"{name}<br>%{{x:.3~g}} × too short: %{{y:.1%}} of the moved weights"
            "<extra></extra>",
        )
    top = max(map(max, shares.values()))
    figure.add_vrect(*PAPER, fillcolor=GREY, opacity=0.2, line_width=0)
    figure.add_vline(1, line={"color": GREY, "dash": "dash", "width": 2})
    figure.add_scatter(
        name="your prediction",
        x=[guess, guess],
        y=[0, top],
        mode="lines",
        line=GUESS,
        hovertemplate="you said %{x:,.0f} ×<extra></extra>",
    )
    figure.update_xaxes(
        type="log",
        title="Bin width ÷ move<br>(dashed: as wide as the bin;<br>grey: medians in the paper)",
        range=[-1, 4],
        dtick=1,
        tickformat=",~g",
    )
    figure.update_yaxes(title="share of moved weights", tickformat=".0%", rangemode="tozero")
    return finished(figure, 420)


def bars(
    rows: Sequence[tuple[str, float, Interval | None]],
    title: str,
    *,
    guesses: Mapping[str, float] | None = None,
    chance: bool = False,
    top: float = 1.0,
) -> go.Figure:
    """Shares as bars, each with its interval and what was predicted of it.

    Args:
        rows: label, value, interval. Labels that end in ``NF4`` are hatched. The value stands
            below its label: in a short bar, or under an interval, it could not be read.
        title: of the axis. guesses: label → prediction. chance: mark it. top: of the axis.
    """
    labels = [label for label, _, _ in rows]
    figure = go.Figure()
    errors = None
    if any(interval for _, _, interval in rows):
        errors = {
            "type": "data",
            "symmetric": False,
            "array": [i.high - v if i else 0 for _, v, i in rows],
            "arrayminus": [v - i.low if i else 0 for _, v, i in rows],
            "color": ORANGE,
        }
    figure.add_bar(
        name="measured",
        orientation="h",
        y=labels,
        x=[value for _, value, _ in rows],
        error_x=errors,
        marker={
            "color": BLUE,
            "pattern": {
                **HATCH,
                "shape": ["/" if label.endswith("NF4") else "" for label in labels],
                "fgcolor": "rgba(255,255,255,0.35)",
            },
        },
        hovertemplate="%{y}: %{x:.2%}<extra></extra>",
    )
    if guesses:
        figure.add_scatter(
            name="your prediction",
            x=list(guesses.values()),
            y=list(guesses),
            mode="markers",
            marker={"symbol": "x", "size": 15, "color": PURPLE, "line": {"width": 2}},
            hovertemplate="you said %{x:.1%}<extra></extra>",
        )
    if chance:
        figure.add_vline(CHANCE, line={"color": PURPLE, "dash": "dash", "width": 1})
    figure.update_xaxes(title=title, tickformat=".0%", range=[0, 1.08 * top])
    figure.update_yaxes(
        autorange="reversed",
        categoryorder="array",
        categoryarray=labels,
        tickvals=labels,
        ticktext=[f"{label}<br><b>{percent(value)}</b>" for label, value, _ in rows],
    )
    return finished(figure, 110 + 44 * len(rows))


def tradeoff(
    cells: Sequence[Cell],
    path: Sequence[Cell],
    chosen: Cell,
    found: Cell | None,
) -> go.Figure:
    """Forgetting and damage of every choice, with the way that a student took through them.

    Args:
        cells: all. path: those looked at, in order, where it is known. chosen: the student's.
        found: the best, if any.
    """
    counts = sorted({cell.moved for cell in cells})
    distances = sorted({cell.distance for cell in cells})
    by = {(c.moved, c.distance): c for c in cells}
    grid = [[by[count, distance] for count in counts] for distance in distances]

    def place(some: Sequence[Cell]) -> dict[str, list[float]]:
        return {
            "x": [counts.index(c.moved) for c in some],
            "y": [distances.index(c.distance) for c in some],
        }

    figure = go.Figure()
    figure.add_heatmap(
        z=[[c.forget for c in row] for row in grid],
        zmin=0,
        zmax=1,
        colorscale=[[0, BLUE], [1, PALE]],
        text=[[f"{percent(c.forget, 0)}<br>{loss(c)}" for c in row] for row in grid],
        texttemplate="%{text}",
        textfont={"color": INK},
        customdata=[[[c.moved, c.distance, c.survival, c.damage] for c in row] for row in grid],
        hovertemplate="%{customdata[0]:,} weights, %{customdata[1]:.3~g} bins each<br>"
        "%{customdata[2]:.0%} of the codes change<br>forget accuracy %{z:.0%}<br>"
        "kept answers lose %{customdata[3]:.2f} nats<extra></extra>",
        showscale=False,
    )
    if len(path) > 1:
        way = {axis: [at - ASIDE for at in ats] for axis, ats in place(path).items()}
        figure.add_scatter(
            name="your way",
            **way,
            mode="lines+markers",
            line={"color": ORANGE, "width": 3},
            marker={"size": 7, "color": ORANGE},
            hoverinfo="skip",
        )
    figure.add_scatter(
        name="your choice",
        **place([chosen]),
        mode="markers",
        marker={"symbol": "square-open", "size": 44, "color": ORANGE, "line": {"width": 4}},
        hoverinfo="skip",
    )
    if found is not None:
        figure.add_scatter(
            name="least damage among those that forget",
            **place([found]),
            mode="markers",
            marker={"symbol": "circle-open", "size": 50, "color": PURPLE, "line": {"width": 4}},
            hoverinfo="skip",
        )
    figure.update_xaxes(
        title="How many weights move",
        tickvals=list(range(len(counts))),
        ticktext=[f"{count:,}" for count in counts],
    )
    figure.update_yaxes(
        title="How far, in bins",
        tickvals=list(range(len(distances))),
        ticktext=[fraction(distance) for distance in distances],
    )
    return finished(figure, 460)


def loss(cell: Cell) -> str:
    """What other answers lose, to a hundredth of a nat; a gain is no loss."""
    return f"{max(cell.damage, 0.0):.2f}"


def fraction(distance: float) -> str:
    """``1/4`` of 0.25; a whole number as it is."""
    return f"{distance:g}" if distance >= 1 else f"1/{2 ** round(-log2(distance))}"


def bins(distance: float) -> str:
    """A distance in words: ``1/4 of a bin``, ``1 bin``, ``4 bins``."""
    unit = " of a bin" if distance < 1 else " bin" if distance == 1 else " bins"
    return fraction(distance) + unit


def relearning(curves: Mapping[str, Sequence[Scores]]) -> go.Figure:
    """Accuracy on the facts that were not taught again, after each step of teaching the others.

    Args:
        curves: by name, in the order of ``MODELS``.
    """
    figure = go.Figure()
    for (name, scores), (colour, symbol) in zip(curves.items(), MODELS, strict=True):
        figure.add_scatter(
            name=name,
            x=list(range(len(scores))),
            y=[s.accuracy for s in scores],
            mode="lines+markers",
            line={"color": colour, "width": 3},
            marker={"symbol": symbol, "size": 10},
            hovertemplate=f"{name}: %{{y:.1%}} after %{{x}} steps<extra></extra>",
        )
    figure.add_hline(CHANCE, line={"color": PURPLE, "dash": "dash", "width": 1})
    figure.update_xaxes(title="Steps of teaching one half<br>(dashed line: chance)", dtick=1)
    figure.update_yaxes(title="Accuracy on the other half", tickformat=".0%", range=[-0.02, 1.04])
    return finished(figure, 400)


def controls(rows: Mapping[str, float]) -> go.Figure:
    """How far each model's circuit is from the unedited one's.

    Args:
        rows: bits by name, in the order of ``MODELS``.
    """
    values = list(rows.values())
    figure = go.Figure()
    figure.add_bar(
        orientation="h",
        y=list(rows),
        x=values,
        text=[f"{v:.3f}" for v in values],
        textangle=0,  # beside a bar that is too short for it
        marker={"color": [colour for colour, _ in MODELS]},
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    figure.update_xaxes(title="Change of what the circuit writes<br>(signal CAD, bits; 0: none)")
    figure.update_yaxes(autorange="reversed")
    return finished(figure, 110 + 44 * len(rows))


def nodes(
    importance: Mapping[int, float],
    names: Mapping[int, str],
    mine: Sequence[int],
    best: Sequence[int],
) -> go.Figure:
    """Every head and MLP where it stands, as large as its attribution; the chosen are ringed."""
    places = {node: name.removeprefix("layer ").split(" ", 1) for node, name in names.items()}
    columns = list(dict.fromkeys(what for _, what in places.values()))
    most = max(importance.values()) or 1.0
    figure = go.Figure()

    def draw(name: str, some: Sequence[int], marker: dict[str, object]) -> None:
        figure.add_scatter(
            name=name,
            x=[columns.index(places[node][1]) for node in some],
            y=[int(places[node][0]) for node in some],
            mode="markers",
            marker=marker,
            text=[f"{names[node]}: {importance[node]:.2f}" for node in some],
            hovertemplate="%{text}<extra></extra>",
        )

    every = list(importance)
    sizes = [8 + 28 * (importance[node] / most) ** 0.5 for node in every]
    draw("attribution (size)", every, {"size": sizes, "color": BLUE})
    ring = {"color": "rgba(0,0,0,0)", "size": 48}
    draw("yours", mine, {**ring, "symbol": "square", "line": {"color": ORANGE, "width": 4}})
    draw("attribution's", best, {**ring, "symbol": "circle", "line": {"color": PURPLE, "width": 4}})
    figure.update_xaxes(
        tickvals=list(range(len(columns))), ticktext=columns, range=[-0.6, len(columns) - 0.4]
    )
    figure.update_yaxes(
        title="Layer", dtick=1, range=[-0.6, len({p[0] for p in places.values()}) - 0.4]
    )
    return finished(figure, 340)


def class_answers(
    said: Sequence[float | str], counted: str = "", *, zero: bool = False
) -> go.Figure:
    """What everybody said: a bar a choice, or a point a person on one line.

    Args:
        counted: what the numbers are. zero: mark it, wherever the numbers lie.
    """
    figure = go.Figure()
    if said and isinstance(said[0], str):
        counts = Counter(map(str, said))
        figure.add_bar(
            x=list(counts.values()), y=list(counts), orientation="h", marker={"color": PURPLE}
        )
        figure.update_xaxes(title="people", dtick=1, rangemode="tozero")
        return finished(figure, 110 + 34 * len(counts))
    numbers = sorted(float(x) for x in said)
    seen: dict[float, int] = {}
    heights = []
    for x in numbers:
        seen[x] = seen.get(x, 0) + 1
        heights.append(seen[x])
    figure.add_scatter(
        name="a person",
        x=numbers,
        y=heights,
        mode="markers",
        marker={"symbol": "x", "size": 11, "color": PURPLE},
        hovertemplate="%{x:.4~g}<extra></extra>",
    )
    figure.update_xaxes(title=counted)
    if zero:
        low, high = min(0.0, *numbers), max(0.0, *numbers)
        beside = 0.05 * (high - low) or 1.0
        figure.update_xaxes(range=[low - beside, high + beside])
        verticals(figure, [0.0], {"color": GREY, "dash": "dash", "width": 2})
    figure.update_yaxes(visible=False, range=[0, max(heights, default=1) + 1])
    return finished(figure, 190)
