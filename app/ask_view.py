"""What models answer, drawn: a card a model, the logit lens as lines, a weight on its codes.

Cards are HTML of our own, in which everything is escaped: bars and tokens of plotly would not wrap.
A colour never stands alone: each token has its number with its sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import pandas  # noqa: F401  # whole before Plotly looks at it: see app/serve.py
import plotly.graph_objects as go

from app.charts import BLUE, GREEN, GREY, ORANGE, PURPLE, verticals
from mansu.circuits.lens import words
from mansu.quant.followed import Followed
from mansu.quant.formats import BOUNDARIES, CODES
from mansu.sets.ask import Answers, Said
from mansu.show.numbers import percent, written
from mansu.subjects.subject import Subject

_STYLE = """<style>
.ask {display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(max(15rem, (100% - 2rem) / var(--n)), 1fr))}
.ask section {display: grid; gap: 1rem; grid-row: span 2; grid-template-rows: subgrid}
.ask article {border: 1px solid rgba(128,128,128,.4); border-radius: .5rem; padding: .75rem 1rem}
.ask h2 {font-size: 1.05rem; margin: 0 0 .5rem; padding: 0}
.ask dl {display: grid; grid-template-columns: minmax(4.5rem, auto) 1fr 4.2rem; gap: .15rem .5rem;
  margin: 0 0 .75rem; align-items: center}
