"""How long a visitor waits: first paint, bytes, page switches, the circuit's canvas, layout shifts.

    python -m experiments.benchmarks.pages [--repeat 5]

Serves the app on an empty folder of runs, so that it shows an example that ships, and drives it in
a headless Chromium with software rendering. Each time is the median of the repeats, beside its
budget; a page is done when its script has run and nothing of the last page is left. The first visit
is said alone: it is to a server that has just started. What is painted first says that MANSU is
loading; how long the page itself takes is the next line. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from playwright.sync_api import Browser, Page, sync_playwright

from experiments.benchmarks.canvas import ARGUMENTS, CHROMIUM
from mansu.show.table import Table

ROOT = Path(__file__).parents[2]
SETUP = """
new PerformanceObserver((list) => {
    for (const e of list.getEntries()) if (!e.hadRecentInput) window.shift += e.value;
}).observe({ type: "layout-shift", buffered: true });
window.shift = 0;
window.deep = (css) => { // also in the canvas's own tree
    for (const e of document.querySelectorAll("*")) {
        const found = e.shadowRoot?.querySelector(css);
        if (found) return found;
    }
    return document.querySelector(css);
};
window.change = (element, event, value) => {
    element.value = value;
    element.dispatchEvent(new Event(event, { bubbles: true }));
};
window.at = (type, x, y) => {
    const canvas = deep(".graph canvas:last-of-type"), box = canvas.getBoundingClientRect();
    const place = { clientX: box.left + x, clientY: box.top + y };
    const about = { pointerId: 1, pointerType: "mouse", bubbles: true, ...place };
    canvas.dispatchEvent(new PointerEvent(type, about));
};
"""
DONE = """(title) => document.querySelector("h1")?.innerText.trim() === title
    && document.querySelector("[data-test-script-state=notRunning]")
    && !document.querySelector("[data-stale=true]")"""
TIMED = """([act, done]) => new Promise((resolve, reject) => {
    const begin = performance.now(), ready = new Function(`return ${done}`);
    new Function(act)();
    const check = () => {
        if (ready()) return requestAnimationFrame(() => resolve(performance.now() - begin));
        if (performance.now() - begin > 60000) return reject(`never: ${done}`);
        requestAnimationFrame(check);
    };
    requestAnimationFrame(check);
})"""
"""Milliseconds from an act until a condition holds and is painted; both are code."""


@dataclass
class Row:
    """One thing that is measured.

    Attributes:
        budget: what its median is to be at most. unit: of both, as it is written.
    """

    name: str
    budget: float
    unit: str = "ms"
    values: list[float] = field(default_factory=list)

    def cells(self) -> tuple[str, ...]:
        middle = statistics.median(self.values)
        shown = [f"{x:.3g}" if x < 100 else f"{x:.0f}" for x in (middle, max(self.values))]
        kept = "yes" if middle <= self.budget else "NO"
        return (self.name, f"{shown[0]} {self.unit}", shown[1], f"{self.budget:g}", kept)


@contextmanager
def served(runs: Path) -> Iterator[str]:
    """A server of the app on a folder of runs, for as long as the block lasts; gives its address.

    Raises:
        RuntimeError: it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MANSU_RUNS": str(runs), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "streamlit", "run", "app/serve.py", "--server.headless=true"]
    command += [f"--server.port={port}", "--server.address=127.0.0.1"]
    with (runs / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        until = time.time() + 60
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).close()
                break
            except OSError as error:
                if server.poll() is not None or time.time() > until:
                    said = (runs / "server.log").read_text()
                    raise RuntimeError(f"the server does not start: {said}") from error
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def visit(browser: Browser, address: str) -> tuple[Page, float, float, float]:
    """A visit to Home with nothing kept: the page, its first contentful paint and when it was
    whole (s), and what was loaded (MB)."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.set_default_timeout(120_000)
    page.add_init_script(SETUP)
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    loaded = []
    network.on("Network.loadingFinished", lambda e: loaded.append(e["encodedDataLength"]))
    page.goto(address)
    page.wait_for_function(DONE, arg="Does it stay forgotten?")
    whole = page.evaluate("performance.now()")
    page.wait_for_load_state("networkidle")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    return page, paint / 1000, whole / 1000, sum(loaded) / 1e6


def timed(page: Page, act: str, done: str) -> float:
    return page.evaluate(TIMED, [act, done])


def switch(page: Page, name: str) -> float:
    """Milliseconds of a change to another page by the navigation."""
    link = f"[...document.querySelectorAll('nav a')].find((a) => a.innerText.includes('{name}'))"
    took = timed(page, f"{link}.click()", f"({DONE})('{name}')")
    page.wait_for_timeout(700)  # charts of the page before are drawn to the end
    return took


def spots(page: Page, n: int) -> list[tuple[int, int, str]]:
    """Places on the canvas of so many different nodes, with their names."""
    return page.evaluate(
        """(n) => {
            const found = new Map(), canvas = deep(".graph canvas:last-of-type");
            for (let y = 10; y < canvas.clientHeight; y += 12)
                for (let x = 20; x < canvas.clientWidth; x += 12) {
                    at("pointermove", x, y);
                    const name = deep(".graph .side h2")?.textContent ?? "";
                    if (/^(a\\d+\\.h\\d+|m\\d+)$/.test(name)) found.set(name, [x, y, name]);
                    if (found.size === n) return [...found.values()];
                }
            return [...found.values()];
        }""",
        n,
    )


def circuit(page: Page, rows: Mapping[str, Row], repeat: int) -> None:
    """The canvas's controls, and nodes that are opened."""
    status, panel = "deep('.graph [role=status]').innerText", "deep('.graph .side h2').innerText"
    keep, changed = f"window.before = {status}", f"{status} !== window.before"
    edges, signs = ".graph input[type=range]", ".graph select:has([value=against])"
    for i in range(repeat):
        move = f"{keep}; change(deep('{edges}'), 'input', {300 + 90 * i})"
        rows["slider"].values.append(timed(page, move, changed))
        pick = f"{keep}; change(deep('{signs}'), 'change', '{('against', 'for')[i % 2]}')"
        rows["filter"].values.append(timed(page, pick, changed))
    timed(page, f"change(deep('{signs}'), 'change', 'all')", "true")
    page.wait_for_timeout(1000)
    for x, y, name in spots(page, repeat):
        page.evaluate("window.shift = 0")
        click = f"for (const e of ['pointermove', 'pointerdown', 'pointerup']) at(e, {x}, {y})"
        rows["click"].values.append(timed(page, click, f"{panel} === '{name}'"))
        said = (
            f"document.body.innerText.includes('What {name} writes') && "
            "document.querySelector('[data-test-script-state=notRunning]')"
        )
        rows["detail"].values.append(rows["click"].values[-1] + timed(page, "", said))
        page.wait_for_timeout(1500)
        rows["node shift"].values.append(page.evaluate("window.shift"))


