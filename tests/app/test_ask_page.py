"""The Ask page, on the example that ships."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from streamlit.testing.v1 import AppTest

from app import ask_view, asking
from app.node_view import OWN
from mansu.job import runs
from mansu.job.runs import Run
from mansu.job.session import Session
from mansu.measure.answers import FLIPS
from mansu.quant import follow, moves
from mansu.sets.ask import ask
from mansu.show.numbers import number
from mansu.subjects.subject import Subject

MAIN = Path(__file__).resolve().parents[2] / "app" / "main.py"
PAGE = MAIN.parents[1] / "pages" / "ask.py"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    only = tmp_path / "examples"
    shutil.copytree(runs.EXAMPLES / "tiny-colours", only / "tiny-colours")
    monkeypatch.setattr(runs, "EXAMPLES", only)
    return runs.examples()[0]


def opened(**query: str) -> AppTest:
    app = AppTest.from_file(str(MAIN), default_timeout=90)
    app.run()
    app.switch_page(str(PAGE))
    app.query_params |= query
    app.run()
    assert not app.exception, app.exception
    return app


def about_links(app: AppTest) -> list[str]:
    return [w.value for w in app.warning if w.icon == ":material/link_off:"]


def html(app: AppTest) -> str:
    return " ".join(str(e.proto.body) for e in app.get("html"))


def test_a_fact_is_asked_of_every_model(example: Run, tiny: Subject) -> None:
    fact = example.task().split("forget")[4]
    app = opened(ask="forget", fact=str(fact.row))
    assert not app.error and not app.info
    wanted = tiny.continuation(fact.prompt, fact.answer)[1]
    edits = {m: example.edit(m) for m in example.edits()}
    found = ask(tiny, fact.prompt, edits, tokens=6, wanted=wanted)
    titles = {"mansu": "MANSU", "graddiff": "GradDiff"}
    assert ask_view.cards(tiny, found, titles, own=True) in html(app)
    assert html(app).count("<article>") == 6
    assert len(app.get("plotly_chart")) == 2  # the lens, the codes


def test_the_circuit_opens_on_any_fact(example: Run, tiny: Subject) -> None:
    """One of the run's pairs by its row, any other as own words: most flips are none of them."""
    rows = Session(example, tiny).pairs.rows
    facts = example.task().split("forget")
    for fact in (
        next(f for f in facts if f.row in rows),
        next(f for f in facts if f.row not in rows),
    ):
        app = opened(ask="forget", fact=str(fact.row))
        (link,) = [each.proto for each in app.get("page_link")]
        asked = dict(parse_qsl(link.query_string))
        own = {"pair": OWN, "prompt": fact.prompt, "answer": fact.answer}
        pair = {"pair": str(fact.row)} if fact.row in rows else own
        assert asked == {"run": example.name, "node": "logits", **pair}


def test_what_cannot_be_asked_is_a_sentence_and_the_facts_stay(example: Run) -> None:
    app = opened(ask="own", prompt="The colour of zzzyx is")
    assert "zzzyx" in app.error[0].value
    assert app.dataframe
    app = opened(ask="own")
    assert "Type the beginning" in app.info[0].value
    app = opened(ask="own", prompt="The colour of boben is", answer="blue red green")
    assert "not one token" in app.error[0].value


def test_a_prompt_in_a_link_is_asked_or_said_to_be_left_out(example: Run) -> None:
    app = opened(prompt="The colour of zzzyx is")  # without a word whose prompt it is
    assert app.session_state["ask"] == "own" and "zzzyx" in app.error[0].value
    app = opened(ask="forget", prompt="The colour of zzzyx is")
    (said,) = about_links(app)
    assert "zzzyx" in said and "left out" in said and "prompt" not in app.query_params
    app = opened(ask="own", prompt="The colour of boben is")
    app.button_group(key="ask").set_value("forget").run()  # one's own is left, and not a link's
    assert not about_links(app)


def test_facts_are_filtered_by_flip_and_set(example: Run) -> None:
    app = opened()
    found = asking.facts(example, ["mansu"])["mansu"]
    assert len(app.dataframe[-1].value) == len(found)
    assert {one.flip for one in found} <= set(FLIPS)
    for flip in ("forgotten", "kept"):
        app.selectbox(key="flip").set_value(flip).run()
        assert not app.exception
        shown = app.dataframe[-1].value
        assert set(shown["MANSU: outcome"]) == {flip}
        assert len(shown) == sum(one.flip == flip for one in found)
    places = asking.Filter("", ["Forget: colours"]).places(found)
    assert [found[i].fact.split for i in places] == ["forget"] * len(places) and places


def test_the_weight_followed_is_the_one_that_is_named(example: Run, tiny: Subject) -> None:
    app = opened()
    edit, name = example.edit("mansu"), str(app.selectbox(key="matrix").value)
    moved = moves(tiny, edit, name, example.mask().dense(name))
    app.slider(key="weight").set_value(len(moved)).run()
    assert not app.exception
    row, column = int(moved.rows[-1]), int(moved.columns[-1])
    found = follow(tiny, edit, name, row, column)
    said = next(m.value for m in app.markdown if m.value.startswith("Row "))
    assert f"Row {row:,}, column {column:,}" in said and number(found.ratio) in said
    cells = app.table[-1].value.set_index("Quantity")["MANSU"]
    assert str(cells["Code"]) == str(found.after.code)


def test_words_are_escaped_and_colours_have_numbers() -> None:
    assert "<b>" not in ask_view._token("<b>", 1.0) and "&lt;b&gt;" in ask_view._token("<b>", 1.0)
    for nats, said in ((2.04, "+2.0"), (-1.26, "−1.3"), (0.01, ">0<")):
        assert said in ask_view._token("x", nats)


def test_a_matrix_with_fewer_moves_shows_the_longest_of_them(example: Run, tiny: Subject) -> None:
    edit, mask = example.edit("mansu"), example.mask()
    most = {n: len(moves(tiny, edit, n, mask.dense(n))) for n in mask.names if n in edit.changes}
    fewest, many = (pick(most, key=lambda name: most[name]) for pick in (min, max))
    assert 2 <= most[fewest] < most[many]
    app = opened(moved_by="mansu", matrix=many)
    app.slider(key="weight").set_value(most[many]).run()
    app.selectbox(key="matrix").select(fewest).run()
    assert not app.exception, app.exception
    assert app.slider(key="weight").value == most[fewest]
