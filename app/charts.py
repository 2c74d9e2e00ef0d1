"""The charts, as plotly figures; ``st.plotly_chart`` gives them the light or dark theme.

What a colour says is also said by a hatch, a symbol or a label. The colours are chosen to be
readable on white and on near-black.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mansu.evidence.attacks import Attacks
from mansu.evidence.cad import Divergences
from mansu.evidence.strengths import Point
from mansu.measure.scores import Measurement
from mansu.measure.statistics import Interval
from mansu.progress import Step
from mansu.quant.survival import EDGES, Survival

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2f7fc1", "#d55e00", "#009e73", "#c0639b", "#858585"
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "triangle-down", "cross", "x", "star")
SYMBOLS += ("pentagon", "hexagram", "hourglass", "bowtie")
CHANCE = 0.25
HATCH = {"shape": "/", "fillmode": "overlay", "fgcolor": "rgba(255,255,255,0.8)", "size": 5}
NOT_QUANTISED = ("embedding", "head", "norm", "bias")

CAD_FIELDS: Mapping[str, Mapping[str, str]] = {
    "CAD": {
        "edited": "This edit",
        "edited_nf4": "This edit in NF4",
        "noise_floor": "Noise floor",
        "suppressor": "Suppressor",
        "ablation": "Circuit ablated",
    },
    "Signal CAD": {
        "signal": "This edit",
        "signal_nf4": "This edit in NF4",
        "signal_suppressor": "Suppressor at the output",
        "signal_ablation": "Circuit ablated",
    },
}
"""Fields of ``Divergences`` that are intervals, by which CAD they are, with their labels."""


def accuracy_bars(series: Mapping[str, Measurement]) -> go.Figure:
    """Accuracy of each set under each model, with bootstrap intervals.

    Args:
        series: name → measurement. Names that end in ``NF4`` are hatched; names that start with
            ``Unedited`` are grey.
    """
    figure = go.Figure()
    labels: list[str] = []
    for name, measurement in series.items():
        groups = measurement.sets()
        labels = labels or list(groups)
        intervals = [s.interval for s in groups.values()]
        figure.add_bar(
            name=name,
            orientation="h",
            y=list(groups),
            x=[i.value for i in intervals],
            error_x=_whiskers(intervals),
            marker={
                "color": GREY if name.startswith("Unedited") else BLUE,
                "pattern": HATCH if name.endswith("NF4") else {},
            },
            customdata=[
                [i.low, i.high, len(s.correct)]
                for i, s in zip(intervals, groups.values(), strict=True)
            ],
            hovertemplate=(
                "%{y}<br>%{fullData.name}: %{x:.1%} "
                "[%{customdata[0]:.1%}, %{customdata[1]:.1%}]<br>"
                "%{customdata[2]} rows<extra></extra>"
            ),
        )
    figure.add_vline(CHANCE, line={"color": PURPLE, "dash": "dot", "width": 2})
    figure.update_xaxes(
        title="Accuracy, 4-way choice (dotted: chance, 25 %)", tickformat=".0%", range=[0, 1.04]
    )
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=labels)
    return _finish(figure, 110 + len(labels) * (16 * len(series) + 14), bargap=0.25)


def bin_histogram(survival: Survival) -> go.Figure:
    """log10(|update| ÷ bin width) of each moved weight before and after NF4, the boundary at 1."""
    centres = [(a + b) / 2 for a, b in pairwise(EDGES)]
    parts = (survival.before, survival.after)
    titles = []
    for when, counts in zip(("Before", "After"), parts, strict=True):
        wider = sum(c for c, x in zip(counts, centres, strict=True) if x > 0)
        share = wider / max(sum(counts), 1)
        titles.append(f"{when} NF4: {sum(counts):,} moved, {share:.2%} wider than the bin")
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.18, subplot_titles=titles)
    figure.update_annotations(font_size=12)  # so that a title fits in 400 px
    for row, (counts, colour, pattern) in enumerate(
        zip(parts, (BLUE, ORANGE), ({}, HATCH), strict=True), start=1
    ):
        figure.add_bar(
            x=centres,
            y=counts,
            width=EDGES[1] - EDGES[0],
            marker={"color": colour, "pattern": pattern, "line": {"width": 0}},
            customdata=[[10**a, 10**b] for a, b in pairwise(EDGES)],
            hovertemplate=(
                "ratio %{customdata[0]:.3g} to %{customdata[1]:.3g}<br>%{y:,} weights"
                "<extra></extra>"
            ),
            row=row,
            col=1,
        )
    figure.add_vline(0, line={"color": GREY, "dash": "dash", "width": 2})
    some = [i for i, pair in enumerate(zip(*parts, strict=True)) if any(pair)]
    low, high = (EDGES[some[0]], EDGES[some[-1] + 1]) if some else (-1.0, 1.0)
    low, high = min(low, -1.0) - 0.2, max(high, 1.0) + 0.2
    ticks = list(range(int(low), int(high) + 1))
    figure.update_xaxes(
        range=[low, high], tickvals=ticks, ticktext=[_power(t) for t in ticks], showticklabels=True
    )
    figure.update_xaxes(title="|update| ÷ bin width (boundary at 1)", row=2, col=1)
    figure.update_yaxes(title="weights", tickformat="~s", nticks=5)
    figure.update_layout(showlegend=False)
    return _finish(figure, 420)


def survival_by_layer(layers: Mapping[int, Survival]) -> go.Figure:
    """Share of each layer's moved weights whose code changes, and the share expected."""
    moved = {layer: s for layer, s in layers.items() if s.moved}
    return _shares([str(layer) for layer in moved], list(moved.values()), "Layer", horizontal=False)


