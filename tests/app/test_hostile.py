"""Whatever people write, in every field and file, is shown as it is: nothing of it runs in a real
Chromium, nothing is fetched from outside, and no page breaks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from chromium import PATIENCE, settled
from playwright.sync_api import Browser, Dialog, Page, expect

from app.links import NEW, OTHER_MODEL, OWN_TASK
from experiments.benchmarks.pages import served
from mansu import cli, tasks
from mansu.circuits.marks import Marks
from mansu.evidence.review import Review
from mansu.job import runs
from mansu.job.library import Label, describe, label
from mansu.job.runs import Run
from mansu.launch import PASSWORD
from mansu.report.dossier import dossier

EVIL = (
    '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>',
    "![p](http://evil.test/p.png) [l](javascript:window.hurt=1)",
    "a ` ![p](http://evil.test/p.png)",  # a backtick alone opens no code
    "`` ![p](http://evil.test/p.png) `",
    "</textarea></script><svg onload=window.hurt=1>",
    "\u202eleft 😀 {{7*7}} ${7*7} :red[x] $x^2$ =1+1",
)
LINES = "`\n\n![p](http://evil.test/p.png)\n\n`\n\n<iframe src=http://evil.test>"
"""What has a line of its own is code no more."""
PAGES = ("", "attribution", "circuit", "unlearn", "nf4", "compare", "review", "ask", "leaderboard")
LIVE = """() => [window.hurt ?? 0, ...document.querySelectorAll(
    'img[src*=evil], iframe[src*=evil], a[href^=javascript]')].length - 1 + (window.hurt ?? 0)"""
SOON = 150
"""ms until the page knows that its script runs again, or what is on it has run."""
UNFOLD = "document.querySelectorAll('details:not([open]) > summary').forEach(e => e.click())"

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in which everything that a person wrote is hostile."""
    home = tmp_path_factory.mktemp("hostile")
    rows = [json.loads(line) for line in tasks.load("tiny-colours").to_jsonl().splitlines()]
    for i, row in enumerate(row for row in rows if "group" in row):
        row["group"] = EVIL[i % len(EVIL)]
    file = home / "=1+1 <img src=x onerror=hurt=1> `.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    about = {"title": EVIL[0], "description": LINES, "provenance": EVIL[2], "margin": 0.5}
    file.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
    path = home / "runs" / "run"
    given = ["--subject", "tiny", "--task", str(file), "--pairs", "8", "--folder", str(path)]
    assert cli.main(["run", *given, "--method", "ga", "--set", "steps=1"]) == 0
    made = Run.open(path)
    describe(made, Label(EVIL[2], "\n".join((LINES, *EVIL))))
    one, other = "embed", "m0"
    groups = {EVIL[1][:60]: (other,)}
    made.save({"marks": Marks((one,), groups, {one: EVIL[0][:60]}, {one: LINES})})
    names = [each.name for each in made.verdict("ga").properties]
    notes = {name: "\n".join((LINES, *EVIL)) for name in names}
    evil = " ".join(EVIL[:4])[:200]
    signed = Review("accepted", evil, "2026-01-01", made.verdict("ga").status, notes)
    made.save({"review": signed}, "ga")
    return made


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that reaches this machine alone, and knows what it asked of others."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    asked: list[str] = []

    def seen(url: str) -> None:
        if urlsplit(url).hostname not in ("127.0.0.1", None):  # ``data:`` and ``blob:`` have none
            asked.append(url)

    def said(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    page.on("request", lambda request: seen(request.url))
    page.on("dialog", said)
    yield page
    page.close()
    assert asked == []


def opened(page: Page) -> None:
    """Open all that is folded, and look at what is there."""
    page.get_by_role("heading").first.wait_for()
    page.wait_for_timeout(SOON)
    settled(page)
    page.evaluate(UNFOLD)
    page.wait_for_timeout(SOON)
    settled(page)
    page.wait_for_timeout(SOON)
    assert page.evaluate(LIVE) == 0, page.url


def test_no_page_runs_or_fetches_what_a_run_holds(run: Run, address: str, page: Page) -> None:
    shutil.copytree(run.path, runs.folder() / run.name)
    for name in PAGES:
        page.goto(f"{address}/{name}?{urlencode({'run': run.name, 'method': 'ga'})}")
        opened(page)
        if name:
            frames = [frame for frame in page.frames if frame != page.main_frame]
            assert all(frame.evaluate(LIVE) == 0 for frame in frames), name
    for text in (" ".join(EVIL), LINES):  # what is typed, and what a link says
        for name in ("ask", "glossary", "attribution"):
            keys = ("run", "method", "prompt", "answer", "word", "subject", "task", "view")
            page.goto(f"{address}/{name}?{urlencode(dict.fromkeys(keys, text))}")
            opened(page)
        field = page.get_by_role("textbox").first
        page.goto(f"{address}/glossary")
        field.fill(text)
        field.press("Enter")
        opened(page)
    form = {"view": NEW, "subject": "tiny", "task": OWN_TASK}
    page.goto(f"{address}/attribution?{urlencode(form)}")
    opened(page)
    for field in reversed(page.get_by_role("textbox").all()):  # with lines no rows are asked for
        field.fill("\n".join((LINES, *EVIL)))
        field.press("Control+Enter")
        settled(page)
    expect(page.get_by_text("to mend in the task")).to_be_visible()
    opened(page)
    page.goto(f"{address}/attribution?{urlencode(form)}")
    (file,) = run.path.parents[1].glob("*.jsonl")
    page.locator("input[type=file]").first.set_input_files(
        {"name": f"../../{file.name}", "mimeType": "x", "buffer": file.read_bytes()}
    )
    expect(page.get_by_text("320 lines").or_(page.get_by_text("forget")).first).to_be_visible()
    opened(page)
    home = runs.folder()  # the server's, and what is two steps above it
    assert not [file for place in (home, *home.parents[:2]) for file in place.glob("*.jsonl")]


def test_a_dossier_runs_and_fetches_nothing_of_what_it_holds(
    run: Run, page: Page, tmp_path: Path
) -> None:
    dossier(run, "ga").save(tmp_path / "d.html")
    page.goto((tmp_path / "d.html").as_uri())
    opened_all = page.locator("details:not([open]) > summary")
    for box in opened_all.all():
        box.click()
    page.wait_for_timeout(300)
    assert page.evaluate(LIVE) == 0
    text = page.locator("body").inner_text()
    assert "![p](http://evil.test/p.png)" in text and "<script>window.hurt=1</script>" in text


FIELDS = {
    "app/access.py": 1, "app/asking.py": 2, "app/hub_rows.py": 4, "app/new_run.py": 2,
    "app/state.py": 2, "pages/glossary.py": 1, "pages/review.py": 2, "pages/unlearn.py": 2,
    "app/components/graph.js": 3,
}  # fmt: skip
"""How many fields for text each file draws: all of them are typed into here."""
FIELD = re.compile(r"\bst\.chat_input\(|\.text_(?:input|area)\(|^ +field\(\"", re.MULTILINE)
TEXT = " ".join(EVIL)


def test_every_field_for_text_is_typed_into_here() -> None:
    files = [file for name in ("app", "pages") for file in (ROOT / name).rglob("*.[pj][ys]")]
    found = {
        str(file.relative_to(ROOT)): len(FIELD.findall(file.read_text(encoding="utf-8")))
        for file in files
    }
    assert {name: n for name, n in found.items() if n} == FIELDS


def typed(page: Page, label: str | re.Pattern[str], text: str = TEXT) -> None:
    """Type into the field of a label, and go on to the next, which sends it."""
    field = page.get_by_role("textbox", name=label).first
    field.fill(text)
    field.press("Tab")
    settled(page)


def whole(page: Page) -> None:
    opened(page)
    assert page.get_by_test_id("stException").count() == 0, page.url
    for frame in page.frames:
        assert frame.evaluate(LIVE) == 0, page.url


def test_no_page_runs_or_fetches_what_is_typed(
    run: Run, address: str, page: Page, tmp_path: Path
) -> None:
    mine = Run.open(shutil.copytree(run.path, runs.folder() / "typed"))
    at = urlencode({"run": mine.name, "method": "ga"})
    # A run's name and notes.
    page.goto(f"{address}/attribution?{at}")
    opened(page)
    page.get_by_role("button", name="Name, copy or delete").click()
    typed(page, "Name", EVIL[0])
    typed(page, "Notes", f"{LINES}\n{TEXT}")
    page.get_by_role("button", name="Save").click()
    whole(page)
    assert label(mine).title == EVIL[0] and LINES in label(mine).notes
    # Another model, a folder or a hub id.
    page.goto(f"{address}/attribution?{urlencode({'view': NEW, 'subject': OTHER_MODEL})}")
    opened(page)
    typed(page, "Hub id or folder")
    whole(page)
    # Rows of a data set: a file of its own, and how its rows are asked.
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"q": TEXT, "a": each, "p": each}) for each in EVIL))
    page.goto(f"{address}/attribution?{urlencode({'view': NEW, 'task': OWN_TASK})}")
    opened(page)
    for where in (TEXT, str(rows)):
        typed(page, "Data set on the hub", where)
        typed(page, "Config", TEXT if where == TEXT else "")
        typed(page, "Split", TEXT if where == TEXT else "")
        page.get_by_role("button", name="Read the rows").click()
        whole(page)
    typed(page, "How it is asked", f"{{}} {TEXT}")
    whole(page)
    typed(page, "Or paste its lines (JSONL)")
    whole(page)
    # Prompts of one's own, asked of each model and followed through the graph.
    for place in ({"ask": "own"}, {"node": "m0", "pair": "your own words"}):
        name = "ask" if "ask" in place else "circuit"
        page.goto(f"{address}/{name}?{at}&{urlencode(place)}")
        opened(page)
        typed(page, "Beginning of a sentence", TEXT[:300])
        typed(page, "Right answer (optional)", TEXT[:100])
        whole(page)
    page.goto(f"{address}/glossary")
    opened(page)
    typed(page, "Find a word")
    whole(page)
    # What is written on a node of the circuit; it is drawn on the graph and kept with the run.
    page.goto(f"{address}/circuit?{at}")
    expect(page.get_by_role("status").filter(has_text="shown of")).to_be_visible()
    opened(page)
    page.get_by_label("Graph of the circuit", exact=True).focus()
    for key in ("ArrowUp", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("Label, group, note").wait_for()
    for name, text in (("Label", TEXT[:60]), ("Group", TEXT[60:120]), ("Note", LINES + TEXT)):
        box = page.get_by_role("textbox", name=name).first
        if not box.is_visible():
            page.get_by_text("Label, group, note").click()
        typed(page, name, text)
        whole(page)
    assert TEXT[:60].strip() in mine.read("marks").labels.values()
    # A review: who signs, and what they note on each property.
    page.goto(f"{address}/review?{at}")
    opened(page)
    page.get_by_text("Rejected", exact=True).first.click()
    typed(page, "Your name")
    typed(page, re.compile("^Note on"), f"{LINES}\n{TEXT}")
    page.get_by_role("button", name="Sign").last.click()
    whole(page)
    assert mine.read("review", "ga").name.startswith(EVIL[0])
    # What an edit is called: it is refused, or it is its name everywhere.
    page.goto(f"{address}/unlearn?{at}&edit=ga")
    opened(page)
    page.get_by_role("button", name="Rename or delete").click()
    typed(page, "Name of the edit", TEXT)
    page.get_by_role("button", name="Rename", exact=True).click()
    whole(page)
    page.goto(f"{address}/unlearn?{at.replace('ga', 'npo')}")
    opened(page)
    typed(page, "Name of the edit")
    page.get_by_role("button", name=re.compile("^Run ")).click()
    whole(page)
    assert len(mine.edits()) == 1
    # A lesson's answer stands in the address alone; there is no field for one.
    page.goto(f"{address}/learn?{urlencode({'my-weights': TEXT, 'step': TEXT})}")
    whole(page)


def test_a_password_is_typed_and_no_more(
    run: Run, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD, TEXT)
    with served(run.path.parent) as address:
        page.goto(f"{address}/")
        for text, found in ((f"{TEXT} ", "That is not the password."), (TEXT, "MANSU")):
            typed(page, "The password of this server", text)
            page.get_by_role("button", name="Enter").click()
            expect(page.get_by_text(found).first).to_be_visible()
            whole(page)
        expect(page.get_by_label("The password of this server")).to_have_count(0)
