"""How smoothly the circuit's canvas moves, drawn in software in a headless Chromium.

    python -m experiments.benchmarks.canvas [--edges 5000] [--seconds 3]

A random circuit of SmolLM2's shape, every one of its edges shown. Prints the milliseconds that a
frame takes (median, 95th percentile, worst) and the frames a second while it is panned, zoomed and
hovered over, and how long after a change of the number of edges the last line is drawn. Run it on a
quiet machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import Page, sync_playwright

from mansu.circuits.circuit import Circuit
from mansu.circuits.columns import columns
from mansu.circuits.graph import Graph

CODE = Path(__file__).parents[2] / "app" / "components" / "graph.js"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The first has no window to draw, which is a third of what the others do."""
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), "")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


def random_circuit(layout: Graph, n: int, seed: int = 0) -> Circuit:
    """The best ``n`` edges by random scores, few of them large, as they are in a real model."""
    generator = torch.Generator().manual_seed(seed)
    codes = layout.edges.flatten().nonzero()[:, 0]
    scores = torch.randn(len(codes), generator=generator) ** 3
    order = scores.abs().argsort(descending=True)
    curve = torch.tensor([[1, 0.1, 0.0, 0.2], [n, 0.9, 0.8, 1.0]])
    return Circuit(
        layout=layout,
        order=codes[order],
        order_scores=scores[order],
        kept=codes[order[:n]],
        faithfulness=0.9,
        interval=(0.8, 1.0),
        curve=curve,
        tau=0.85,
        clean=1.0,
        corrupt=0.0,
        metric="logit_difference",
        subject="random",
        n_pairs=1,
        fingerprint="",
        pairs="",
    )


def data(circuit: Circuit) -> dict[str, Any]:
    """What the canvas is given of a circuit that is of no run."""
    low, high = circuit.interval or (None, None)
    found = {"n": len(circuit), "value": circuit.faithfulness, "low": low, "high": high}
    return {
        **columns(circuit),
        "title": "A random circuit",
        "source": "no run",
        "file": "random",
        "found": {**found, "mask": None},
        "curve": circuit.curve.tolist(),
        "diff": None,
        "marks": {"pins": [], "groups": {}, "labels": {}, "notes": {}},
        "view": {},
        "node": None,
        "mask": None,
    }


def opened(page: Page, given: dict[str, Any]) -> None:
    """Put the canvas alone into a page; ``window.g`` is its module, ``window.i`` the instrument.

    What it tells is in ``window.told``.
    """
    page.set_content("<!doctype html><html lang='en'><title>canvas</title><main id='m'></main>")
    page.add_style_tag(content=CODE.with_suffix(".css").read_text())
    page.evaluate(
        """async ([code, data]) => {
            window.i?.close(); // of the last one, whose timers would go on
            const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
            window.g = await import(url);
            window.told = [];
            const root = document.getElementById("m").appendChild(document.createElement("div"));
            root.className = "graph";
            window.i = new g.Instrument(root, data, (name, value) => told.push([name, value]));
        }""",
        [CODE.read_text(), given],
    )
    page.wait_for_function("i.sharp && !i.job && !i.stale")


FRAMES = """([seconds, act]) => new Promise((done) => {
    const times = [], begin = performance.now(), step = new Function("t", act);
    let last = begin;
    const frame = (now) => {
        times.push(now - last);
        last = now;
        if (now - begin > 1000 * seconds) return done(times.slice(3));
        step((now - begin) / 1000);
        requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
})"""

ACTS = {
    "pan": "i.pan(3 * Math.cos(3 * t), 3 * Math.sin(3 * t))",
    "zoom": "i.zoomBy(Math.sin(2 * t) > 0 ? 1.02 : 1 / 1.02)",
    "hover": "const e = new PointerEvent('pointermove', { pointerId: 1, clientX: 200 + 150 * "
    "Math.sin(5 * t), clientY: 250 + 200 * Math.cos(7 * t) }); i.top.dispatchEvent(e)",
}

SLIDER = """() => new Promise((done) => {
    const begin = performance.now();
    i.set({ n: 4000 });
    const check = () => i.sharp && i.sharp.lines === i.scene.lines && !i.job
        ? done(performance.now() - begin) : requestAnimationFrame(check);
    requestAnimationFrame(check);
})"""


def measure(page: Page, seconds: float) -> dict[str, Any]:
    """Milliseconds a frame by what is done, and until a changed number of edges is drawn."""
    found: dict[str, Any] = {}
    for name, act in ACTS.items():
        times = torch.tensor(page.evaluate(FRAMES, [seconds, act]))
        found[name] = {
            "frames a second": round(float(1000 / times.mean()), 1),
            "median ms": round(float(times.median()), 1),
            "95 % ms": round(float(times.quantile(0.95)), 1),
            "worst ms": round(float(times.max()), 1),
        }
    found["edges drawn anew, ms"] = round(page.evaluate(SLIDER), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Frames a second of the circuit's canvas.")
    parser.add_argument("--edges", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=3)
    asked = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        opened(page, data(random_circuit(Graph(30, 9, 3, False), asked.edges)))
        shown = page.evaluate("({ edges: i.scene.edges.length, lines: i.scene.lines.length })")
        print(json.dumps({"shown": shown, **measure(page, asked.seconds)}, indent=1))
        browser.close()


if __name__ == "__main__":
    main()
