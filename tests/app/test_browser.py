"""The main job in a real Chromium, on the tiny model."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from chromium import PATIENCE, settled
from playwright.sync_api import Page, expect

from app import glossary, jobs
from mansu.job import runs
from mansu.job.lock import holder
from mansu.job.runs import Run
from mansu.report import changes
from mansu.report.dossier import dossier
from mansu.subjects import Subject
from mansu.tasks import Task

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.browser


def test_the_main_job(address: str, browser_page: Page) -> None:
    page = browser_page
    page.goto(f"{address}/attribution?view=New+run&subject=tiny&pairs=32&steps=20&baseline=ga")
    page.get_by_role("button", name="Run the whole job").click()

    # Progress is real: it moves, and it is still there after a page change and a reload.
    bar = page.get_by_test_id("stProgress").last  # the first is in the bar at the page's foot
    expect(bar).to_be_visible()
    expect(bar).to_contain_text("mansu:")
    (run,) = runs.listed()
    page.get_by_role("link", name="Circuit").click()
    expect(page.get_by_role("heading", name="Circuit", exact=True)).to_be_visible()
    expect(bar).to_be_visible()
    page.reload()
    expect(bar).to_be_visible()
    assert f"run={run.name}" in page.url

    # Cancel really ends the process and keeps what was finished.
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled. What was finished is kept")).to_be_visible()
    assert jobs.state(run) == "cancelled" and holder(run.path) is None

    page.get_by_role("link", name="Attribution").click()
    page.get_by_role("button", name="Go on with the whole job").click()
    expect(bar).to_be_visible()
    expect(bar).to_have_count(0, timeout=240_000)
    assert run.judged() == ("mansu", "ga"), run.status()
    settled(page)
    expect(page.get_by_text("Where the behaviour lives")).to_be_visible()

    # The graph: a click on a node opens it without a rerun of the page, and the URL keeps it.
    page.get_by_role("link", name="Circuit").click()
    canvas = page.get_by_label("Graph of the circuit", exact=True)
    expect(page.get_by_role("status").filter(has_text="shown of")).to_be_visible()
    settled(page)
    box = canvas.bounding_box()
    assert box is not None
    name = page.get_by_label("What is under the pointer, or open").get_by_role("heading", level=2)
    spots = ((x, y) for y in range(20, 200, 25) for x in range(40, int(box["width"]), 25))
    for x, y in spots:
        page.mouse.move(box["x"] + x, box["y"] + y)
        if name.inner_text() == "logits":
            page.mouse.click(box["x"] + x, box["y"] + y)
            break
    page.wait_for_url("**node=logits*")
    expect(page.get_by_text("The model's own prediction")).to_be_visible()
    page.reload()
    expect(page.get_by_text("The model's own prediction")).to_be_visible()
    settled(page)

    for name in ("Unlearn", "NF4", "Compare"):
        page.get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        expect(page.locator(".js-plotly-plot").first).to_be_visible()
        settled(page)
    expect(page.get_by_text("structural erasure").first).to_be_visible()


def chosen(page: Page) -> str:
    return page.get_by_test_id("stSidebar").get_by_role("combobox").input_value()


def opened(page: Page, name: str) -> None:
    """Go to a page by the navigation, and wait until it is drawn."""
    page.get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
    expect(page.get_by_test_id("stSidebar").get_by_text("Folder")).to_be_visible()
    settled(page)


def test_two_people_keep_their_runs_and_back_is_one_press(
    address: str, browser_page: Page, tiny: Subject, tiny_task: Task
) -> None:
    """Two runs and two sessions: each page shows the run that was chosen, and no other's."""
    for name in ("first", "second"):
        task = replace(tiny_task, title=f"The {name} one")
        Run.create(tiny, task, path=runs.folder() / f"{name}-run")
    browser = browser_page.context.browser
    assert browser is not None
    outside: list[str] = []
    people = {name: browser.new_page() for name in ("first", "second")}
    for name, page in people.items():
        page.set_default_timeout(PATIENCE)
        page.on(
            "request",
            lambda r: (
                None if r.url.startswith((address, "data:", "blob:")) else outside.append(r.url)
            ),
        )
        page.goto(f"{address}/circuit?run={name}-run")
        opened(page, "Circuit")
    pages = ("NF4", "Compare", "Attribution")
    for name in pages:
        for who, page in people.items():
            entries = page.evaluate("history.length")
            opened(page, name)
            assert chosen(page).startswith(f"The {who} one"), name
            expect(page).to_have_url(re.compile(f"run={who}-run"))
            assert page.evaluate("history.length") == entries + 1, name
            assert page.title() == f"{name} · MANSU"
    page = people["first"]
    for name in (*reversed(pages[:-1]), "Circuit"):  # one press a page, with the run it had
        page.go_back()
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        settled(page)
        assert chosen(page).startswith("The first one")

    # The first page's own path, and a dead link.
    page.goto(f"{address}/attribution?run=first-run")
    expect(page.get_by_role("heading", name="Attribution", exact=True)).to_be_visible()
    settled(page)
    assert chosen(page).startswith("The first one")
    expect(page.get_by_text("Page not found")).to_have_count(0)
    page.goto(f"{address}/nf4?run=gone")
    expect(page.get_by_text("There is no run “gone” here")).to_be_visible()
    assert chosen(page) == ""
    assert outside == []


def test_a_term_of_the_glossary_is_where_links_lead(address: str, browser_page: Page) -> None:
    browser_page.goto(f"{address}/glossary")
    terms = browser_page.locator(".st-key-terms h2")
    expect(terms).to_have_count(len(glossary.TERMS))
    places = terms.evaluate_all("terms => terms.map((term) => term.id)")
    assert places == [glossary.anchor(term) for term in glossary.TERMS]


