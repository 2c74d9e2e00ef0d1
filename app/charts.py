"""The charts, as plotly figures; ``st.plotly_chart`` gives them the light or dark theme.

What a colour says is also said by a hatch, a symbol or a label. The colours are chosen to be
readable on white and on near-black.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pandas  # noqa: F401  # whole before Plotly looks at it: see app/serve.py
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mansu.evidence import strengths
from mansu.evidence.attacks import Attacks
from mansu.evidence.cad import Divergences
from mansu.evidence.strengths import Point
from mansu.measure.scores import Measurement
from mansu.progress import Step
from mansu.quant.survival import EDGES, Survival
from mansu.report import compare
from mansu.report.compare import Spot
from mansu.show import numbers
from mansu.show.numbers import percent, written
from mansu.statistics import Interval
from mansu.tasks.facts import CHANCE

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2f7fc1", "#d55e00", "#009e73", "#c0639b", "#858585"
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "triangle-down", "cross", "x", "star")
SYMBOLS += ("pentagon", "hexagram", "hourglass", "bowtie")
PALE, INK = "#e4e4e4", "#000"
"""The faintest colour of a heat map that has numbers, opaque, and theirs: they can be read (AA) on
it and on all up to BLUE and ORANGE, in both themes. Plotly by itself writes white on pale ones."""
ACCURACY = "4-way accuracy (dotted: chance, 25 %)"
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
        "signal_middle": "Suppressor in the middle",
        "signal_ablation": "Circuit ablated",
    },
}
"""Values of ``Divergences``, by which CAD they are, with their labels; erasure must be above every
suppressor."""


UNEDITED = "Unedited"
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#8a6d00", "#00838f")


def marks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and symbol of each model of a chart; the unedited one is grey, and not counted.

    An edit looks the same in every chart that has the same edits; no two of 24 look alike.
    """
    edits = [name for name in names if name != UNEDITED]
    found = {name: (COLOURS[i % len(COLOURS)], SYMBOLS[i % 8]) for i, name in enumerate(edits)}
    return {**found, UNEDITED: (GREY, "diamond-tall")}


def verticals(figure: go.Figure, xs: Iterable[float], line: Mapping[str, Any]) -> None:
    """A line at each place, all at once: plotly's own ``add_vline`` takes milliseconds for one."""
    whole = {"type": "line", "y0": 0, "y1": 1, "yref": "y domain", "line": line}
    layout: Any = figure.layout
    layout.shapes = [*layout.shapes, *({**whole, "x0": x, "x1": x} for x in xs)]


def accuracies(series: Mapping[str, tuple[Measurement, Measurement | None]]) -> go.Figure:
    """Accuracy of each set under each model, in full precision (filled) and in NF4 (open).

    Args:
        series: name → measured in full precision and, where it was, in NF4. A set that one model
            was not asked is left out of its line.
    """
    labels = list(dict.fromkeys(name for both in series.values() for name in both[0].sets()))
    figure = go.Figure()
    step = 0.8 / max(2 * len(series), 1)
    look = marks(series)
    for i, (name, both) in enumerate(series.items()):
        colour, symbol = look[name]
        for j, (measured, what) in enumerate(zip(both, ("", ", NF4"), strict=True)):
            if measured is None:
                continue
            sets = measured.sets()
            intervals = [scores.interval for scores in sets.values()]
            figure.add_scatter(
                name=f"{name}{what}",
                mode="markers",
                x=[v.value for v in intervals],
                y=[labels.index(s) + (2 * i + j + 0.5) * step - 0.4 for s in sets],
                error_x={**_whiskers(intervals), "color": colour},
                marker={"color": colour, "symbol": f"{symbol}-open" if j else symbol, "size": 9},
                customdata=[
                    [title, v.low, v.high, len(scores.rows)]
                    for (title, scores), v in zip(sets.items(), intervals, strict=True)
                ],
                hovertemplate="%{customdata[0]}<br>%{fullData.name}: %{x:.1%} "
                "[%{customdata[1]:.1%}, %{customdata[2]:.1%}]<br>%{customdata[3]} rows"
                "<extra></extra>",
            )
    figure.add_vline(CHANCE, line={"color": PURPLE, "dash": "dot", "width": 2})
    figure.update_xaxes(title=ACCURACY, tickformat=".0%", range=[-0.02, 1.04])
    _bands(figure, labels)
    return _finish(figure, 130 + len(labels) * (20 * len(series) + 12))


