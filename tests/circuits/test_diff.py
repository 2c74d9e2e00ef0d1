"""What becomes of a circuit: classes against a slow twin, files, and weights by node."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest
import torch
from families import FAMILIES, family
from torch import Tensor

from experiments.benchmarks.canvas import random_circuit
from mansu import quant
from mansu.circuits.circuit import Circuit
from mansu.circuits.diff import Scores, diff, moved_by_node
from mansu.circuits.graph import Graph, graph_of
from mansu.circuits.marks import Marks
from mansu.errors import BadInputError, MismatchError
from mansu.quant.survival import changed_codes
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.subjects.weights import slices

LAYOUT = Graph(3, 4, 2, False)


def three(circuit: Circuit, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """The circuit's scores, and two shaken ones, ``[n_sources, n_destinations]``."""
    base = torch.zeros(LAYOUT.n_sources * LAYOUT.n_destinations)
    base[circuit.order] = circuit.order_scores
    base = base.view(LAYOUT.edges.shape)
    generator = torch.Generator().manual_seed(seed)
    shaken = [base * (0.7 + 0.9 * torch.rand(base.shape, generator=generator)) for _ in range(2)]
    return base, shaken[0], shaken[1]


def on_a_path(codes: set[int]) -> set[int]:
    """By networkx: a node for each source and each destination."""
    graph = nx.DiGraph()
    for code in codes:
        source, destination = divmod(code, LAYOUT.n_destinations)
        graph.add_edge(("s", source), ("d", destination))
        for fed in LAYOUT.feeds[destination].nonzero()[:, 0].tolist():
            graph.add_edge(("d", destination), ("s", fed))
    start, end = ("s", 0), ("d", LAYOUT.logits)
    if start not in graph or end not in graph:
        return set()
    ahead, back = nx.descendants(graph, start) | {start}, nx.ancestors(graph, end) | {end}
    pairs = ((code, divmod(code, LAYOUT.n_destinations)) for code in codes)
    return {code for code, (s, d) in pairs if ("s", s) in ahead and ("d", d) in back}


@pytest.mark.parametrize("seed", (2, 3, 5, 11))
def test_every_edge_is_kept_gone_back_or_new(seed: int) -> None:
    circuit = random_circuit(LAYOUT, 40, seed)
    circuit = circuit.only(circuit.kept[torch.arange(40) != 7])  # one that the search did without
    scores = three(circuit, seed)
    found = diff(circuit, Scores.of(*scores, circuit.edge_mask))
    dense = [s.flatten().abs() for s in scores]
    before = set(circuit.kept.tolist())
    bar = min(float(dense[0][code]) for code in before)
    after = []
    for row in dense[1:]:
        strong = {c for c in range(len(row)) if row[c] >= bar}
        after.append(on_a_path({c for c in strong if c in before or dense[0][c] < bar}))
    assert found.bar == pytest.approx(bar)
    said = dict(zip(found.codes.tolist(), found.changes, strict=True))
    assert set(said) == before | after[0] | after[1]
    for code, change in said.items():
        here = (code in before, code in after[0], code in after[1])
        wanted = "new" if not here[0] else "gone" if not here[2] else "kept" if here[1] else "back"
        assert change == wanted, here
    assert sum(found.counts().values()) == len(said)
    assert min(found.counts().values()) > 0, "the case shows only some of the classes"
    at = found.codes.tolist().index(int(circuit.kept[0]))
    assert found.scores[at].tolist() == pytest.approx(
        [float(s.flatten()[circuit.kept[0]]) for s in scores]
    )


def test_nothing_edited_is_all_kept() -> None:
    circuit = random_circuit(LAYOUT, 30)
    circuit = circuit.top(30)
    base = three(circuit)[0]
    found = diff(circuit, Scores.of(base, base, base, circuit.edge_mask))
    assert found.counts() == {"kept": len(circuit), "gone": 0, "back": 0, "new": 0}