def survival_by_kind(kinds: Mapping[str, Survival]) -> go.Figure:
    """The same by kind of matrix, without those that NF4 leaves alone: they survive whole, and
    their bars would dwarf the others."""
    moved = {kind: s for kind, s in kinds.items() if s.moved and kind not in NOT_QUANTISED}
    return _shares(list(moved), list(moved.values()), "", horizontal=True)


def _shares(labels: list[str], parts: list[Survival], name: str, *, horizontal: bool) -> go.Figure:
    shares, expected = [p.share for p in parts], [p.expected_share for p in parts]
    x, y = ("x", "y") if not horizontal else ("y", "x")
    figure = go.Figure()
    figure.add_bar(
        name="Codes that changed",
        orientation="h" if horizontal else "v",
        marker={"color": BLUE},
        customdata=[[p.changed, p.moved] for p in parts],
        hovertemplate=f"{name} %{{{x}}}: %{{customdata[0]:,}} of %{{customdata[1]:,}} moved weights"
        f" (%{{{y}:.2%}})<extra></extra>",
        **{x: labels, y: shares},
    )
    figure.add_scatter(
        name="Expected",
        mode="markers",
        marker={"color": ORANGE, "symbol": "diamond", "size": 9},
        hovertemplate=f"{name} %{{{x}}}: %{{{y}:.2%}} expected<extra></extra>",
        **{x: labels, y: expected},
    )
    share = {"title": "Share of moved weights", "tickformat": "~%", "rangemode": "tozero"}
    category: dict[str, Any] = {"title": name, "type": "category"}
    if horizontal:
        figure.update_layout(xaxis=share, yaxis={**category, "autorange": "reversed"})
        return _finish(figure, 130 + 32 * len(labels))
    figure.update_layout(xaxis=category, yaxis=share)
    return _finish(figure, 320)


HISTORY: Sequence[tuple[str, Mapping[str, str]]] = (
    ("Loss, nats", {"forget_loss": "forget loss", "retain_loss": "retain loss"}),
    ("Loss, nats", {"forget": "forget term", "retain": "retain term", "text": "text term"}),
    (
        "Accuracy",
        {"forget_accuracy": "forget accuracy", "forget_accuracy_nf4": "forget accuracy in NF4"},
    ),
    ("Weights moved", {"moved": "weights moved"}),
)
"""Panels, each with the values of a step that it shows and their names. MANSU's steps have the
first, third and fourth; the baselines' the second."""
_STYLES = {
    "forget_loss": (BLUE, "circle", "solid"),
    "forget": (BLUE, "circle", "solid"),
    "forget_accuracy": (PURPLE, "triangle-up", "solid"),
    "retain_loss": (GREEN, "square", "dash"),
    "retain": (GREEN, "square", "dash"),
    "text": (PURPLE, "triangle-up", "dot"),
    "forget_accuracy_nf4": (ORANGE, "diamond", "dash"),
    "moved": (GREY, "circle", "solid"),
}