def bin_histogram(survival: Survival) -> go.Figure:
    """log10(|update| ÷ bin width) of each moved weight before and after NF4, the boundary at 1."""
    centres = [(a + b) / 2 for a, b in pairwise(EDGES)]
    parts = (survival.before, survival.after)
    titles = []
    for when, counts in zip(("Before", "After"), parts, strict=True):
        wider = sum(c for c, x in zip(counts, centres, strict=True) if x > 0)
        share = wider / max(sum(counts), 1)
        titles.append(f"{when} NF4: {sum(counts):,} moved, {percent(share, 2)} wider than the bin")
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
    figure.update_yaxes(title="weights", tickformat="~s", nticks=5, rangemode="tozero")
    figure.update_layout(showlegend=False)
    return _finish(figure, 420)


def bin_histograms(series: Mapping[str, Survival], boundary: float) -> go.Figure:
    """log10(|update| ÷ bin width) of several edits on one axis, each a share of what it moved.

    Args:
        series: name → the survival of its quantised weights.
        boundary: where the line is drawn, log10.
    """
    figure = go.Figure()
    some: list[int] = []
    look = marks(series)
    for i, (name, survival) in enumerate(series.items()):
        counts, colour = survival.before, look[name][0]
        some += [k for k, count in enumerate(counts) if count]
        figure.add_scatter(
            name=name,
            x=list(EDGES),
            y=[*(count / max(survival.moved, 1) for count in counts), 0.0],
            customdata=[*(f"{10**a:.3g} to {10**b:.3g}" for a, b in pairwise(EDGES)), ""],
            mode="lines",
            line={"color": colour, "shape": "hv", "width": 2, "dash": DASHES[i % len(DASHES)]},
            fill="tozeroy" if len(series) == 1 else None,
            hovertemplate="%{fullData.name}, ratio %{customdata}: %{y:.2%} of its moved weights"
            "<extra></extra>",
        )
    figure.add_vline(boundary, line={"color": GREY, "dash": "dash", "width": 2})
    low, high = (EDGES[min(some)], EDGES[max(some) + 1]) if some else (-1.0, 1.0)
    low, high = min(low, boundary, -1.0) - 0.2, max(high, boundary, 1.0) + 0.2
    ticks = list(range(int(low), int(high) + 1))
    figure.update_xaxes(
        range=[low, high],
        tickvals=ticks,
        ticktext=[_power(t) for t in ticks],
        title="|update| ÷ bin width (dashed: the boundary)",
    )
    figure.update_yaxes(title="Share of moved weights", tickformat="~%", rangemode="tozero")
    return _finish(figure, 340)


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


