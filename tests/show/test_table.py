"""A table says the same in a terminal, in Markdown and in HTML, and breaks none of them."""

from __future__ import annotations

import html
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mansu.show.table import Shown, Table

WORD = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]))


class Cells(HTMLParser):
    """The text of every th and td, by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.inside = tag in ("th", "td")
        if tag == "tr":
            self.rows.append([])
        if self.inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[WORD] * n), min_size=1)))
def test_html_holds_every_cell_whatever_it_is(lines: list[tuple[str, ...]]) -> None:
    table = Table(lines[0], lines[1:], caption="<b>&", notes=["<i>"])
    parser = Cells()
    parser.feed(table.html())
    assert parser.rows == [list(line) for line in lines]
    assert "<b>" not in table.html() and "<i>" not in table.html()


@given(st.lists(st.tuples(WORD, WORD), min_size=1))
def test_markdown_has_as_many_cells_whatever_they_hold(lines: list[tuple[str, ...]]) -> None:
    made = Table(lines[0], lines[1:]).markdown().split("\n")
    assert len(made) == len(lines) + 1
    for line in made:
        assert line.replace("\\|", "").count("|") == 3


def test_text_is_aligned() -> None:
    table = Table(("Set", "Accuracy"), [("forget", "9.4 %"), ("kept", "100.0 %")], "Caption")
    assert str(table).splitlines() == [
        "Caption",
        "Set     Accuracy",
        "------  --------",
        "forget     9.4 %",
        "kept     100.0 %",
    ]
    assert table.columns == {"Set": ["forget", "kept"], "Accuracy": ["9.4 %", "100.0 %"]}


def test_notes_stand_below() -> None:
    table = Table(("a",), [("1",)], notes=["It is small.", "It is short."])
    assert table.text().endswith("1\nIt is small.\nIt is short.")
    assert table.markdown().endswith("| 1 |\n\n- It is small.\n- It is short.")
    assert table.html().endswith("<p>It is small.</p>\n<p>It is short.</p>")


def test_a_ragged_table_is_refused() -> None:
    with pytest.raises(ValueError, match="not as long as the head"):
        Table(("a", "b"), [("1",)])
    with pytest.raises(ValueError, match="not as long as the head"):
        Table(("a", "b"), [("1", "2")], align="<")


def test_a_shown_value_is_its_table() -> None:
    class Value(Shown):
        def table(self) -> Table:
            return Table(("x",), [("1 < 2",)], "one value")

    assert str(Value()) == "one value\nx\n-----\n1 < 2"
    assert html.escape("1 < 2") in Value()._repr_html_()
    assert repr(Value()) == "Value(one value)"
