"""The first page, on the example that ships: what it says is what was measured."""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app import glossary, home_view, words
from mansu.evidence.verdict import ABOUT
from mansu.job import library, runs
from mansu.job.examples import copied
from mansu.job.runs import Run
from mansu.measure.answers import ASKED
from mansu.report import repeat, story
from mansu.report.dossier import dossier
from mansu.report.page import page
from mansu.show.numbers import percent

PAGES = Path(__file__).resolve().parents[2] / "pages"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MANSU_RUNS", str(tmp_path))
    return tmp_path


@pytest.fixture
def example() -> Run:
    return runs.examples()[0]


def entry() -> AppTest:
    app = AppTest.from_file(str(PAGES.parent / "app" / "main.py"), default_timeout=60).run()
    assert not app.exception, app.exception
    return app


LOOK = "Look at the example above"


def opens(app: AppTest, label: str) -> str:
    """The run that a link of the page opens."""
    (link,) = [link.proto for link in app.get("page_link") if link.proto.label == label]
    return link.query_string.removeprefix("run=")


def own_runs(example: Run) -> tuple[Run, Run]:
    """Two runs of one's own, none with an example's name, the newer one first."""
    made = copied(example)
    for n, name in enumerate(("older", "newer")):
        path = shutil.copytree(made.path, made.path.with_name(name))
        manifest = {**made.manifest, "created": f"2099-01-0{n + 1}T00:00:00+00:00"}
        (path / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(made.path)
    newer, older = runs.listed()
    return newer, older


def test_it_opens_on_the_example_and_says_its_numbers(home: Path, example: Run) -> None:
    app = entry()
    assert not app.error and not app.info
    assert app.markdown[0].value.startswith("**")  # nothing of the script's own is shown
    said = " ".join(m.value for m in app.markdown)
    for method in example.judged():
        survival = example.survival(method).quantized
        assert f"{survival.moved:,} weights" in said
        for nf4 in (False, True):
            accuracy = example.measurement(method, nf4=nf4).splits["forget"].accuracy
            assert percent(accuracy) in said
        verdict, column = example.verdict(method), app.table[0].value[words.title(method)]
        statuses = [getattr(verdict, name).status for name in ABOUT] + [verdict.status]
        assert [cell.split()[-1] for cell in column] == statuses
    (picture,) = [h.proto.body for h in app.get("html") if 'class="told"' in h.proto.body]
    drawn = re.findall(r'<span class="name">([^<]+)', picture)
    assert drawn == list(app.table[0].value)[1:]  # one order on the page
    assert list(home.iterdir()) == []  # looking made nothing


def test_it_says_that_another_machine_may_find_other_numbers(home: Path, example: Run) -> None:
    (said,) = [c.value for c in entry().caption if c.value == repeat.ROUNDING]
    assert "by many points, and a verdict with it" in said
    assert repeat.ROUNDING in html.unescape(page(dossier(example, "mansu")))


def test_the_picture_is_of_the_run(example: Run) -> None:
    told = story.chapters(example)
    drawn = home_view.picture(told, "what is seen")
    widths = re.findall(r'class="bar" style="width: ([\d.]+)%', drawn)
    shares = [example.survival(c.method).quantized.share or 0.0 for c in told]
    half = home_view.picture([replace(c, moved=100, left=51) for c in told], "half")
    assert "share inside" not in half  # on a phone half a bar is too short for its number
    assert [float(w) for w in widths] == pytest.approx([100 * s for s in shares], abs=0.01)
    for name, nf4 in (("full", False), ("nf4", True)):
        places = re.findall(rf'class="{name}" style="left: ([\d.]+)%', drawn)
        found = [example.measurement(c.method, nf4=nf4).splits["forget"].accuracy for c in told]
        assert [float(p) for p in places] == pytest.approx([100 * f for f in found], abs=0.01)


def test_the_moral_follows_the_numbers(example: Run) -> None:
    told = story.chapters(example)
    same = [replace(c.rows, nf4=c.rows.full) for c in told]
    lossy = [
        replace(c, left=c.moved // 4, rows=rows, rephrasings=rows)
        for c, rows in zip(told, same, strict=True)
    ]
    assert "hardly more answers are right" in story.moral(lossy)
    assert "hardly more answers are right" in story.moral([replace(lossy[0], rephrasings=None)])
    known = replace(same[0], nf4=same[0].before)
    assert story.moral([replace(lossy[0], rows=known)]).endswith("answers return.")
    moral = story.moral([replace(lossy[0], rephrasings=known)])
    assert moral.endswith("answers return, to rephrased questions.")
    whole = [replace(c, left=c.moved) for c in told]
    assert "No edit lost" in story.moral(whole)


@pytest.mark.parametrize("example", runs.examples(), ids=lambda run: run.name)
def test_the_story_tells_what_the_verdict_is_of(example: Run) -> None:
    told = {c.method: c for c in story.chapters(example)}
    lost = [m for m, c in told.items() if c.share_left < story.MOST]
    moral = story.moral(list(told.values()))
    risen = {}
    for method, chapter in told.items():
        for nf4 in (False, True):
            for scores in map(example.measurement(method, nf4=nf4).splits.get, ASKED):
                assert scores is not None and percent(scores.accuracy) in chapter.answers
        gaps = [c.value for c in example.verdict(method).gap.checks if c.unit == "share"]
        risen[method] = max(gap.value for gap in gaps) > story.BARELY
    assert lost and ("answers return" in moral) == any(risen[method] for method in lost)


def test_the_example_is_copied_to_be_worked_on(home: Path, example: Run) -> None:
    app = entry()
    (button,) = [b for b in app.button if b.label.startswith("Copy")]
    button.click().run()
    assert not app.exception and not app.error
    (mine,) = runs.listed()
    assert mine.path == home / example.name and mine.judged() == example.judged()
    assert not [b for b in app.button if b.label.startswith("Copy")]  # there is one copy
    assert example.name in app.success[0].value


def test_the_doors_lead_to_what_is_shown_also_beside_a_newer_run(home: Path, example: Run) -> None:
    copied(example)
    newer = copied(next(each for each in runs.examples() if each.name != example.name))
    manifest = {**newer.manifest, "created": "2099-01-01T00:00:00+00:00"}
    (newer.path / "manifest.json").write_text(json.dumps(manifest))
    assert [run.name for run in runs.listed()] == [newer.name, example.name]
    links = [link.proto for link in entry().get("page_link")]
    (review,) = [link for link in links if link.label == "Review this run"]
    assert review.query_string == f"run={example.name}"


def test_doors_that_open_another_run_than_the_one_shown_say_so(home: Path, example: Run) -> None:
    other = copied(next(each for each in runs.examples() if each.name != example.name))
    app = entry()
    (said,) = [i.value for i in app.info]
    assert library.title(other) in said and "not the example above" in said
    assert said.startswith("These open your newest run") and "copy" not in said
    assert opens(app, LOOK) == example.name
    seen = AppTest.from_file(str(PAGES / "circuit.py"), default_timeout=60)
    seen.query_params["run"] = example.name  # as the link has it
    assert seen.run().sidebar.selectbox[0].value == example.name and not seen.warning
    copied(example)
    app = entry()
    assert not app.info and LOOK not in {link.proto.label for link in app.get("page_link")}


def test_the_doors_open_the_run_that_was_chosen(home: Path, example: Run) -> None:
    newest, older = own_runs(example)
    app = entry()
    app.session_state["kept run"] = older.name  # as the sidebar of every page about a run keeps it
    app.run()
    assert opens(app, "Review this run") == opens(app, "Open the circuit") == older.name
    (said,) = [i.value for i in app.info]
    assert said.startswith("These open the run you chose") and older.name in said
    app.session_state["next run"] = newest.name  # "Show" in the bar of jobs
    assert opens(app.run(), "Review this run") == newest.name
    del app.session_state["next run"]
    library.trash(older)
    app.run()
    assert opens(app, "Review this run") == newest.name
    assert app.info[0].value.startswith("These open your newest run")


def test_the_sidebar_and_the_doors_agree(home: Path, example: Run) -> None:
    """The chosen run, as the pages themselves keep it."""
    _, older = own_runs(example)
    app = entry()
    app.switch_page(str(PAGES / "review.py"))
    app.query_params["run"] = older.name
    assert app.run().sidebar.selectbox[0].value == older.name
    del app.query_params["run"]  # as a link of the navigation does
    assert opens(app.switch_page(str(PAGES / "home.py")).run(), "Review this run") == older.name


def test_an_example_seen_on_home_is_the_run_that_is_worked_on(home: Path, example: Run) -> None:
    """As long as there is no other: what is shown last is meant."""
    other = next(each for each in runs.examples() if each.name != example.name)
    app = entry()
    app.session_state["kept run"] = other.name
    app.run()
    assert opens(app, "Review this run") == other.name and opens(app, LOOK) == example.name
    app.selectbox(key="example").set_value(other.name).run()
    app.selectbox(key="example").set_value(example.name).run()
    assert opens(app, "Review this run") == example.name and not app.info


def test_every_linked_term_is_explained_and_none_twice() -> None:
    anchors = [glossary.anchor(term) for term in glossary.TERMS]
    assert len(anchors) == len(set(anchors))
    text = " ".join(p.read_text() for p in PAGES.glob("*.py"))
    linked = re.findall(r"glossary\.link\(['\"]([^'\"]+)|\blink\(['\"]([^'\"]+)", text)
    assert linked
    assert {a or b for a, b in linked} <= set(glossary.TERMS)
    assert set(glossary.found("absmax")) >= {"Absmax"} and not glossary.found("zzz")


def test_the_glossary_shows_what_is_looked_for() -> None:
    app = AppTest.from_file(str(PAGES / "glossary.py"), default_timeout=60).run()

    def shown() -> list[str]:
        return re.findall(r"^## (.*)$", app.markdown[-1].value, re.MULTILINE)

    assert shown() == list(glossary.TERMS)
    app.text_input(key="word").set_value("relearn").run()
    assert not app.exception and "Relearning" in shown()
    app.text_input(key="word").set_value("zzz").run()
    assert not shown() and "shorter" in app.info[0].value
