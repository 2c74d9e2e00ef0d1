"""Charts as inline SVG, for a page that opens from disk without a script or a network.

Text takes the page's colour; what a colour says is said by a shape, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from mansu.measure.statistics import Interval

WIDTH, LEFT, ROW = 680, 190, 15
COLOURS = ("#6b6b6b", "#6b6b6b", "#1f6fb2", "#1f6fb2")
"""Of the unedited model in full precision and NF4, and of the edit in both."""


def intervals(
    rows: Mapping[str, Sequence[Interval | None]], names: Sequence[str], *, chance: float
) -> str:
    """Shares with their intervals, a band a row and a line in it a model; open marks are NF4.

    Args:
        rows: title → a value a model, None where it was not measured. names: of the models, at
            most four.
        chance: where the dotted line is.
    """
    band = ROW * len(names) + 10
    height = len(rows) * band + 40

    def x(share: float) -> float:
        return LEFT + share * (WIDTH - LEFT - 12)

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        at = x(tick)
        parts.append(_line(at, 0, at, height - 34, "grid"))
        parts.append(_text(at, height - 20, f"{tick:.0%}", "middle"))
    parts.append(_line(x(chance), 0, x(chance), height - 34, "chance"))
    parts.append(_text(x(0.5), height - 4, "accuracy, 4-way choice (dotted: chance)", "middle"))
    for i, (title, values) in enumerate(rows.items()):
        top = i * band + 8
        parts.append(_text(LEFT - 10, top + band / 2, title, "end"))
        for j, value in enumerate(values):
            if value is None:
                continue
            y, colour = top + ROW * (j + 0.5), COLOURS[j % len(COLOURS)]
            fill = "none" if j % 2 else colour
            parts.append(
                f'<g stroke="{colour}" stroke-width="1.6">'
                f"<title>{escape(names[j])}, {escape(title)}: {value.value:.1%} "
                f"[{value.low:.1%}, {value.high:.1%}]</title>"
                f'<line x1="{x(value.low):.1f}" x2="{x(value.high):.1f}" y1="{y}" y2="{y}"/>'
                + (
                    f'<circle cx="{x(value.value):.1f}" cy="{y}" r="4" fill="{fill}"/>'
                    if j >= 2
                    else f'<rect x="{x(value.value) - 3.5:.1f}" y="{y - 3.5}" width="7" '
                    f'height="7" fill="{fill}"/>'
                )
                + "</g>"
            )
    says = "squares: unedited, circles: the edit; filled: full precision, open: NF4"
    return _svg(height, parts, f"Accuracy by set with 95 % intervals; {says}")


def histogram(
    before: Sequence[int], after: Sequence[int], edges: Sequence[float], boundary: float = 0.0
) -> str:
    """Counts by log10(update ÷ bin width) before NF4 (filled) and after it (outlined)."""
    some = [i for i, pair in enumerate(zip(before, after, strict=True)) if any(pair)]
    if not some:
        return "<p>No weight that NF4 quantises was moved.</p>"
    low, high = min(edges[some[0]], boundary - 1), max(edges[some[-1] + 1], boundary + 1)
    top, height, left = max(*before, *after), 220, 60

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - 12)

    def y(count: float) -> float:
        return 8 + (1 - count / top) * (height - 58)

    parts = [_line(left, y(0), WIDTH - 12, y(0), "grid")]
    parts.append(_text(left - 6, y(top) + 4, f"{top:,}", "end"))
    parts.append(_text(left - 6, y(0) + 4, "0", "end"))
    for counts, style in ((before, "before"), (after, "after")):
        for i in some:
            if counts[i]:
                wide = x(edges[i + 1]) - x(edges[i])
                parts.append(
                    f'<rect class="{style}" x="{x(edges[i]):.1f}" y="{y(counts[i]):.1f}" '
                    f'width="{wide:.1f}" height="{y(0) - y(counts[i]):.1f}"/>'
                )
    for tick in range(int(low), int(high) + 1):
        parts.append(_text(x(tick), height - 34, f"10^{tick}" if tick else "1", "middle"))
    parts.append(_line(x(boundary), 4, x(boundary), y(0), "chance"))
    parts.append(_text((left + WIDTH) / 2, height - 12, "|update| ÷ bin width", "middle"))
    says = "filled: before NF4, outlined: after; the dotted line is a whole bin"
    return _svg(height, parts, f"Moved weights by update over bin width; {says}")


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f"<figcaption>{escape(title)}.</figcaption></figure>"
    )
