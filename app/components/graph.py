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
import torch
from streamlit.components.v2 import component

from mansu.circuits.circuit import Circuit
from mansu.circuits.columns import RANKED, columns
from mansu.circuits.diff import Diff
from mansu.circuits.marks import Marks
from mansu.job.runs import Run

JS, CSS = (
    Path(__file__).with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".js", ".css")
)
_mount = component("mansu.graph", js=JS, css=CSS)


ALONE = "alone"
"""What a link says where an edit is chosen and the circuit is looked at without it."""
STAGES = ("before", "edited", "nf4", "all")
"""The stages of a comparison that a link may name."""


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
            digits = text[:9] if text.isascii() and text.isdigit() else ""  # Python reads no 5,000
            return min(max(int(digits), low), high) if digits else default

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
            stage=one("stage", "", ALONE, *STAGES).replace(ALONE, "") or None,
            change=one("change", "", "kept", "gone", "back", "new") or None,
        )

    def refused(self, query: Mapping[str, str], layers: int) -> dict[str, tuple[str, str]]:
        """What a link asks for that this view, made of it, has otherwise: by name, both."""
        stage = self.stage or ALONE
        whole = {"nodes": "all", "sign": "all", "trace": "off", "from": "0", "to": str(layers - 1)}
        whole |= {"edges": "the circuit found", "stage": stage, "change": "all"}
        shown = {n: value or whole[n] for n, value in self.query(layers).items()}
        return {n: (query[n], x) for n, x in shown.items() if query.get(n) and query[n] != x}

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
            marks, view, node and mask.
        on_view, on_marks: called when the browser has told a view (``heard``) or marks
            (``marked``).
    """
    with st.container(key="circuit-graph"):  # the style knows how high it is before it is there
        _mount(key=key, data=dict(data), on_view_change=on_view, on_marks_change=on_marks)


def marks_of(run: Run) -> Marks:
    """What is marked in a run; nothing before anybody did."""
    return run.read("marks") if run.has("marks") else Marks()


def of_run(run: Run, circuit: Circuit, compared: Compared | None = None) -> dict[str, Any]:
    """What ``draw`` needs of a run's circuit, but for the view and the open node."""
    low, high = circuit.interval or (None, None)
    mask = run.mask() if run.has("mask") else None
    found = {"n": len(circuit), "value": circuit.faithfulness, "low": low, "high": high}
    found["mask"] = [mask.size, mask.fraction] if mask else None
    points = circuit.curve[circuit.curve[:, 0].argsort()].tolist()
    edges = columns(circuit, extra=compared.diff.codes.tolist() if compared else ())
    return {
        **edges,
        "title": f"Circuit of {run.about['title']} in {Path(run.subject).name}",
        "source": f"MANSU run {run.name}; edge scores by attribution, faithfulness by patching",
        "file": f"circuit-{run.name}",
        "found": found,
        "curve": [[int(n), value, *(bounds or (None, None))] for n, value, *bounds in points],
        "diff": compared.to_js(edges["edges"]["code"]) if compared else None,
        "marks": marks_of(run).to_json(),
    }


@dataclass(frozen=True, eq=False)
class Compared:
    """A circuit beside what an edit left of it.

    Attributes:
        method, title: the edit's. diff: of the circuit.
        moved: of each node, the weights that the edit moved, and those of them whose NF4 code
            changed.
    """

    method: str
    title: str
    diff: Diff
    moved: Mapping[str, tuple[int, int]]

    def to_js(self, codes: Sequence[int]) -> dict[str, Any]:
        """By the edges that are drawn; those in no circuit have no class."""
        place = {code: i for i, code in enumerate(self.diff.codes.tolist())}
        bits = (self.diff.member * torch.tensor([1, 2, 4])).sum(1).tolist()
        scores = self.diff.scores.tolist()
        found = [place.get(code) for code in codes]
        return {
            "method": self.title,
            "bar": self.diff.bar,
            "classes": ["" if i is None else self.diff.changes[i] for i in found],
            "member": [0 if i is None else bits[i] for i in found],
            "scores": [
                [0.0 if i is None else float(f"{scores[i][k]:.6g}") for i in found]
                for k in range(3)
            ],
            "moved": {name: list(counts) for name, counts in self.moved.items()},
        }
