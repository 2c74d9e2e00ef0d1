"""A page's address is its view: whoever opens it sees the same; nonsense in it fails no page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made import ranked
from streamlit.testing.v1 import AppTest

from mansu.job.runs import EXAMPLES, Run

ROOT = Path(__file__).resolve().parents[2]
RUN = "mine"
VIEW = ("edges", "from", "to", "nodes", "sign", "trace", "stage", "change")  # of the graph
LINKED = {
    "circuit": {*VIEW, "pair", "side"},
    "learn": {"projector"},
    "ask": {"fact", "prompt"},
}
BEGINS: dict[str, list[dict[str, Any]]] = {  # links, each of whose controls is moved
    "ask": [{"ask": "forget", "flips_of": "graddiff"}, {"ask": "own", "prompt": "The sky is"}],
    "attribution": [{"view": "New run", "subject": "tiny"}],
    "circuit": [{"node": "m1"}, {"edges": "9", "from": "1", "trace": "paths", "edit": "mansu"}],
    "compare": [{}],
    "glossary": [{}],
    "home": [{}],
    "leaderboard": [{}],
    "learn": [{}],
    "nf4": [{}],
    "review": [{"edit": "graddiff"}],
    "unlearn": [{"method": "mansu", "edit": "a new edit"}],
}
TYPED = {"prompt": "The colour of boben is", "answer": " red", "word": "relearn", "model": "x/y"}
KINDS = ("selectbox", "multiselect", "button_group", "slider", "number_input", "text_input")
KINDS += ("text_area", "toggle")
HELD = {  # controls whose value is no part of the view
    "Or an edit that is here": "another dossier, brought for a moment",
    "Or paste its lines (JSONL)": "too long for an address",
    "Show the clean–corrupt pairs": "a closer look at the form's own task",
}
ODD: dict[str, list[dict[str, str]]] = {  # each value means nothing: a sentence has to say so
    "ask": [{"ask_a": "zz", "fact": "9999", "tokens": "99", "sets": "zz", "weight": "-1"}],
    "circuit": [
        {"edges": "-5", "from": "zz", "sign": "zz", "trace": "zz", "node": "zz", "edit": "zz"},
        {"to": "99", "nodes": "zz", "change": "zz", "edit": "mansu", "stage": "zz"},
    ],
    "compare": [{"edits": "zz", "a": "zz"}, {"boundary": "zz", "formats": "zz", "margin": "9"}],
    "glossary": [{"edgs": "9", "mansu zz": "1"}],
    "home": [{"example": "zz", "tour": "zz"}],
    "leaderboard": [{"board_task": "zz", "unit": "zz"}],
    "learn": [{"step": "zz", "projector": "zz", "my-line": "zz"}],
    "review": [{"kinds": "zz", "edit": "zz", "nats": "-1"}],
    "unlearn": [
        {"method": "zz", "edit": "zz"},
        {"edit": "a new edit", "mansu rate": "zz", "mansu bfloat16": "zz"},
    ],
}
BAD = (f"<b>{'x' * 3000}", "", "-1", "9" * 5000, "1e400", ["99999", "99999"])


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder of one finished run, whose edits are on the leaderboard, too."""
    folder = tmp_path_factory.mktemp("runs")
    run = Run.open(shutil.copytree(EXAMPLES / "tiny-colours", folder / RUN))
    ranked(folder, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANSU_RUNS", str(folder))
        yield


def opened(page: str, query: dict[str, Any]) -> AppTest:
    at = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60)
    at.query_params |= {"run": RUN, **query}
    (at if page == "home" else at.switch_page(f"../pages/{page}.py")).run()  # it opens at home
    assert not at.exception, (query, at.exception)
    return at


def about_links(at: AppTest) -> list[str]:
    return [w.value for w in at.warning if w.icon == ":material/link_off:"]


def controls(at: AppTest) -> list[Any]:
    found: list[Any] = [w for kind in KINDS for w in at.main.get(kind)]
    return [w for w in found if not w.form_id and w.label not in HELD]