def history(steps: Sequence[Step]) -> go.Figure:
    """A method's history, a panel for each of losses, accuracies, and weights moved.

    Args:
        steps: the method's records; at least one.
    """
    panels = [p for p in HISTORY if any(key in s.values for s in steps for key in p[1])]
    figure = make_subplots(rows=len(panels), shared_xaxes=True, vertical_spacing=0.08)
    for row, (title, names) in enumerate(panels, start=1):
        for key, name in names.items():
            points = [(s.done, s.values[key]) for s in steps if key in s.values]
            if not points:
                continue
            colour, symbol, dash = _STYLES[key]
            figure.add_scatter(
                name=name,
                x=[p[0] for p in points],
                y=[p[1] for p in points],
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                marker={"symbol": symbol, "size": 6},
                hovertemplate=f"step %{{x}}<br>{name} %{{y:.4~g}}<extra></extra>",
                row=row,
                col=1,
            )
        figure.update_yaxes(title=title, row=row, col=1)
        if title == "Accuracy":
            figure.update_yaxes(tickformat=".0%", range=[-0.03, 1.05], row=row, col=1)
        if title == "Weights moved":
            figure.update_yaxes(tickformat="~s", rangemode="tozero", row=row, col=1)
    figure.update_xaxes(title="Step", row=len(panels), col=1)
    return _finish(figure, 130 + 180 * len(panels))


def divergences(d: Divergences) -> go.Figure:
    """CAD and signal CAD of an edit between their controls, each measured value with interval."""
    groups = {
        title: {field: label for field, label in fields.items() if getattr(d, field) is not None}
        for title, fields in CAD_FIELDS.items()
    }
    groups = {title: fields for title, fields in groups.items() if fields}
    figure = make_subplots(
        rows=len(groups),
        vertical_spacing=0.16,
        subplot_titles=list(groups),
        row_heights=[len(fields) for fields in groups.values()],
    )
    for row, fields in enumerate(groups.values(), start=1):
        intervals = [getattr(d, f) for f in fields]
        ours = [label.startswith("This edit") for label in fields.values()]
        figure.add_scatter(
            x=[i.value for i in intervals],
            y=list(fields.values()),
            mode="markers+text",
            text=[f"{i.value:.3f}" for i in intervals],
            textposition="top center",
            error_x=_whiskers(intervals),
            marker={
                "size": 11,
                "color": [BLUE if o else ORANGE for o in ours],
                "symbol": ["circle" if o else "diamond" for o in ours],
            },
            customdata=[[i.low, i.high] for i in intervals],
            hovertemplate="%{y}: %{x:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]"
            "<extra></extra>",
            row=row,
            col=1,
        )
        top = max(i.high for i in intervals) or 1.0
        figure.update_xaxes(range=[-0.12 * top, 1.12 * top], row=row, col=1)
        figure.update_yaxes(range=[len(fields) - 0.5, -0.8], type="category", row=row, col=1)
    figure.update_xaxes(title="bits (0 the same circuit, 1 nothing in common)", row=len(groups))
    figure.update_layout(showlegend=False)
    return _finish(figure, 120 + 50 * sum(len(f) for f in groups.values()))


def tradeoff(edits: Mapping[str, Sequence[Point]], kept: float) -> go.Figure:
    """Forgetting against permanence, a line an edit and a point a strength: the top right is best.

    Args:
        edits: title → points. The first stands out.
        kept: the retain fall up to which a point is drawn full; beyond, it is hollow.
    """
    figure = go.Figure()
    for i, (title, points) in enumerate(edits.items()):
        symbol = SYMBOLS[i % len(SYMBOLS)]
        hollow = [p.retain_fall > kept for p in points]
        figure.add_scatter(
            name=title,
            x=[p.forgetting for p in points],
            y=[p.permanence for p in points],
            mode="lines+markers+text",
            text=[*[""] * (len(points) - 1), title if i == 0 else ""],
            textposition="bottom center",
            line={"color": BLUE if i == 0 else GREY, "width": 2 if i == 0 else 1},
            marker={
                "symbol": [f"{symbol}-open" if h else symbol for h in hollow],
                "size": [6 + 6 * p.strength for p in points],
                "color": BLUE if i == 0 else ORANGE,
            },
            customdata=[[p.strength, p.retain_fall] for p in points],
            hovertemplate=f"{title}, %{{customdata[0]:.0%}} of it<br>forgetting %{{x:.1%}}<br>"
            "permanence %{y:+.2f} nats<br>retain accuracy fell %{customdata[1]:.1%}<extra></extra>",
        )
    figure.add_hline(0, line={"color": PURPLE, "dash": "dot", "width": 2})
    figure.update_xaxes(
        title="Forgetting: fall of forget accuracy", tickformat=".0%", rangemode="tozero"
    )
    figure.update_yaxes(title="Permanence, nats (below 0 it comes back)")
    return _finish(figure, 480)