def threshold(page: Page, rows: Mapping[str, Row], repeat: int) -> None:
    """A threshold of the verdict, moved on the Compare page by a key."""
    page.get_by_text("Move the thresholds").click()
    handle = page.get_by_role("slider").first
    for _ in range(repeat):
        handle.focus()
        begin = time.perf_counter()
        page.keyboard.press("ArrowRight")
        said = f"at least {handle.get_attribute('aria-valuetext')} points (originally"
        page.get_by_text(said).wait_for()  # above the verdict that is made anew
        rows["threshold"].values.append(1000 * (time.perf_counter() - begin))


SWITCHES = ("Circuit", "NF4", "Unlearn", "Compare", "Review", "Attribution", "Glossary")


def measure(browser: Browser, address: str, repeat: int) -> list[Row]:
    """Every row, measured so often; the server has been visited before."""
    rows = {
        "paint": Row("Home: first contentful paint", 1.0, "s"),
        "whole": Row("Home: until it is whole", 2.0, "s"),
        "bytes": Row("Home: transferred", 2.0, "MB"),
        "load shift": Row("Home: layout shift", 0.02, ""),
        **{name: Row(f"To {name}", 1000 if name == "Compare" else 500) for name in SWITCHES},
        "slider": Row("Circuit: number of edges, to the canvas", 100),
        "filter": Row("Circuit: a filter, to the canvas", 100),
        "click": Row("Circuit: a click on a node, to its panel", 100),
        "detail": Row("Circuit: a click on a node, to what the model says", 500),
        "node shift": Row("Circuit: layout shift of that click", 0.02, ""),
        "threshold": Row("Compare: a threshold, to the verdict", 500),
    }
    page = None
    for _ in range(repeat):
        if page is not None:
            page.context.close()
        page, paint, whole, loaded = visit(browser, address)
        for name, value in (("paint", paint), ("whole", whole), ("bytes", loaded)):
            rows[name].values.append(value)
        rows["load shift"].values.append(page.evaluate("window.shift"))
    assert page is not None
    for _ in range(repeat):
        for name in SWITCHES:
            rows[name].values.append(switch(page, name))
    # Beside an edit, which other pages have chosen by now, the circuit has no number of edges.
    page.goto(f"{address}/circuit?edit=no+edit")
    page.wait_for_function(DONE, arg="Circuit")
    page.wait_for_function("window.deep('.graph [role=status]')?.innerText.includes('shown of')")
    circuit(page, rows, repeat)
    switch(page, "Compare")
    threshold(page, rows, repeat)
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a visitor of the app waits.")
    parser.add_argument("--repeat", type=int, default=5)
    asked = parser.parse_args()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as home:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        with served(Path(home)) as address:
            page, _, whole, _ = visit(browser, address)
            for name in SWITCHES:  # what is read once for all visitors is read
                switch(page, name)
            page.context.close()
            print(f"The first visit to a server that has just started: {whole:.1f} s")
            rows = measure(browser, address, asked.repeat)
        browser.close()
    head = ("What", "Median", "Worst", "Budget", "Kept")
    print(Table(head, [row.cells() for row in rows], align="<>>><").text())


if __name__ == "__main__":
    main()
