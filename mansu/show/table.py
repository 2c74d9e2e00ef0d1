"""A table of text, as a terminal, a Markdown file and a notebook show it.

It knows nothing of MANSU, so that every value may show itself through it::

    class Circuit(Shown):
        def table(self) -> Table: ...

    print(circuit)     # the table as text
    circuit            # in a notebook: as HTML
"""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of text under a head.

    Attributes:
        head: a name a column. rows: as many cells each.
        caption: what it is a table of, a line.
        align: a letter a column, ``<`` or ``>``; "" for the first to the left, the others right.
        notes: sentences that belong to it, below it.

    Raises:
        ValueError: a row, or ``align``, is not as long as the head.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    align: str = ""
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.align:
            object.__setattr__(self, "align", "<" + ">" * (len(self.head) - 1))
        if any(len(cells) != len(self.head) for cells in (self.align, *self.rows)):
            raise ValueError(f"A row is not as long as the head {tuple(self.head)}.")

    @property
    def columns(self) -> dict[str, list[str]]:
        """The cells by name of their column."""
        return {name: [row[i] for row in self.rows] for i, name in enumerate(self.head)}

    def text(self) -> str:
        """For a terminal: columns of equal width, a line of dashes under the head."""
        lines = [self.head, *self.rows]
        wide = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        places = [f"{side}{width}" for side, width in zip(self.align, wide, strict=True)]
        shown = [
            "  ".join(f"{cell:{place}}" for cell, place in zip(line, places, strict=True)).rstrip()
            for line in lines
        ]
        shown.insert(1, "  ".join("-" * width for width in wide))
        return "\n".join([*([self.caption] if self.caption else []), *shown, *self.notes])

    def markdown(self) -> str:
        """GitHub's Markdown; the caption is left to the text around it, the notes are a list.

        Cells may hold Markdown of their own: only what would break the table is escaped.
        """
        rule = ["---:" if side == ">" else "---" for side in self.align]
        lines = [
            f"| {' | '.join(c.replace('|', chr(92) + '|').replace(chr(10), ' ') for c in line)} |"
            for line in (self.head, rule, *self.rows)
        ]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([*lines, *([""] if notes else []), *notes])

    def html(self) -> str:
        """A table element, everything escaped; its styles are its own, not the page's."""
        style = [f'style="text-align:{"right" if a == ">" else "left"}"' for a in self.align]

        def head(cell: str, i: int, scope: str) -> str:
            return f'<th scope="{scope}" {style[i]}>{html.escape(cell)}</th>'

        def row(cells: Sequence[str]) -> str:
            data = [f"<td {style[i]}>{html.escape(c)}</td>" for i, c in enumerate(cells) if i]
            return "".join([head(cells[0], 0, "row"), *data])

        caption = f'<caption style="text-align:left">{html.escape(self.caption)}</caption>'
        heads = "".join(head(c, i, "col") for i, c in enumerate(self.head))
        return "\n".join(
            [
                "<table>" + (caption if self.caption else ""),
                # On paper a head is repeated on each page.
                f"<thead><tr>{heads}</tr></thead>",
                "<tbody>",
                *(f"<tr>{row(cells)}</tr>" for cells in self.rows),
                "</tbody>",
                "</table>",
                *(f"<p>{html.escape(note)}</p>" for note in self.notes),
            ]
        )

    __str__ = text
    _repr_html_ = html

    def __repr__(self) -> str:
        return f"Table({self.caption!r}: {len(self.rows)} rows of {', '.join(self.head)})"


class Shown(ABC):
    """A value that can be shown: ``print`` gives its table, a notebook the same as HTML.

    A dataclass takes ``repr=False``, else its ``repr`` writes out every tensor that it holds.
    """

    @abstractmethod
    def table(self) -> Table:
        """What the value says, short; the caption says it in a line."""

    def __str__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        return self.table().html()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.table().caption})"
