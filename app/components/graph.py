"""The circuit as a canvas that can be explored: what it is given, and what it tells back.

``graph.js`` draws, filters and traces in the browser; Python gives it the edges once and hears of
the view that the user rests at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from mansu.circuits.circuit import Circuit
from mansu.circuits.marks import Marks
from mansu.job.runs import Run

RANKED = 5000
"""So many best edges are there to be shown, and the circuit's own."""

JS, CSS = (
    Path(__file__).with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".js", ".css")
)
_mount = st.components.v2.component("mansu.graph", js=JS, css=CSS)


@dataclass(frozen=True)
class View:
    """What of a circuit is shown. It is the browser's; the link to a view has it, too.

    Attributes:
        n: so many best edges; None for the circuit that was found.
        first, last: layers. kind: ``all``, ``head`` or ``mlp``. sign: ``all``, ``for`` (carries
            the answer) or ``against``.
        trace: ``off``, ``upstream``, ``downstream``, ``both`` or ``paths``.
        stage: of the comparison: ``before``, ``edited``, ``nf4`` or ``all``; None without one.
        change: of the comparison the class shown alone; None for all.
    """

    n: int | None
    first: int
    last: int
    kind: str = "all"
    sign: str = "all"
    trace: str = "off"
    stage: str | None = None
    change: str | None = None

    @classmethod
    def of(cls, query: Mapping[str, str], layers: int) -> View:
        """The view that a link asks for; what it says of no sense is as if it were not said."""

        def number(name: str, default: int | None, low: int, high: int) -> int | None:
            text = query.get(name, "")
            return min(max(int(text), low), high) if text.isascii() and text.isdigit() else default

        def one(name: str, *options: str) -> str:
            found = query.get(name, "")
            return found if found in options else options[0]

        first = number("from", 0, 0, layers - 1) or 0
        last = number("to", layers - 1, first, layers - 1)
        return cls(
            n=number("edges", None, 1, RANKED),
            first=first,
            last=layers - 1 if last is None else last,
            kind=one("nodes", "all", "head", "mlp"),
            sign=one("sign", "all", "for", "against"),
            trace=one("trace", "off", "upstream", "downstream", "both", "paths"),
            stage=one("stage", "", "before", "edited", "nf4", "all") or None,
            change=one("change", "", "kept", "gone", "back", "new") or None,
        )

    def query(self, layers: int) -> dict[str, str]:
        """What a link says of it; what it is by itself is not said, but is empty here."""
        ends = {"from": self.first or None, "to": self.last if self.last < layers - 1 else None}
        chosen = {"nodes": self.kind, "sign": self.sign}
        said = {"edges": self.n, **ends, "stage": self.stage, "change": self.change}
        said |= {name: None if value == "all" else value for name, value in chosen.items()}
        said["trace"] = None if self.trace == "off" else self.trace
        return {name: "" if value is None else str(value) for name, value in said.items()}

    def to_js(self) -> dict[str, Any]:
        found = asdict(self)
        names = {"first": "from", "last": "to", "change": "class"}
        return {names.get(name, name): value for name, value in found.items()}

    @classmethod
    def from_js(cls, value: Mapping[str, Any]) -> View:
        names = {"from": "first", "to": "last", "class": "change"}
        found = {names.get(name, name): v for name, v in value.items()}
        return cls(**{name: found[name] for name in cls.__dataclass_fields__})


def columns(circuit: Circuit, *, ranked: int = RANKED, extra: Sequence[int] = ()) -> dict[str, Any]:
    """Nodes, destinations and edges for the browser, plain JSON values.

    Edges are the ``ranked`` best by falling |score|, then the circuit's own and ``extra`` ones
    (coded) that are not among them. Nodes are numbered as sources are, the logits last.
    """
    layout = circuit.layout
    best = circuit.order[:ranked].tolist()
    there = set(best)
    more = [code for code in [*circuit.kept.tolist(), *extra] if code not in there]
    codes = [*best, *dict.fromkeys(more)]
    own = set(circuit.kept.tolist())
    scores = dict(zip(circuit.order.tolist(), circuit.order_scores.tolist(), strict=True))
    width = layout.n_destinations
    nodes = [circuit.node(i) for i in range(layout.n_sources + 1)]
    feeds: list[list[int]] = [[] for _ in range(width)]
    for destination, node in layout.feeds.nonzero().tolist():
        feeds[destination].append(node)
    feeds[layout.logits] = [layout.n_sources]
    return {
        "layers": layout.n_layers,
        "heads": layout.n_heads,
        "total": layout.n_edges,
        "ranked": len(best),
        "nodes": [[n["name"], n["kind"], n["layer"], n["head"]] for n in nodes],
        "destinations": [[layout.destination_name(d), fed] for d, fed in enumerate(feeds)],
        "edges": {
            "code": codes,
            "source": [code // width for code in codes],
            "destination": [code % width for code in codes],
            "score": [float(f"{scores[code]:.6g}") for code in codes],
            "kept": [int(code in own) for code in codes],
        },
    }


@dataclass(frozen=True)
class Heard:
    """What the browser told last: the view, the open node's name, the codes of the edges shown."""

    view: View
    node: str | None
    codes: tuple[int, ...]


def heard(key: str) -> Heard | None:
    """None before the browser has told anything."""
    told = st.session_state.get(key)
    value = told.get("view") if told else None
    if not value:
        return None
    return Heard(View.from_js(value), value["node"], tuple(value["codes"]))


def marked(key: str) -> Marks:
    """The marks that the browser told, just now."""
    return Marks.from_json(st.session_state[key]["marks"])


def draw(
    data: Mapping[str, Any],
    *,
    key: str,
    on_view: Callable[[], None],
    on_marks: Callable[[], None],
) -> None:
    """The canvas with its controls.

    Args:
        data: ``columns`` and, as ``graph.js`` reads them, title, source, file, found, curve, diff,
            marks, view and node.
        on_view, on_marks: called when the browser has told a view (``heard``) or marks
            (``marked``).
    """
    _mount(key=key, data=dict(data), on_view_change=on_view, on_marks_change=on_marks)


def of_run(run: Run, circuit: Circuit) -> dict[str, Any]:
    """What ``draw`` needs of a run's circuit, but for the view and the open node."""
    low, high = circuit.interval or (None, None)
    mask = run.mask() if run.has("mask") else None
    found = {"n": len(circuit), "value": circuit.faithfulness, "low": low, "high": high}
    found["mask"] = [mask.size, mask.fraction] if mask else None
    points = circuit.curve[circuit.curve[:, 0].argsort()].tolist()
    marks = run.read("marks") if run.has("marks") else Marks()
    return {
        **columns(circuit),
        "title": f"Circuit of {run.about['title']} in {Path(run.subject).name}",
        "source": f"MANSU run {run.name}; edge scores by attribution, faithfulness by patching",
        "file": f"circuit-{run.name}",
        "found": found,
        "curve": [[int(n), value, low, high, None] for n, value, low, high in points],
        "diff": None,
        "marks": marks.to_json(),
    }
