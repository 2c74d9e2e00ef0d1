"""What the tests that drive a Chromium wait for."""

from __future__ import annotations

from playwright.sync_api import Page, expect

PATIENCE = 90_000  # ms, on a busy machine


def settled(page: Page) -> None:
    """Wait until the script has run and nothing on the page is an exception."""
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    expect(page.get_by_test_id("stStatusWidget")).to_have_count(0)
    expect(page.get_by_test_id("stException")).to_have_count(0)