def divergences(series: Mapping[str, Divergences]) -> go.Figure:
    """CAD and signal CAD of edits between their controls, each with the interval that was kept.

    An edit's controls have its colour and symbol, open: a suppressor is fitted to its edit.
    """
    groups = {
        title: [
            label
            for field, label in fields.items()
            if any(getattr(d, field) is not None for d in series.values())
        ]
        for title, fields in CAD_FIELDS.items()
    }
    groups = {title: labels for title, labels in groups.items() if labels}
    figure = make_subplots(
        rows=len(groups),
        vertical_spacing=0.16,
        subplot_titles=list(groups),
        row_heights=[len(labels) for labels in groups.values()],
    )
    step, look = 0.7 / max(len(series), 1), marks(series)
    for row, (title, labels) in enumerate(groups.items(), start=1):
        top = 0.0
        for i, (name, d) in enumerate(series.items()):
            colour, symbol = look[name]
            found = {
                label: value
                for field, label in CAD_FIELDS[title].items()
                if (value := getattr(d, field)) is not None
            }
            intervals = [
                v if isinstance(v, Interval) else Interval(v, v, v) for v in found.values()
            ]
            top = max([top, *(v.high for v in intervals)])
            figure.add_scatter(
                name=name,
                legendgroup=name,
                showlegend=row == 1,
                x=[v.value for v in intervals],
                y=[labels.index(label) + (i + 0.5) * step - 0.35 for label in found],
                mode="markers",
                error_x={**_whiskers(intervals), "color": colour},
                marker={
                    "size": 10,
                    "color": colour,
                    "symbol": [
                        symbol if label.startswith("This edit") else f"{symbol}-open"
                        for label in found
                    ],
                },
                customdata=[
                    [
                        label,
                        numbers.measured(v, "CAD")
                        if isinstance(v, Interval)
                        else written(v, ".3f"),
                    ]
                    for label, v in found.items()
                ],
                hovertemplate="%{fullData.name}, %{customdata[0]}: %{customdata[1]}<extra></extra>",
                row=row,
                col=1,
            )
        figure.update_xaxes(range=[-0.12 * (top or 1), 1.12 * (top or 1)], row=row, col=1)
        _bands(figure, labels, row=row, col=1)
    figure.update_xaxes(title="CAD, bits (0 to 1)", row=len(groups))
    lines = sum(len(labels) for labels in groups.values())
    figure.update_annotations(x=0, xanchor="left")  # else the legend lies on the first title
    height = 160 + lines * (24 + 22 * len(series))
    return _finish(figure, height).update_layout(legend_y=1 + 30 / height, margin_t=80)


def forgetting_permanence(series: Mapping[str, Sequence[Spot]]) -> go.Figure:
    """Forgetting against permanence, whole edits with their intervals: the top right is best.

    Args:
        series: name → its spots; the first of them (the forget rows) is filled, others are open.
    """
    figure = go.Figure()
    look = marks(series)
    for name, spots in series.items():
        colour, symbol = look[name]
        for j, spot in enumerate(spots):
            x, y = spot.forgetting, spot.permanence
            figure.add_scatter(
                name=f"{name}, {spot.of}",
                mode="markers",
                x=[x.value],
                y=[y.value],
                error_x={**_whiskers([x]), "color": colour},
                error_y={**_whiskers([y]), "color": colour},
                marker={
                    "color": colour,
                    "symbol": f"{symbol}-open" if j else symbol,
                    "size": 12,
                    "line": {"width": 2, "color": colour},
                },
                hovertemplate=f"%{{fullData.name}}<br>fall towards chance %{{x:.1%}} "
                f"[{x.low:.1%}, {x.high:.1%}]<br>{compare.PERMANENCE}: %{{y:+.3f}} "
                f"[{written(y.low, '+.3f')}, {written(y.high, '+.3f')}]<extra></extra>",
            )
    figure.add_hline(0, line={"color": PURPLE, "dash": "dot", "width": 2})
    reached = [
        v for spots in series.values() for s in spots for v in (s.forgetting.low, s.forgetting.high)
    ]
    figure.update_xaxes(
        title="Forgetting: fall towards chance",
        tickformat=".0%",
        range=[min([0.0, *reached]) - 0.04, max([0.5, *reached]) + 0.04],
    )
    ends = [
        v for spots in series.values() for s in spots for v in (s.permanence.low, s.permanence.high)
    ]
    _at_least(figure, ends)
    figure.update_yaxes(title=f"{compare.PERMANENCE} (below 0: comes back)")
    return _finish(figure, 430 + 8 * len(series))


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
            f"{strengths.PERMANENCE}: %{{y:+.2f}}<br>"
            "retain accuracy fell %{customdata[1]:.1%}<extra></extra>",
        )
    figure.add_hline(0, line={"color": PURPLE, "dash": "dot", "width": 2})
    figure.update_xaxes(
        title="Forgetting: fall of forget accuracy", tickformat=".0%", rangemode="tozero"
    )
    _at_least(figure, [p.permanence for points in edits.values() for p in points])
    figure.update_yaxes(title=f"{strengths.PERMANENCE} (below 0: comes back)")
    return _finish(figure, 480)