def move(control: Any) -> None:
    """Choose something else, as a user would."""
    match control.type:
        case "slider":
            control.set_value(control.min if control.value != control.min else control.max)
        case "number_input":
            control.increment() if control.value is not None else control.set_value(1)
        case "text_input":
            control.set_value(TYPED.get(control.key, "x"))
        case "toggle":
            control.set_value(not control.value)
        case "multiselect":
            control.set_value(control.value[:1])
        case _ if isinstance(control.value, list):
            control.set_value(control.options[-1:])
        case _:
            now = control.indices[0] if control.type == "button_group" else control.index or 0
            control.set_value(control.options[-1 if now < len(control.options) - 1 else 0])


def address(at: AppTest) -> dict[str, Any]:
    """What the browser shows: with what it writes itself, of the controls bound to it."""
    found = dict(at.query_params)
    for control in controls(at):
        if name := getattr(control.proto, "query_param_key", ""):
            value = getattr(control, "formatted_values", control.value)
            found[name] = f"{value}".lower() if isinstance(value, bool) else value
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("page", BEGINS)
def test_an_address_has_the_whole_view(page: str) -> None:
    assert {path.stem for path in (ROOT / "pages").glob("*.py")} == set(BEGINS)
    for begin in BEGINS[page]:
        at = opened(page, begin)
        before = {c.key: c.value for c in controls(at)}
        for control in controls(at):
            move(control)
        at.run()
        assert not at.exception, at.exception
        there = {c.key: c.value for c in controls(at)}
        assert None not in there, [c.label for c in controls(at) if c.key is None]
        assert there != before
        again = opened(page, address(at))
        assert {c.key: c.value for c in controls(again)} == there
        assert not [w.value for w in again.warning if "link" in w.value]
        for name in VIEW:
            assert again.query_params.get(name) == at.query_params.get(name)


@pytest.mark.parametrize("page", BEGINS)
def test_nonsense_in_an_address_is_at_most_a_sentence(page: str) -> None:
    for begin in BEGINS[page]:
        keys = {c.key for c in controls(opened(page, begin))} | LINKED.get(page, set())
        names = {key.removesuffix(f" of {RUN}") for key in keys}
        queries = [{**begin, **dict.fromkeys(names - set(begin), bad)} for bad in BAD]
        for query in (*queries, dict.fromkeys({*names, *begin}, BAD[0])):
            at = opened(page, query)
            said = [x.value for x in (*at.warning, *at.error, *at.info)]
            assert all(len(text) < 500 and "<b>" not in text for text in said), said


@pytest.mark.parametrize("page", ODD)
def test_what_means_nothing_in_an_address_is_said(page: str) -> None:
    for query in ODD[page]:
        said = about_links(opened(page, query))
        odd = {name: value for name, value in query.items() if value not in ("mansu", "a new edit")}
        for name, value in odd.items():
            assert any(name in text or value in text for text in said), (name, said)
        assert len(said) == len(odd) - ("edgs" in odd), said  # two names in one sentence


@pytest.mark.parametrize(
    ("query", "unknown", "task"),
    [
        ({"subject": "nowhere", "task": "tiny-colours"}, "nowhere", "tiny-colours"),
        ({"subject": "tiny", "task": "capitals"}, "capitals", None),
    ],
)
def test_what_a_link_would_start_is_not_replaced(
    query: dict[str, str], unknown: str, task: str | None
) -> None:
    at = opened("attribution", {"view": "New run", **query})
    (said,) = about_links(at)
    assert f"“{unknown}”" in said
    assert at.main.selectbox(key="task").value == task
    (start,) = [b for b in at.main.button if b.label == "Run the whole job"]
    assert start.disabled and at.query_params["task"] == query["task"]
    at.main.selectbox(key="subject").set_value("tiny").run()
    if task is None:
        at.main.selectbox(key="task").set_value("tiny-colours").run()
    (start,) = [b for b in at.main.button if b.label == "Run the whole job"]
    assert not start.disabled and not about_links(at)
    assert at.main.selectbox(key="task").value == "tiny-colours"


def test_what_another_page_reads_is_said() -> None:
    for page, query in {"review": {"edges": "50"}, "home": {"mansu rate": "0.1"}}.items():
        (said,) = about_links(opened(page, query))
        assert all(f"“{name}”" in said for name in query) and "another page reads" in said
    assert not about_links(opened("circuit", {"edges": "5"}))