.ask dt, .ask dd {margin: 0; padding: 0; text-align: left; overflow-wrap: anywhere}
.ask dd {text-align: right; font-variant-numeric: tabular-nums}
.ask .bar {height: .6rem; border-radius: 2px; background: rgba(128,128,128,.25)}
.ask .bar i {display: block; height: 100%; border-radius: 2px; background: #2f7fc1}
.ask .right .bar i {background: #009e73}
.ask .right {font-weight: 700}
.ask .said {display: flex; flex-wrap: wrap; gap: .25rem; margin: 0; padding: 0; list-style: none}
.ask .said li {border-radius: .25rem; padding: .05rem .3rem; margin: 0; text-align: center}
.ask .said small {display: block; font-size: .75rem; font-variant-numeric: tabular-nums}
.ask p {margin: 0 0 .35rem; font-size: .875rem}
.ask .row {display: contents}
</style>"""

STRONG = 4.0
"""Nats at which a token's colour is as strong as it gets."""


def cards(subject: Subject, found: Answers, titles: Mapping[str, str], *, own: bool) -> str:
    """A column an edit, a card for full precision and one for NF4.

    Args:
        titles: name of an edit → its title.
        own: each model's own words; else the unedited model's, as each model reads them.
    """
    names = list(dict.fromkeys(name for name, _ in found.models))
    columns = []
    for name in names:
        both = "".join(
            _card(subject, found, key, titles.get(name, "Unedited model"), own)
            for key in found.models
            if key[0] == name
        )
        columns.append(f"<section>{both}</section>")
    return f'{_STYLE}<div class="ask" style="--n: {len(names)}">{"".join(columns)}</div>'


def _card(subject: Subject, found: Answers, key: tuple[str, bool], title: str, own: bool) -> str:
    said = found.models[key]
    title = f"{title}, NF4" if key[1] else title
    if own:
        tokens, change = said.tokens, said.difference.tolist()
    else:
        tokens, change = found.first.tokens, found.shift(key).tolist()
    text = "".join(
        _token(word, nats) for word, nats in zip(words(subject, tokens), change, strict=True)
    )
    text = f'<ol class="said">{text}</ol>' if text else "<p>It ends here: no further word.</p>"
    whose = "Goes on with" if own else "How it reads the unedited model's words"
    return (
        f"<article><h2>{escape(title)}</h2>{_next(subject, found, said)}<p>{whose}</p>{text}"
        "</article>"
    )


def _next(subject: Subject, found: Answers, said: Said) -> str:
    """The most probable next tokens, and those asked for where they are not among them."""
    shown = dict(
        zip(said.lens.top[-1, 0].tolist(), said.lens.probability[-1, 0].tolist(), strict=True)
    )
    for token, log in zip(found.wanted, said.lens.wanted[-1, 0].exp().tolist(), strict=True):
        shown.setdefault(token, log)
    rows = []
    for token, share in shown.items():
        (word,) = words(subject, [token])
        right = token in found.wanted
        rows.append(
            f'<div class="row{" right" if right else ""}"><dt>{escape(word)}'
            f"{' ✓' if right else ''}</dt>"
            f'<dd class="bar" aria-hidden="true"><i style="width: {100 * share:.1f}%"></i></dd>'
            f"<dd>{percent(share)}</dd></div>"
        )
    return f"<dl>{''.join(rows)}</dl>"


def _token(word: str, nats: float) -> str:
    strength = min(abs(nats) / STRONG, 1) * 0.45
    colour = "47,127,193" if nats > 0 else "213,94,0"
    number = written(nats, "+.1f") if abs(nats) >= 0.05 else "0"
    return (
        f'<li style="background: rgba({colour},{strength:.2f})">{escape(word)}'
        f"<small>{number}</small></li>"
    )


_LINES = (GREY, BLUE, ORANGE, GREEN, PURPLE)


def lens(found: Answers, titles: Mapping[str, str]) -> go.Figure:
    """Probability of the first token asked for by layer, a line a model; NF4's are dashed."""
    figure = go.Figure()
    names = list(dict.fromkeys(name for name, _ in found.models))
    for (name, nf4), said in found.models.items():
        share = said.lens.wanted[:, 0, 0].exp().tolist()
        title = titles.get(name, "Unedited model")
        figure.add_scatter(
            name=f"{title}, NF4" if nf4 else title,
            x=list(range(len(share))),
            y=share,
            mode="lines+markers",
            line={"color": _LINES[names.index(name) % 5], "dash": "dash" if nf4 else "solid"},
            marker={"symbol": "diamond" if nf4 else "circle", "size": 7},
            hovertemplate="%{fullData.name}<br>after %{x} layers: %{y:.2%}<extra></extra>",
        )
    layers = len(found.first.lens.wanted) - 1
    figure.update_xaxes(title="Layers passed", rangemode="tozero", dtick=1 + layers // 12)
    figure.update_yaxes(title="Probability", tickformat=".0%", range=[-0.03, 1.05])
    return figure.update_layout(
        height=360,
        margin={"l": 8, "r": 8, "t": 40, "b": 8},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    )


def lens_rows(subject: Subject, found: Answers, titles: Mapping[str, str]) -> dict[str, list[str]]:
    """What each model would say next after each layer, the last layer first: columns by model."""
    last = len(found.first.lens.top) - 1
    columns = {"Layers passed": [str(layer) for layer in range(last, -1, -1)]}
    for (name, nf4), said in found.models.items():
        title = titles.get(name, "Unedited model")
        best = words(subject, said.lens.top[:, 0, 0])
        cells = [
            f"{word} {percent(float(share), 0)}"
            for word, share in zip(best, said.lens.probability[:, 0, 0], strict=True)
        ]
        columns[f"{title}, NF4" if nf4 else title] = cells[::-1]
    return columns


def codes(edits: Mapping[str, Followed]) -> go.Figure:
    """A weight on the line of the sixteen codes of its block, before and after each edit.

    Values are shares of the block's largest weight; the lines are where the code changes.
    """
    figure = go.Figure()
    before = next(iter(edits.values())).before
    verticals(figure, BOUNDARIES.tolist(), {"color": GREY, "width": 1})
    figure.add_scatter(
        x=CODES.tolist(),
        y=["codes"] * len(CODES),
        mode="markers+text",
        name="the sixteen codes",
        text=[str(i) for i in range(len(CODES))],
        textposition="top center",
        marker={"symbol": "line-ns-open", "size": 14, "color": GREY},
        hovertemplate="code %{text}: %{x:.4f}<extra></extra>",
    )
    marks = {"Unedited": (before, GREY, "circle")}
    marks |= {
        title: (found.after, _LINES[i % 5], "diamond" if i > 1 else "square")
        for i, (title, found) in enumerate(edits.items(), start=1)
    }
    for title, (coded, colour, symbol) in marks.items():
        figure.add_scatter(
            x=[coded.scaled],
            y=[title],
            mode="markers",
            name=title,
            marker={"symbol": symbol, "size": 14, "color": colour},
            hovertemplate=f"{title}: %{{x:.4f}}, code {coded.code}<extra></extra>",
        )
    figure.update_xaxes(title="Value ÷ largest of its block", range=[-1.05, 1.05], zeroline=False)
    figure.update_yaxes(type="category", range=[-0.6, len(marks) + 0.8])
    return figure.update_layout(
        height=150 + 36 * len(marks), showlegend=False, margin={"l": 8, "r": 8, "t": 8, "b": 8}
    )