def forgotten_kept(series: Mapping[str, Sequence[tuple[str, Interval, Interval]]]) -> go.Figure:
    """What edits forgot against what that cost, with intervals: the bottom right is best.

    Args:
        series: method → its edits: label, fall towards chance, and what the kept group loses that
            loses most, nats: accuracy can stand still while the answers become improbable.
    """
    figure, look = go.Figure(), marks(series)
    for name, edits in series.items():
        colour, symbol = look[name]
        xs, ys = [x for _, x, _ in edits], [y for _, _, y in edits]
        figure.add_scatter(
            name=name,
            mode="markers",
            x=[x.value for x in xs],
            y=[y.value for y in ys],
            error_x={**_whiskers(xs), "color": colour},
            error_y={**_whiskers(ys), "color": colour},
            marker={"color": colour, "symbol": symbol, "size": 10},
            customdata=[[text, x.low, x.high, y.low, y.high] for text, x, y in edits],
            hovertemplate="%{customdata[0]}<br>forgotten %{x:.1%} [%{customdata[1]:.1%}, "
            "%{customdata[2]:.1%}]<br>kept lost %{y:.3f} [%{customdata[3]:.3f}, "
            "%{customdata[4]:.3f}] nats<extra></extra>",
        )
    figure.update_xaxes(title="Forgotten: fall towards chance", tickformat=".0%")
    ends = [end for edits in series.values() for _, _, y in edits for end in (y.low, y.high)]
    shown = [1.1 * min([-0.02, *ends]), 1.1 * max([0.1, *ends])]  # also where nothing fell
    figure.update_yaxes(title="Largest loss of what is kept, nats", range=shown)
    return _finish(figure, 430 + 8 * len(series))


def attacks(series: Mapping[str, Attacks], labels: Mapping[str, str]) -> go.Figure:
    """Accuracy of each model under each recovery attack, with bootstrap intervals.

    Args:
        series: name → attacks on a model. labels: attack → its title, in order.
    """
    figure = go.Figure()
    step, look = 0.7 / max(len(series), 1), marks(series)
    for i, (name, found) in enumerate(series.items()):
        shown = [a for a in labels if a in found.scores]
        intervals = [found.accuracy(a) for a in shown]
        colour, symbol = look[name]
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
    figure.update_xaxes(title=ACCURACY, tickformat=".0%", range=[-0.02, 1.04])
    _bands(figure, list(labels.values()))
    return _finish(figure, 130 + len(labels) * (14 * len(series) + 14))


def relearning(series: Mapping[str, Attacks]) -> go.Figure:
    """Accuracy on the asked half after each step of relearning."""
    figure, look = go.Figure(), marks(series)
    for name, found in series.items():
        colour, symbol = look[name]
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


def _at_least(figure: go.Figure, values: Sequence[float]) -> None:
    """A y axis in nats that shows thousandths as the trifle that they are."""
    low, high = min([-0.2, *values]), max([0.2, *values])
    figure.update_yaxes(range=[low - 0.05 * (high - low), high + 0.05 * (high - low)])


def _bands(figure: go.Figure, labels: Sequence[str], **of: Any) -> None:
    """A category axis on which markers can lie beside each other: band i is around i."""
    figure.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=list(labels),
        range=[len(labels) - 0.5, -0.5],
        zeroline=False,
        **of,
    )


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
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": -0.01, "xanchor": "left"},
        hovermode="closest",
        **layout,
    )
