"""The app's server and its pages in a Chromium, for the tests that drive them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import PATIENCE
from playwright.sync_api import Browser, Page, expect

from experiments.benchmarks.pages import served


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server of the app and its folder of runs: a start takes as long as many a test."""
    home = tmp_path_factory.mktemp("served")
    with served(home) as found:
        yield found, home


@pytest.fixture(scope="module")
def address(server: tuple[str, Path]) -> Iterator[str]:
    """The server's address; its folder of runs, which is ``MANSU_RUNS`` here, too, is empty."""
    found, home = server
    for old in home.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old.suffix != ".log":  # its own
            old.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANSU_RUNS", str(home))
        yield found


@pytest.fixture(scope="module")
def browser_page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    yield page
    page.close()