def test_what_a_link_to_a_circuit_asks_in_vain_is_said_until_something_is_chosen(
    address: str, browser_page: Page
) -> None:
    page = browser_page
    shutil.copytree(runs.EXAMPLES / "tiny-colours", runs.folder() / "asked")
    page.goto(f"{address}/circuit?run=asked&edges=9&sign=zz")
    warned = page.get_by_text("asks for “zz” (sign)")
    expect(page.get_by_role("status").filter(has_text="shown of")).to_be_visible()
    page.wait_for_timeout(1500)  # the graph tells which edges it shows
    settled(page)
    expect(warned).to_be_visible()
    page.get_by_label("Edges that").select_option("for")
    expect(warned).to_have_count(0)


def test_the_tour_goes_on_when_the_thing_is_done(address: str, browser_page: Page) -> None:
    page = browser_page
    shutil.copytree(runs.EXAMPLES / "tiny-colours", runs.folder() / "toured")
    page.goto(f"{address}/circuit?run=toured&tour=1")
    bar = page.locator(".st-key-tour")
    expect(bar).to_contain_text("Tour, 2 of 6")  # the first thing, to come here, is done
    canvas = page.get_by_label("Graph of the circuit", exact=True)
    expect(page.get_by_role("status").filter(has_text="shown of")).to_be_visible()
    settled(page)
    canvas.focus()
    for key in ("ArrowUp", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    expect(bar).to_contain_text("Tour, 3 of 6")
    page.reload()
    expect(bar).to_contain_text("Tour, 3 of 6")
    settled(page)
    page.get_by_role("slider", name="Number of edges").press("ArrowLeft")
    expect(bar).to_contain_text("Tour, 4 of 6")
    bar.get_by_role("button", name="Skip this step").press("Enter")
    expect(bar).to_contain_text("Tour, 5 of 6")
    bar.get_by_role("link", name="Open Compare").click()
    expect(bar).to_contain_text("Tour, 6 of 6")
    assert chosen(page).startswith("Tiny: colours") and "tour=6" in page.url
    settled(page)
    page.get_by_text("Move the thresholds", exact=True).click()
    page.get_by_role("slider").first.press("ArrowRight")
    expect(bar).to_contain_text("The tour is done")
    bar.get_by_role("button", name="End the tour").click()
    expect(bar).to_have_count(0)
    page.wait_for_url(re.compile(r"^((?!tour=).)*$"))
    # Nobody moves a threshold: none is moved on the next page.
    page.goto(f"{address}/compare?run=toured")
    expect(page.get_by_text("Move the thresholds", exact=True)).to_be_visible()
    settled(page)
    page.get_by_role("link", name="Review", exact=True).click()
    expect(page.get_by_role("heading", name="Review", exact=True)).to_be_visible()
    expect(page.get_by_role("heading", name="Decision")).to_be_visible()
    settled(page)
    expect(page.get_by_text("Judged by moved thresholds")).to_have_count(0)


def test_review_draws_what_is_left_of_the_circuit_in_the_theme(
    address: str, browser_page: Page
) -> None:
    page = browser_page
    run = Run.open(shutil.copytree(runs.EXAMPLES / "tiny-colours", runs.folder() / "pictured"))
    found = dossier(run, "mansu").circuit
    assert found is not None
    page.goto(f"{address}/review?run=pictured&edit=mansu")
    picture = page.get_by_role("img", name="The circuit's edges and what became of them")
    drawn = {(edge.nodes[0], target) for edge in found.edges for target in edge.nodes[1:]}
    expect(picture.locator("path:has(title)")).to_have_count(len(drawn))
    box = picture.bounding_box()
    assert box is not None and box["width"] > 300 and box["height"] > 100
    text = picture.locator("text").first
    beside = page.get_by_test_id("stMain").get_by_text(changes.sentence(found)[:30]).first
    colours = []
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        expect(text).to_have_css("fill", beside.evaluate("e => getComputedStyle(e).color"))
        colours.append(text.evaluate("e => getComputedStyle(e).fill"))
    assert colours[0] != colours[1]
    # The same in words: the sentence, and the edges as a table.
    page.get_by_text("The strongest edges of each kind").click()
    first = changes.edges_table(found).rows[0]
    expect(page.get_by_role("row").filter(has_text=str(first[1])).first).to_be_visible()
    page.emulate_media(color_scheme="light")
    # Beside the sidebar a figure is as narrow as on a phone: its letters can be read there, too.
    letters = page.get_by_role("img", name="Accuracy by set").locator("text").first
    for wide, size in ((1400, "12px"), (800, "17px")):
        page.set_viewport_size({"width": wide, "height": 1000})
        expect(letters).to_have_css("font-size", size)
    page.set_viewport_size({"width": 1400, "height": 1000})


def test_a_dossier_on_paper_is_short_and_whole(browser_page: Page, tmp_path: Path) -> None:
    (example,) = (run for run in runs.examples() if run.name == "chemical-symbols")
    browser = browser_page.context.browser
    assert browser is not None
    for method in example.judged():
        dossier(example, method).save(tmp_path / "d.html")
        page = browser.new_page()
        page.goto((tmp_path / "d.html").as_uri())
        printed = page.pdf(prefer_css_page_size=True)
        assert 1 < len(re.findall(rb"/Type\s*/Page\b(?!s)", printed)) <= 12
        page.set_viewport_size({"width": 687, "height": 900})  # A4 without its margins, at 96 dpi
        page.emulate_media(media="print")
        cut = "[...document.querySelectorAll('main *')].filter(e => e.scrollWidth > 687).length"
        assert page.evaluate(cut) == 0
        page.close()
