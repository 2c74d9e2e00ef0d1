"""Whatever people write, in every field and file, is shown as it is: nothing of it runs in a real
Chromium, nothing is fetched from outside, and no page breaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect
from test_browser import PATIENCE, settled

from app.links import NEW, OWN_TASK
from experiments.benchmarks.pages import served
from mansu import cli, tasks
from mansu.circuits.marks import Marks
from mansu.evidence.review import Review
from mansu.job.library import Label, describe
from mansu.job.runs import Run
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
UNFOLD = "document.querySelectorAll('details:not([open]) > summary').forEach(e => e.click())"

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
    page.wait_for_timeout(500)
    settled(page)
    page.evaluate(
        "document.querySelectorAll('details:not([open]) > summary').forEach(e => e.click())"
    )
    page.wait_for_timeout(500)
    settled(page)
    page.wait_for_timeout(500)
    assert page.evaluate(LIVE) == 0, page.url


def test_no_page_runs_or_fetches_what_a_run_holds(run: Run, page: Page) -> None:
    with served(run.path.parent) as address:
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
        for field in reversed(
            page.get_by_role("textbox").all()
        ):  # with lines no rows are asked for
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
        assert not list(run.path.parents[2].glob("*.jsonl"))


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
