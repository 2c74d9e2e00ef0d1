"""The app's server and its pages in a Chromium, and what Streamlit's own tests do once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from chromium import PATIENCE
from playwright.sync_api import Browser, Page, expect
from streamlit.components.v2 import manifest_scanner

from experiments.benchmarks.pages import served


@pytest.fixture(scope="session", autouse=True)
def scanned_once() -> Iterator[None]:
    """Each run of an ``AppTest`` looks for components in all packages: nine tenths of its time."""
    with pytest.MonkeyPatch.context() as patch:
        scan = manifest_scanner.scan_component_manifests
        patch.setattr(manifest_scanner, "scan_component_manifests", cache(scan))
        yield


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
