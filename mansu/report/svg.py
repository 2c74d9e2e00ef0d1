"""Charts as inline SVG, for a page that opens from disk without a script or a network.

Text takes the page's colour; what a colour says is said by a shape, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from mansu.circuits.diff import Change
from mansu.report.changes import TITLES, Changes, Edge
from mansu.show.numbers import written
from mansu.statistics import Interval

WIDTH, LEFT, ROW = 680, 190, 15
RIGHT = 24
"""Half of a "100%" stands right of its tick, also in the larger letters of a narrow page."""
CSS = """
figure { container-type: inline-size; }
/* A narrow page shows the whole picture small, with letters that can be read; those of the circuit
   have no room to grow, and stand in its table. */
@container (max-width: 560px) {
  svg { overflow: visible; } svg:not(:has(path)) text { font-size: 17px; } }
svg { width: 100%; height: auto; font-size: 12px; } svg text { fill: currentColor; }
.grid { stroke: #8886; } .chance { stroke: currentColor; stroke-dasharray: 2 3; stroke-width: 1.5; }
rect.before { fill: #1f6fb2; } rect.after { fill: none; stroke: #c25400; stroke-width: 1.5; }
"""
"""What a page that shows them has in its style."""
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
        return LEFT + share * (WIDTH - LEFT - RIGHT)

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
        return left + (value - low) / (high - low) * (WIDTH - left - RIGHT)

    def y(count: float) -> float:
        return 8 + (1 - count / top) * (height - 58)

    parts = [_line(left, y(0), WIDTH - RIGHT, y(0), "grid")]
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
        parts.append(_text(x(tick), height - 34, f"{10.0**tick:g}", "middle"))
    parts.append(_line(x(boundary), 4, x(boundary), y(0), "chance"))
    parts.append(_text((left + WIDTH) / 2, height - 12, "|update| ÷ bin width", "middle"))
    says = "filled: before NF4, outlined: after; the dotted line is a whole bin"
    return _svg(height, parts, f"Moved weights by update over bin width; {says}")


STROKES: Mapping[Change, tuple[str, str]] = {
    "kept": ("#2b83ba", ""),
    "gone": ("#8c8c8c", "1.5 3"),
    "new": ("#00795a", "9 3"),
    "back": ("#c25400", "5 2"),
}
"""Colour and dashes of a line; of several edges that are one line, the last of these is drawn."""
LAYER, TALLEST = 44.0, 780.0
"""Between two layers, and the whole picture: it stands on one A4 page."""


def circuit(found: Changes) -> str:
    """The edges of a circuit diff between their nodes: layers go up, heads right, the MLP last.

    A line is all edges between two nodes, in the colour and dashes of what became of them, and as
    thick as the strongest, of those that are left: as it is in NF4.
    """
    layers, heads = found.layers, found.heads
    row = min(LAYER, TALLEST / (layers + 3))
    left, column = 56.0, (WIDTH - 56 - 40) / (heads + 0.4)
    logits, middle = 1 + layers * (heads + 1), left + (heads - 1) / 2 * column
    top = 24 - row * 0.4  # of the picture, so that the logits' label stands above their node
    low = row * (layers + 1.7) + top  # of the nodes: nothing is drawn below the embedding
    height = low + 80

    def place(node: int) -> tuple[float, float]:
        if node == 0:
            return middle, low
        if node == logits:
            return middle, row * 0.4 + top
        layer, head = divmod(node - 1, heads + 1)
        y = row * (layers - layer + 0.5) + top
        if head == heads:
            return left + (heads + 0.1) * column, y - 0.3 * row
        return left + head * column, y

    order: list[Change] = list(STROKES)
    lines: dict[tuple[int, int], list[Edge]] = {}
    for edge in found.edges:
        for target in edge.nodes[1:]:
            lines.setdefault((edge.nodes[0], target), []).append(edge)
    most = max((edge.drawn for edge in found.edges), default=1.0)
    drawn: list[tuple[int, str]] = []
    for (source, target), edges in lines.items():
        change = order[max(order.index(edge.change) for edge in edges)]
        colour, dashes = STROKES[change]
        (ax, ay), (bx, by) = place(source), place(target)
        aside = min(0.14 * abs(by - ay), 1.6 * column) if abs(bx - ax) < column / 2 else 0
        share = (max(edge.drawn for edge in edges) / most) ** 0.5
        told = "; ".join(
            f"{edge.source} → {edge.destination}: {edge.fate}, "
            + " → ".join(written(score, "+.3f") for score in edge.scores)
            for edge in edges
        )
        drawn.append(
            (
                order.index(change),
                f'<path d="M{ax:.1f} {ay:.1f}Q{(ax + bx) / 2 + aside:.1f} {(ay + by) / 2:.1f} '
                f'{bx:.1f} {by:.1f}" fill="none" stroke="{colour}" stroke-width="'
                f'{0.7 + 2.3 * share:.1f}"'
                + (f' stroke-dasharray="{dashes}"' if dashes else "")
                + f"><title>{escape(told)}</title></path>",
            )
        )
    parts = [part for _, part in sorted(drawn, key=lambda pair: pair[0])]
    for node in sorted({node for pair in lines for node in pair}):
        x, y = place(node)
        name = "embedding" if node == 0 else "logits" if node == logits else ""
        if name:
            parts.append(
                f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" '
                f'transform="rotate(45 {x:.1f} {y:.1f})" fill="#6b6b6b"/>'
            )
            parts.append(_text(x, y + (20 if node == 0 else -10), name, "middle"))
        elif (node - 1) % (heads + 1) == heads:
            parts.append(
                f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="#6b6b6b"/>'
            )
        else:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#6b6b6b"/>')
    for layer in range(0, layers, 1 + layers // 16):
        parts.append(_text(26, place(1 + layer * (heads + 1))[1] + 4, str(layer), "end"))
    parts.append(_text(4, row * 0.4 + top + 4, "layer", "start"))
    for head in range(0, heads, 1 + heads // 16):
        parts.append(_text(left + head * column, low + 38, f"h{head}", "middle"))
    parts.append(_text(left + (heads + 0.1) * column, low + 38, "MLP", "middle"))
    for i, change in enumerate(("kept", "gone", "back", "new")):
        colour, dashes = STROKES[change]
        x = 20 + i * 165
        parts.append(
            f'<path d="M{x} {height - 14:.1f}h34" stroke="{colour}" stroke-width="2.5"'
            + (f' stroke-dasharray="{dashes}"' if dashes else "")
            + "/>"
        )
        text = f"{TITLES[change]} ({found.counts[change]:,})"
        parts.append(_text(x + 40, height - 10, text, "start"))
    says = "the thicker, the larger |score| (in NF4, where the edge is left there)"
    title = "The circuit's edges and what became of them, by layer and head"
    return _svg(height, parts, f"{title}; {says}")


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