_MARKS: Sequence[tuple[str, str]] = (
    (GREY, "diamond"),
    (BLUE, "circle"),
    (ORANGE, "square"),
    (GREEN, "triangle-up"),
    (PURPLE, "cross"),
)


def attacks(series: Mapping[str, Attacks], labels: Mapping[str, str]) -> go.Figure:
    """Accuracy of each model under each recovery attack, with bootstrap intervals.

    Args:
        series: name → attacks on a model. labels: attack → its title, in order.
    """
    figure = go.Figure()
    step = 0.7 / max(len(series), 1)
    for i, (name, found) in enumerate(series.items()):
        shown = [a for a in labels if a in found.scores]
        intervals = [found.accuracy(a) for a in shown]
        colour, symbol = _MARKS[i % len(_MARKS)]
        figure.add_scatter(
            name=name,
            mode="markers",
            x=[v.value for v in intervals],
            y=[list(labels).index(a) + (i + 0.5) * step - 0.35 for a in shown],
            error_x={**_whiskers(intervals), "color": colour},
            marker={"color": colour, "symbol": symbol, "size": 10},
            customdata=[
                [labels[a], v.low, v.high, len(found.scores[a].rows)]
                for a, v in zip(shown, intervals, strict=True)
            ],
            hovertemplate="%{customdata[0]}<br>%{fullData.name}: %{x:.1%} "
            "[%{customdata[1]:.1%}, %{customdata[2]:.1%}]<br>%{customdata[3]} rows<extra></extra>",
        )
    figure.add_vline(CHANCE, line={"color": PURPLE, "dash": "dot", "width": 2})
    figure.update_xaxes(
        title="Accuracy, 4-way choice (dotted: chance, 25 %)", tickformat=".0%", range=[-0.02, 1.04]
    )
    figure.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=list(labels.values()),
        range=[len(labels) - 0.5, -0.5],
        zeroline=False,
    )
    return _finish(figure, 130 + len(labels) * (14 * len(series) + 14))


def relearning(series: Mapping[str, Attacks]) -> go.Figure:
    """Accuracy on the asked half after each step of relearning."""
    figure = go.Figure()
    for i, (name, found) in enumerate(series.items()):
        colour, symbol = _MARKS[i % len(_MARKS)]
        figure.add_scatter(
            name=name,
            mode="lines+markers",
            x=list(range(len(found.curve))),
            y=[scores.accuracy for scores in found.curve],
            line={"color": colour},
            marker={"color": colour, "symbol": symbol, "size": 8},
            hovertemplate="%{fullData.name}: %{y:.1%} after %{x} steps<extra></extra>",
        )
    figure.add_hline(CHANCE, line={"color": PURPLE, "dash": "dot", "width": 2})
    figure.update_xaxes(title="Steps of fine-tuning on the known half", dtick=1)
    figure.update_yaxes(title="Accuracy, 4-way", tickformat=".0%", range=[-0.02, 1.04])
    return _finish(figure, 340)


def _whiskers(intervals: Sequence[Interval]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [i.high - i.value for i in intervals],
        "arrayminus": [i.value - i.low for i in intervals],
        "color": ORANGE,
        "thickness": 1.5,
        "width": 3,
    }


def _power(exponent: int) -> str:
    return "1" if exponent == 0 else "10" if exponent == 1 else f"10<sup>{exponent}</sup>"


def _finish(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """Small margins, so that 400 px are enough; the legend above, where it takes no width."""
    return figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 40, "b": 8},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        hovermode="closest",
        **layout,
    )