def test_scores_are_read_back_and_refused_where_they_fit_nothing(tmp_path: Path) -> None:
    circuit = random_circuit(LAYOUT, 30)
    scores = Scores.of(*three(circuit), circuit.edge_mask)
    scores.save(tmp_path / "edges.safetensors")
    again = Scores.load(tmp_path / "edges.safetensors")
    assert torch.equal(again.codes, scores.codes) and torch.equal(again.values, scores.values)
    with pytest.raises(MismatchError, match="another model"):
        diff(circuit, Scores(scores.codes + 10**6, scores.values))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_code_that_changes_is_found_where_it_is(name: str) -> None:
    subject = family(name)
    parameter = subject.quantized_names[3]
    value = subject.parameters[parameter].data
    rows = torch.arange(0, value.shape[0], 2)  # alternate rows: a tiny move, and across zero
    after = value + 1e-9
    after[rows] = -value[rows]
    where = (after != value).flatten()
    edit = Edit({parameter: (where, after.flatten()[where])}, "half")
    found = changed_codes(subject, edit, parameter)
    whole = quant.report(subject, edit).all
    assert int(found.sum()) == whole.changed > 0
    others = torch.ones(len(value), dtype=torch.bool)
    others[rows] = False
    assert not found[others].any()  # a sign changes no block's absmax
    assert found[rows].float().mean() > 0.8  # all but those near zero


@pytest.mark.parametrize("name", FAMILIES)
def test_the_weights_of_a_node_are_its_slices(name: str) -> None:
    subject = family(name)
    layout = graph_of(subject)
    (line,) = slices(subject, 1, "o")
    (key,) = slices(subject, 1, "k")
    moves: dict[str, Tensor] = {}
    for lines, unit in ((line, 1), (key, 0)):
        touched = moves.setdefault(lines.name, torch.zeros(subject.parameters[lines.name].shape))
        touched.index_fill_(lines.axis, lines.of(torch.tensor([unit])), 1)
    edit = edit_at(subject, {n: m.bool() for n, m in moves.items()})
    found = moved_by_node(subject, edit)
    other = 1 - line.axis
    own = line.width * subject.parameters[line.name].shape[other]
    keys = key.width * subject.parameters[key.name].shape[1 - key.axis]
    shared = layout.n_heads // layout.n_kv_heads
    expected = {layout.source_name(layout.head(1, i)): keys for i in range(shared)}
    node = layout.source_name(layout.head(1, 1))
    expected[node] = expected.get(node, 0) + own
    assert {n: moved for n, (moved, _) in found.items()} == expected
    assert all(0 < changed <= moved for moved, changed in found.values())


def edit_at(subject: Subject, where: dict[str, Tensor]) -> Edit:
    """An edit that turns the sign of some weights."""
    changes = {}
    for name, mask in where.items():
        value = subject.parameters[name].data
        assert bool((value[mask] != 0).all())
        changes[name] = (mask.flatten(), -value[mask])
    return Edit(changes, "turned")


def test_marks_are_read_back_and_checked() -> None:
    marks = Marks(("m0",), {"early": ("m0", "a0.h1")}, {"m0": "first"}, {"a0.h1": "copies"})
    assert Marks.from_json(marks.to_json()) == marks
    marks.check({"m0", "a0.h1"})
    with pytest.raises(BadInputError, match=r"no node 'a0\.h1'"):
        marks.check({"m0"})
    with pytest.raises(BadInputError, match="twice"):
        Marks(groups={"a": ("m0",), "b": ("m0",)}).check({"m0"})
    with pytest.raises(BadInputError, match="2,000 characters, not 2,001"):
        Marks(notes={"m0": "x" * 2001}).check({"m0"})
    with pytest.raises(BadInputError, match="not 0"):
        Marks(labels={"m0": ""}).check({"m0"})


def test_a_circuit_of_some_edges_has_those_and_no_measured_faithfulness() -> None:
    circuit = random_circuit(LAYOUT, 30)
    some = circuit.only(circuit.order[[20, 3, 11]])
    assert some.kept.tolist() == circuit.order[[3, 11, 20]].tolist()
    assert some.faithfulness is None and some.interval is None
    with pytest.raises(BadInputError, match="code lies"):
        circuit.only(torch.tensor([10**7]))
    absent = (~LAYOUT.edges).flatten().nonzero()[0]
    with pytest.raises(BadInputError, match="no edge"):
        circuit.only(absent)
