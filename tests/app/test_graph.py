"""The canvas of the circuit, in a real Chromium without a server, against slow twins in Python."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pytest
import torch
from playwright.sync_api import Browser, Page

from app.components import graph
from experiments.benchmarks.canvas import data, opened, random_circuit
from mansu.circuits.circuit import Circuit, as_mask, pruned
from mansu.circuits.columns import columns
from mansu.circuits.diff import Scores, diff
from mansu.circuits.graph import Graph

pytestmark = pytest.mark.browser

LAYOUTS = (Graph(4, 6, 2, False), Graph(3, 4, 4, True))


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    yield page
    page.close()


def shown(page: Page) -> set[int]:
    return set(page.evaluate("i.scene.edges.map((e) => e.code)"))


def by_hand(circuit: Circuit, codes: set[int]) -> nx.MultiDiGraph:
    """Nodes by their numbers, an edge for each node that a destination feeds."""
    layout, found = circuit.layout, nx.MultiDiGraph()
    scores = dict(zip(circuit.order.tolist(), circuit.order_scores.tolist(), strict=True))
    for code in codes:
        source, destination = divmod(code, layout.n_destinations)
        fed = layout.feeds[destination].nonzero()[:, 0].tolist() or [layout.n_sources]
        for target in fed:
            found.add_edge(source, target, code=code, score=scores[code])
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [3, 40, 90])
def test_a_threshold_shows_what_the_library_keeps(page: Page, layout: Graph, n: int) -> None:
    circuit = random_circuit(layout, 60)
    opened(page, data(circuit))
    assert shown(page) == set(circuit.kept.tolist())  # as it was found
    page.evaluate("(n) => i.set({ n })", n)
    expected = pruned(layout, circuit.order[:n])
    assert shown(page) == set(expected.tolist())
    text = page.locator(".said").inner_text()
    assert text.startswith(f"{len(expected)} edge")
    assert "not measured" in text  # the curve has 1 and 60 edges


def test_faithfulness_is_said_where_it_was_measured(page: Page) -> None:
    circuit = random_circuit(LAYOUTS[0], 60)
    opened(page, data(circuit))
    slider = page.get_by_label("Faithfulness at least")
    slider.evaluate("(e) => { e.value = 50; e.dispatchEvent(new Event('input')); }")
    assert page.evaluate("i.view.n") == 60  # the smallest that was measured to reach it
    assert "faithfulness of the best 60: 90 % [80 %, 100 %], measured" in page.locator(
        ".said"
    ).inner_text().replace("\u00a0", " ")


@pytest.mark.parametrize("direction", ["upstream", "downstream", "both"])
def test_a_trace_is_what_can_be_reached(page: Page, direction: str) -> None:
    circuit = random_circuit(LAYOUTS[0], 70)
    opened(page, data(circuit))
    whole = by_hand(circuit, set(circuit.kept.tolist()))
    node = next(i for i in whole if whole.in_degree(i) > 1 and whole.out_degree(i) > 1)
    page.evaluate("([node, trace]) => { i.lock({ node }); i.set({ trace }); }", [node, direction])
    ahead = nx.descendants(whole, node) | {node}
    back = nx.ancestors(whole, node) | {node}
    expected = set()
    for a, b, code in whole.edges(data="code"):
        if (direction != "upstream" and a in ahead) or (direction != "downstream" and b in back):
            expected.add(code)
    assert shown(page) == expected
    said = page.locator(".side").inner_text()  # a trace hides edges, not who the neighbours are
    assert f"Reads {len({*whole.predecessors(node)})} node" in said
    assert f"Feeds {len({*whole.successors(node)})} node" in said


def test_the_strongest_path_has_the_strongest_weakest_edge(page: Page) -> None:
    circuit = random_circuit(LAYOUTS[1], 30, seed=3)
    opened(page, data(circuit))
    whole, end = by_hand(circuit, set(circuit.kept.tolist())), circuit.layout.n_sources
    strengths = [
        min(abs(whole.get_edge_data(a, b, key)["score"]) for a, b, key in path)  # pyright: ignore
        for path in nx.all_simple_edge_paths(whole, 0, end)
    ]
    found = page.evaluate("g.paths(i.graph, i.scene.edges)")
    assert found[0]["strength"] == pytest.approx(max(strengths), rel=1e-4)
    assert [p["strength"] for p in found] == sorted((p["strength"] for p in found), reverse=True)
    for path in found:
        assert path["nodes"][0] == 0 and path["nodes"][-1] == end
        for a, b, edge in zip(path["nodes"], path["nodes"][1:], path["edges"], strict=False):
            assert edge["source"] == a and b in edge["targets"]
    page.evaluate("i.set({ trace: 'paths' })")
    assert shown(page) == {e["code"] for p in found for e in p["edges"]}
    assert page.locator(".side ol li").count() == len(found)


def test_filters_leave_what_they_say(page: Page) -> None:
    circuit = random_circuit(LAYOUTS[0], 90)
    opened(page, data(circuit))
    page.evaluate("i.set({ sign: 'against', kind: 'mlp', from: 1, to: 2 })")
    layout, scores = circuit.layout, dict(zip(circuit.kept.tolist(), circuit.scores, strict=True))
    allowed = {0, layout.n_sources, layout.mlp(1), layout.mlp(2)}
    expected = {
        code
        for a, b, code in by_hand(circuit, set(circuit.kept.tolist())).edges(data="code")
        if {a, b} <= allowed and scores[code] > 0
    }
    assert expected and shown(page) == expected


def test_what_is_under_the_pointer_is_what_is_drawn_there(page: Page) -> None:
    opened(page, data(random_circuit(LAYOUTS[0], 60)))
    for i, (x, y) in page.evaluate("[...i.scene.places]"):
        assert page.evaluate("([x, y]) => g.nearest(i.scene, x, y, 1).node", [x + 2, y - 2]) == i
    # The middle of a curve, where no node is near, is that line or one that crosses it there.
    asked = page.evaluate(
        """i.scene.lines.map((l) => {
            const at = [0, 1].map((k) => 0.25 * l.a[k] + 0.5 * l.c[k] + 0.25 * l.b[k]);
            const hit = g.nearest(i.scene, ...at, 4);
            const line = hit.line && g.distance2(...at, hit.line.a, hit.line.c, hit.line.b);
            return [hit.node ?? null, line ?? null];
        })"""
    )
    hits = [line for node, line in asked if node is None]
    assert len(hits) > len(asked) / 2
    assert all(line is not None and line < 0.5 for line in hits)


def test_moving_hovering_and_tracing_tell_the_server_nothing_until_rest(page: Page) -> None:
    opened(page, data(random_circuit(LAYOUTS[0], 60)))
    canvas = page.locator(".stage canvas").last
    box = canvas.bounding_box()
    assert box is not None
    page.wait_for_timeout(600)
    for step in range(20):
        page.mouse.move(box["x"] + 60 + 20 * step, box["y"] + 100 + 15 * step)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 200, steps=8)
    page.mouse.up()
    page.evaluate("i.zoomBy(2)")
    page.wait_for_timeout(600)
    assert page.evaluate("told") == []
    page.evaluate("for (let n = 5; n < 40; n++) i.set({ n })")  # a slider that is dragged
    page.wait_for_timeout(600)
    told = page.evaluate("told")
    assert [name for name, _ in told] == ["view"]
    assert graph.View.from_js(told[0][1]).n == 39
    assert set(told[0][1]["codes"]) == shown(page)


def test_the_keyboard_walks_opens_traces_and_pins(page: Page) -> None:
    circuit = random_circuit(LAYOUTS[0], 60)
    opened(page, data(circuit))
    page.locator(".stage canvas").last.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".side h2").inner_text() == "embed"
    page.keyboard.press("ArrowUp")
    name = page.locator(".side h2").inner_text()
    assert re.fullmatch(r"a\d\.h\d|m\d", name)
    page.keyboard.press("Enter")
    page.keyboard.press("t")
    page.keyboard.press("p")
    assert page.evaluate("[i.nameLocked(), i.view.trace, i.marks.pins]") == [
        name, "upstream", [name],
    ]  # fmt: skip
    assert page.evaluate("told.at(-1)") == ["marks", page.evaluate("i.marks")]
    page.keyboard.press("Escape")
    assert page.evaluate("i.locked") is None


def test_what_one_may_write_on_a_node_is_above_its_neighbours(page: Page) -> None:
    opened(page, data(random_circuit(LAYOUTS[0], 90)))
    page.evaluate("i.lock({ node: i.graph.byName.get('m0').i })")
    page.get_by_text("Label, group, note").click()
    label, reads = page.get_by_label("Label"), page.get_by_role("heading", name=re.compile("Reads"))
    (over, under) = (box["y"] for box in (label.bounding_box(), reads.bounding_box()) if box)
    assert over < under  # of ninety neighbours, too
    label.fill("first")
    label.press("Tab")
    assert page.evaluate("i.marks.labels") == {"m0": "first"}
    assert page.get_by_label("Label").input_value() == "first"  # and is still unfolded
    page.keyboard.type("of mine")  # Tab leads to the next field, and what is typed goes there
    page.evaluate("i.describe()")  # an answer of the server meanwhile takes none of it
    page.keyboard.type(", too")
    page.keyboard.press("Tab")
    page.keyboard.type("a note")
    page.keyboard.press("Tab")
    assert page.evaluate("i.marks") == {
        "pins": [], "labels": {"m0": "first"}, "groups": {"of mine, too": ["m0"]},
        "notes": {"m0": "a note"},
    }  # fmt: skip


def test_the_wheel_scrolls_the_page_until_the_graph_is_active(page: Page) -> None:
    opened(page, data(random_circuit(LAYOUTS[0], 60)))
    wheel = """() => {
        const e = new WheelEvent("wheel", { deltaY: -100, cancelable: true });
        const before = i.zoom;
        i.top.dispatchEvent(e);
        return [e.defaultPrevented, i.zoom > before];
    }"""
    assert page.evaluate(wheel) == [False, False]
    page.locator(".stage canvas").last.focus()
    assert page.evaluate(wheel) == [True, True]


def test_edges_of_a_group_are_summed(page: Page) -> None:
    circuit = random_circuit(LAYOUTS[0], 80)
    given = data(circuit)
    names = [circuit.node(i)["name"] for i in (1, 2, 3)]
    given["marks"]["groups"] = {"early": names}
    opened(page, given)
    scores = dict(zip(circuit.kept.tolist(), circuit.scores.tolist(), strict=True))
    inside, end = {1, 2, 3}, circuit.layout.n_sources
    expected = sum(
        scores[code]
        for a, b, code in by_hand(circuit, set(scores)).edges(data="code")
        if a in inside and b == end
    )
    group = page.evaluate("i.groups[0].i")
    found = page.evaluate(
        "([a, b]) => i.scene.lines.find((l) => l.source === a && l.target === b)?.score ?? 0",
        [group, end],
    )
    assert found == pytest.approx(expected, rel=1e-4)
    # A click keeps it open, also when the pointer leaves; its members open from there.
    page.evaluate("(group) => i.lock({ node: group })", group)
    page.mouse.move(2, 2)
    side = page.locator(".side")
    assert "drawn as one" in side.inner_text() and page.evaluate("i.open()") == group
    side.get_by_role("button", name=names[0], exact=True).first.click()
    assert page.evaluate("i.nameLocked()") == names[0]
    assert "a part of" in side.inner_text() and "Feeds 0 nodes" not in side.inner_text()
    assert page.evaluate("i.open()") == group  # whose lines stand out
    side.get_by_role("button", name="early", exact=True).click()
    side.get_by_role("button", name="Ungroup").click()
    assert page.evaluate("[i.marks.groups, i.groups.length]") == [{}, 0]


def drawn_nodes(page: Page) -> Counter[str]:
    """Of the picture as a file: how many nodes have a colour, and how many a pie (its stroke's)."""
    drawing = ElementTree.fromstring(page.evaluate("i.svg()"))
    nodes = [e for e in drawing if e.tag.endswith(("circle", "rect"))][1:]  # the paper is first
    fills = [e for e in nodes if e.get("height") != "8"]  # a legend's colours
    return Counter(e.get("stroke") or e.attrib["fill"] for e in fills)


def test_a_comparison_shows_each_stage_and_each_change(page: Page) -> None:
    circuit = random_circuit(LAYOUTS[0], 50, seed=4)
    size = circuit.layout.n_sources * circuit.layout.n_destinations
    base = torch.zeros(size)
    base[circuit.order] = circuit.order_scores
    generator = torch.Generator().manual_seed(4)
    models = [base, *(base * (0.7 + 0.9 * torch.rand(size, generator=generator)) for _ in "ab")]
    shaped = [scores.view(circuit.layout.edges.shape) for scores in models]
    found = diff(circuit, Scores.of(shaped[0], shaped[1], shaped[2], circuit.edge_mask))
    compared = graph.Compared("graddiff", "GradDiff", found, {"m0": (40, 10)})
    given = data(circuit)
    given |= columns(circuit, ranked=20, extra=found.codes.tolist())
    given["diff"] = compared.to_js(given["edges"]["code"])
    opened(page, given)
    codes = found.codes.tolist()
    for i, stage in enumerate(("before", "edited", "nf4")):
        page.evaluate("(stage) => i.set({ stage })", stage)
        assert shown(page) == {c for c, m in zip(codes, found.member.tolist(), strict=True) if m[i]}
        code, line = page.evaluate("[i.scene.edges[0].code, g.scoreAt(i.scene.edges[0], i.view)]")
        assert line == pytest.approx(float(found.scores[codes.index(code), i]), rel=1e-4)
    page.evaluate("i.set({ stage: 'all' })")
    assert shown(page) == set(codes)
    said = page.locator(".said").inner_text()
    counts, titles = found.counts(), ("kept", "gone", "back after NF4", "new")
    assert all(f"{n} {title}" in said for n, title in zip(counts.values(), titles, strict=True))
    drawing = ElementTree.fromstring(page.evaluate("i.svg()"))
    for words in (e for e in drawing if e.tag.endswith("text") and e.text):
        assert float(words.attrib["x"]) + 5 * len(words.text or "") < float(drawing.attrib["width"])
    assert drawn_nodes(page) == {
        "#8c8c8c": len(page.evaluate("[...i.scene.places.keys()]")),
        "#222": 1,
    }
    page.get_by_label("Show").select_option("back")
    back = {c for c, change in zip(codes, found.changes, strict=True) if change == "back"}
    assert back and shown(page) == back
    page.evaluate("i.lock({ node: i.graph.byName.get('m0').i })")
    text = page.locator(".side").inner_text()
    assert "moved 40 weights of it; 10 of them changed their NF4 code" in text
    page.get_by_role("button", name="Play").click()
    assert page.evaluate("i.view.stage") == "before"
    assert page.locator(".said").inner_text().startswith("1 of 3: Before · ")
    page.wait_for_function("i.view.stage === 'nf4'")
    assert page.locator(".said").inner_text().startswith("3 of 3: After NF4 · ")


def test_text_of_a_run_is_never_markup(page: Page) -> None:
    circuit, evil = random_circuit(LAYOUTS[0], 60), "<img src=x onerror='window.hurt=1'>&\""
    given = {**data(circuit), "title": evil, "source": evil}
    given["marks"]["labels"] = {"embed": evil}
    given["marks"]["groups"] = {evil: [circuit.node(1)["name"]]}
    opened(page, given)
    page.evaluate("i.lock({ node: 0 })")
    page.wait_for_timeout(100)
    assert evil in page.locator(".side").inner_text()
    assert page.locator("img").count() == 0
    assert page.evaluate("window.hurt") is None
    drawing = ElementTree.fromstring(page.evaluate("i.svg()"))  # XML, whatever the names
    texts = [t.text for t in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert evil in texts


def test_the_pictures_hold_title_legend_run_and_every_line(page: Page) -> None:
    circuit = random_circuit(LAYOUTS[0], 60)
    opened(page, data(circuit))
    drawing = ElementTree.fromstring(page.evaluate("i.svg()"))
    names = "{http://www.w3.org/2000/svg}"
    texts = " ".join(t.text or "" for t in drawing.iter(f"{names}text"))
    for wanted in ("A random circuit", "no run", "carries the answer", "works against it"):
        assert wanted in texts
    assert len(list(drawing.iter(f"{names}path"))) == page.evaluate("i.scene.lines.length")
    for kind, start in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=kind, exact=True).click()
        assert waiting.value.suggested_filename == f"random.{kind.lower()}"
        assert waiting.value.path().read_bytes().startswith(start)


def test_the_whole_graph_is_on_paper(page: Page) -> None:
    opened(page, data(random_circuit(LAYOUTS[0], 60)))
    page.evaluate("i.observer.disconnect()")  # the printer tells a page nothing of its layout
    page.emulate_media(media="print")
    page.evaluate("Object.assign(i.stage.style, { width: '300px', height: '250px' })")
    places = "[...i.stage.children].map((c) => [c.offsetWidth, c.offsetHeight])"
    assert all(wide <= 300 and high <= 250 for wide, high in page.evaluate(places))
    fits = "[...i.stage.children].map((c) => getComputedStyle(c).objectFit)"
    assert page.evaluate(fits) == ["contain", "contain"]
    page.emulate_media(media="screen")


def test_a_png_of_a_large_circuit_is_no_burden(page: Page) -> None:
    opened(page, data(random_circuit(Graph(30, 9, 3, False), 700)))
    with page.expect_download() as waiting:
        page.get_by_role("button", name="PNG", exact=True).click()
    png = waiting.value.path().read_bytes()
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    assert width > 1500 and width * height <= 4e6
    assert len(png) < 3e6


def test_the_page_may_choose_a_node_but_a_late_answer_does_not(page: Page) -> None:
    given = data(random_circuit(LAYOUTS[0], 60))
    opened(page, given)
    locked: Any = lambda: page.evaluate("i.nameLocked()")  # noqa: E731
    page.evaluate("(d) => i.take(d)", {**given, "node": "embed"})  # the list beside it
    assert locked() == "embed"
    page.evaluate("i.lock({ node: 1 }); i.lock({ node: 2 })")  # two clicks, then the first's answer
    page.evaluate("(d) => i.take(d)", {**given, "node": "a0.h0"})
    assert locked() == "a0.h1"
    page.evaluate("(d) => i.take(d)", {**given, "node": "a0.h1"})
    assert locked() == "a0.h1"


def test_a_view_survives_its_link() -> None:
    view = graph.View(12, 1, 2, "mlp", "for", "paths", "all", "back")
    assert graph.View.of(view.query(4), 4) == view
    assert graph.View.from_js(view.to_js()) == view
    plain = graph.View(None, 0, 3)
    assert not any(plain.query(4).values())
    assert graph.View.of({}, 4) == graph.View.of({"stage": graph.ALONE}, 4) == plain
    nonsense = {"edges": "-3", "from": "x", "to": "99", "nodes": "<b>", "stage": "later"}
    assert graph.View.of(nonsense, 4) == plain


def test_the_columns_hold_the_best_edges_and_the_circuit() -> None:
    layout = LAYOUTS[0]
    circuit = random_circuit(layout, 60)
    weakest = circuit.order[-3:]
    some = columns(circuit.only(torch.cat([circuit.order[:5], weakest])), ranked=20)
    assert some["ranked"] == 20
    assert some["edges"]["code"] == [*circuit.order[:20].tolist(), *weakest.tolist()]
    assert sum(some["edges"]["kept"]) == 8
    kept = as_mask(layout, torch.tensor(some["edges"]["code"]))
    for code, source, destination in zip(
        *(some["edges"][name] for name in ("code", "source", "destination")), strict=True
    ):
        assert code == source * layout.n_destinations + destination and kept[source, destination]


def test_a_finger_scrolls_the_page_until_the_graph_is_active(page: Page) -> None:
    assert page.context.browser is not None
    context = page.context.browser.new_context(
        viewport={"width": 400, "height": 700}, has_touch=True, is_mobile=True
    )
    phone = context.new_page()
    try:
        opened(phone, data(random_circuit(LAYOUTS[0], 60)))
        phone.evaluate("document.body.style.paddingBottom = '2000px'")
        fingers = context.new_cdp_session(phone)

        def touch(kind: str, *points: tuple[float, float]) -> None:
            where = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": where})

        def swipe(dx: float, dy: float) -> None:
            x, y = middle()
            touch("touchStart", (x, y))
            for part in range(1, 11):
                touch("touchMove", (x + dx * part / 10, y + dy * part / 10))
            touch("touchEnd")
            phone.wait_for_timeout(100)

        def middle() -> tuple[float, float]:
            box = phone.get_by_label("Graph of the circuit").bounding_box()
            assert box is not None
            return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

        def state() -> tuple[float, float, list[float], bool, object]:
            top, zoom, at, active, locked = phone.evaluate(
                "[scrollY, i.zoom, [...i.at], i.active, i.locked]"
            )
            return top, zoom, at, active, locked

        first = state()
        swipe(0, -150)  # the page's
        second = state()
        assert second[0] > first[0] + 50 and second[1:] == first[1:]
        swipe(120, 0)  # nobody's: no tap either
        assert state()[1:] == first[1:]
        x, y = middle()
        touch("touchStart", (x - 30, y), (x + 30, y))
        for part in range(1, 11):
            touch("touchMove", (x - 30 - 6 * part, y), (x + 30 + 6 * part, y))
        touch("touchEnd")
        pinched = state()
        assert pinched[1] > 1.5 * first[1] and pinched[4] is None
        phone.touchscreen.tap(x, y)
        tapped = state()
        assert tapped[3]
        swipe(0, -100)  # the graph's
        assert state()[0] == tapped[0] and state()[2][1] < tapped[2][1] - 50
        assert state()[1] == tapped[1]
    finally:
        context.close()
