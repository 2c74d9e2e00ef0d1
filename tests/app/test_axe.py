"""axe-core finds nothing on any page: light and dark, wide and narrow, at rest and at work.

Every page at every width in both themes, on both examples, everything unfolded (minutes)::

    python -m tests.app.test_axe http://127.0.0.1:8501
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # run as a script
from made import ranked
from test_browser import ROOT

from experiments.benchmarks.canvas import ARGUMENTS, CHROMIUM
from mansu.job.lock import hold
from mansu.job.runs import EXAMPLES, Run
from mansu.progress import Step
from mansu.sweep.store import FILE

PAGES = sorted(path.stem for path in (ROOT / "pages").glob("*.py"))
TINY, SMOL = "tiny-colours", "chemical-symbols"
WIDTHS = (1440, 800, 400)
THEMES: Sequence[Literal["light", "dark"]] = ("light", "dark")
RULES = {"resultTypes": ["violations"]}
FOLDED = "[data-testid=stMain] [data-testid=stExpander] details:not([open]) summary"

pytestmark = pytest.mark.browser


def opened(page: Page, address: str, path: str, *, unfold: bool = False) -> None:
    """Go to a page, and wait until its script has run."""
    page.goto(f"{address}/{path}")
    _settled(page)
    if unfold:
        for fold in page.locator(FOLDED).all()[::-1]:  # the last first: the others stay in place
            fold.click()
        _settled(page)


def _settled(page: Page) -> None:
    page.wait_for_function(
        "() => document.querySelector('h1') && !document.querySelector('[data-stale=true]') && "
        "document.querySelector('[data-test-script-state=notRunning]')"
    )
    page.wait_for_timeout(400)  # charts are drawn after the script


def violations(page: Page) -> list[str]:
    """What axe-core finds on a page as it is now: rule and element."""
    assert page.get_by_test_id("stException").count() == 0
    found = Axe().run(page, options=RULES).response["violations"]
    return [f"{v['id']}: {node['html'][:200]}" for v in found for node in v["nodes"]]


def seen(page: Page, width: int, theme: Literal["light", "dark"]) -> list[str]:
    """The same at a width and in a theme, and whether the page is wider than the window."""
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=theme)
    page.wait_for_timeout(300)
    found = [f"{theme}, {width} px: {what}" for what in violations(page)]
    wide = page.get_by_test_id("stMain").evaluate("e => e.scrollWidth - e.clientWidth")
    return found + ([f"{theme}, {width} px: {wide} px too wide"] if wide > 0 else [])


@pytest.mark.parametrize("name", PAGES)
def test_every_page_wide_and_light_narrow_and_dark(
    address: str, browser_page: Page, name: str
) -> None:
    opened(browser_page, address, f"{name}?run={TINY}")
    assert seen(browser_page, 1440, "light") + seen(browser_page, 400, "dark") == []


@pytest.mark.parametrize("path", [f"compare?run={TINY}", f"circuit?run={SMOL}", "review"])
def test_at_a_middle_width_unfolded(address: str, browser_page: Page, path: str) -> None:
    browser_page.set_viewport_size({"width": 800, "height": 900})
    opened(browser_page, address, path, unfold=True)
    assert seen(browser_page, 800, "dark") == []


@pytest.mark.parametrize("path", ["unlearn?run=mine", "leaderboard"])
def test_while_a_job_runs(address: str, browser_page: Page, path: str) -> None:
    folder = Path(os.environ["MANSU_RUNS"])
    run = Run.open(shutil.copytree(EXAMPLES / TINY, folder / "mine"))
    ranked(folder, run)
    try:
        with hold(run.path):
            run.record(Step("base", 1, 2), 0.4)
            opened(browser_page, address, path)
            shown = browser_page.get_by_role("button", name="Show", exact=True)
            expect(shown).to_have_count(1)  # in the bar
            assert browser_page.get_by_role("button", name="Cancel").count() == ("mine" in path)
            assert browser_page.get_by_text("edits were judged").count() == ("mine" not in path)
            assert seen(browser_page, 1440, "dark") + seen(browser_page, 400, "light") == []
    finally:
        shutil.rmtree(run.path)
        (folder / FILE).unlink()


def main(address: str) -> None:
    """Every page, width and theme on a server that is there."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        page, count = browser.new_page(), 0
        page.set_default_timeout(180_000)
        for run in (TINY, SMOL):
            for name in PAGES:
                page.set_viewport_size({"width": 1440, "height": 900})
                example = f"&example={run}" if name == "home" else ""
                opened(page, address, f"{name}?run={run}{example}", unfold=True)
                if page.get_by_text("There is no run").count():  # a page without one has no faults
                    sys.exit(f"{address} has no run {run!r}: copy the example to its runs.")
                found = [what for w in WIDTHS for t in THEMES for what in seen(page, w, t)]
                count += len(found)
                print(f"{run}, {name}: {len(found)}", *found, sep="\n  ", flush=True)
        print(f"{count} violations")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
