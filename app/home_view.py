"""The picture of the first page: what 4 bits keep of each edit's moves, and of its forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app.charts import BLUE, GREY, ORANGE, PURPLE
from mansu.evidence.verdict import Name, Verdict
from mansu.report.story import Chapter
from mansu.show.numbers import mark, percent
from mansu.tasks.facts import CHANCE

STAGES = (
    ("before", "before", GREY, "circle"),
    ("full", "after", BLUE, "square"),
    ("nf4", "in 4 bits", ORANGE, "diamond-open"),
)

QUESTIONS: Mapping[Name, str] = {
    "forgetting": "Did it forget?",
    "retention": "Did it keep the rest?",
    "gap": "Does it stay forgotten in 4 bits?",
    "erasure": "Is it erased, and not only hidden?",
}
"""Each property of a verdict as a question without a foreign word."""


def verdicts(judged: Mapping[str, Verdict]) -> dict[str, list[str]]:
    """A row a question, a column an edit, and a last row for all of them together."""
    columns = {"Question": [*QUESTIONS.values(), "All four together"]}
    for title, verdict in judged.items():
        found = [getattr(verdict, name).status for name in QUESTIONS] + [verdict.status]
        columns[title] = [f"{mark(status)}\u00a0{status}" for status in found]
    return columns


def picture(told: Sequence[Chapter]) -> go.Figure:
    """A row an edit: at the left the moves that are left in 4 bits, at the right the answers."""
    names = [chapter.title for chapter in told]
    figure = make_subplots(
        cols=2,
        shared_yaxes=True,
        column_widths=[0.4, 0.6],
        horizontal_spacing=0.06,
        subplot_titles=("Moves left", "Right answers"),
    )
    figure.update_annotations(font_size=13)
    figure.add_bar(
        x=[c.share_left for c in told],
        y=names,
        orientation="h",
        marker={"color": BLUE},
        width=0.45,
        text=[percent(c.share_left) for c in told],
        textposition="auto",
        textangle=0,
        customdata=[[c.left, c.moved] for c in told],
        hovertemplate="%{y}: %{customdata[0]:,} of %{customdata[1]:,} moves<extra></extra>",
        showlegend=False,
    )
    for c in told:
        figure.add_scatter(
            x=[c.before.value, c.full.value, c.nf4.value],
            y=[c.title] * 3,
            mode="lines",
            line={"color": GREY, "width": 1},
            hoverinfo="skip",
            showlegend=False,
            row=1,
            col=2,
        )
    for field, label, colour, symbol in STAGES:
        intervals = [getattr(c, field) for c in told]
        figure.add_scatter(
            name=label,
            x=[i.value for i in intervals],
            y=names,
            mode="markers",
            marker={
                "color": colour,
                "symbol": symbol,
                "size": 18 if field == "nf4" else 11,
                "line": {"width": 2, "color": colour},
            },
            customdata=[[i.low, i.high] for i in intervals],
            hovertemplate=f"%{{y}}, {label}: %{{x:.1%}} "
            "[%{customdata[0]:.1%}, %{customdata[1]:.1%}]<extra></extra>",
            row=1,
            col=2,
        )
    figure.add_vline(CHANCE, line={"color": PURPLE, "dash": "dot", "width": 2}, row=1, col=2)  # type: ignore[arg-type]
    figure.update_xaxes(tickformat=".0%", range=[0, 1.05], tickvals=[0, 0.5, 1], row=1, col=1)
    figure.update_xaxes(tickformat=".0%", range=[-0.03, 1.06], row=1, col=2)
    figure.update_yaxes(type="category", autorange="reversed")  # in the order of the sentences
    return figure.update_layout(
        height=160 + 70 * len(told),
        margin={"l": 8, "r": 8, "t": 40, "b": 8},
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0, "xanchor": "left"},
    )
