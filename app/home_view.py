"""The picture of the first page: what 4 bits keep of each edit's moves, and of its forgetting.

It is HTML: a chart of Plotly would be three quarters of all that a first visit loads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from app import words
from app.charts import BLUE, GREY, ORANGE, PURPLE
from mansu.evidence.verdict import Name, Verdict
from mansu.report.story import Chapter
from mansu.show.numbers import between, mark, percent
from mansu.statistics import Interval
from mansu.tasks.facts import CHANCE

STAGES = (("before", "before"), ("full", "after"), ("nf4", "in 4 bits"))
"""The accuracies on a chapter's rows, and what each is called; each has a mark of its own."""

_STYLE = f"""<style>
.told {{display: grid; grid-template-columns: auto 2fr 3fr; gap: 0 1.25rem; margin: .5rem 0 0;
  padding-right: 1.5rem;
  align-items: center; font-size: .875rem}}
.told .head {{padding-bottom: .5rem; text-align: center; grid-column: 2}}
.told .head + .head {{grid-column: 3}}
.told .name {{grid-column: 1}}
.told .track {{position: relative; height: 3.5rem; border-left: 1px solid {GREY}}}
.told .track > * {{position: absolute; top: 50%; transform: translate(-50%, -50%)}}
.told .track .bar {{left: 0; height: 2rem; transform: translateY(-50%);
  background: color-mix(in srgb, {BLUE} 85%, black)}}
.told .track .share {{transform: translateY(-50%); padding: 0 .4rem; white-space: nowrap}}
.told .track .inside {{transform: translate(-100%, -50%); color: #fff; font-weight: 600}}
.told .track .line {{transform: none; height: 1px; background: {GREY}}}
.told .track .chance {{top: 0; height: 100%; transform: none; border-left: 2px dotted {PURPLE}}}
.told .before, .told .full, .told .nf4 {{display: inline-block; width: .8rem; height: .8rem}}
.told .before {{background: {GREY}; border-radius: 50%}}
.told .full {{background: {BLUE}}}
.told .nf4 {{border: 2px solid {ORANGE}; width: 1.1rem; height: 1.1rem}}
.told .track .nf4 {{transform: translate(-50%, -50%) rotate(45deg)}}
.told .key .nf4 {{width: .8rem; height: .8rem; transform: rotate(45deg)}}
.told .axis {{position: relative; height: 1.5rem; font-size: .75rem}}
.told .axis span {{position: absolute; top: .25rem; transform: translateX(-50%);
  white-space: nowrap}}
.told .track + .track, .told .axis + .axis {{margin-left: 1rem}}
.told .key {{grid-column: 1 / -1; display: flex; gap: 1.5rem; justify-content: center}}
.told .key span {{display: flex; gap: .5rem; align-items: center}}
</style>"""

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
        columns[words.plain(title)] = [f"{mark(status)}\u00a0{status}" for status in found]
    return columns


def picture(told: Sequence[Chapter], alt: str) -> str:
    """A row an edit: at the left the moves that are left in 4 bits, at the right the answers.

    Args:
        alt: what it shows, for whoever does not see it.
    """
    parts = ["<div class='head'>Moves left</div><div class='head'>Right answers</div>"]
    for c in told:
        x = 100 * c.share_left
        where = "inside" if c.share_left > 0.6 else ""  # on a phone, half a bar is too short
        parts.append(f'<span class="name">{escape(c.title)}</span>')
        parts.append(
            f'<div class="track" title="{c.left:,} of {c.moved:,} moves">'
            f'<i class="bar" style="width: {x:.2f}%"></i>'
            f'<b class="share {where}" style="left: {x:.2f}%">{percent(c.share_left)}</b></div>'
        )
        found = {name: getattr(c.rows, name) for name, _ in STAGES}
        low, high = (100 * end(i.value for i in found.values()) for end in (min, max))
        marks = "".join(_point(name, said, found[name]) for name, said in STAGES)
        parts.append(
            f'<div class="track"><i class="chance" style="left: {100 * CHANCE:g}%"></i>'
            f'<i class="line" style="left: {low:.2f}%; width: {high - low:.2f}%"></i>{marks}</div>'
        )
    ticks = "".join(f'<span style="left: {x}%">{percent(x / 100, 0)}</span>' for x in (0, 50, 100))
    parts.append(
        f'<i class="name"></i><div class="axis">{ticks}</div><div class="axis">{ticks}</div>'
    )
    key = "".join(f'<span><i class="{name}"></i>{said}</span>' for name, said in STAGES)
    parts.append(f'<div class="key">{key}</div>')
    return f'{_STYLE}<div class="told" role="img" aria-label="{escape(alt)}">{"".join(parts)}</div>'


def _point(name: str, said: str, found: Interval) -> str:
    return (
        f'<i class="{name}" style="left: {100 * found.value:.2f}%" '
        f'title="{said}: {between(found)}"></i>'
    )
