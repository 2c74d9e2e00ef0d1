"""Edges as files: each is read by another program's reader, and the numbers are the circuit's."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import networkx as nx
import pytest
import torch

from experiments.benchmarks.canvas import random_circuit
from mansu.circuits.edges import Edges
from mansu.circuits.graph import Graph
from mansu.errors import BadInputError, MismatchError

CIRCUIT = random_circuit(Graph(3, 4, 2, False), 40).top(40)


def test_json_reads_back() -> None:
    edges = Edges.of(CIRCUIT, "a run")
    assert Edges.from_json(edges.to_json()) == edges
    assert edges.codes == tuple(CIRCUIT.kept.tolist())
    assert edges.faithfulness == CIRCUIT.faithfulness
    assert torch.equal(edges.on(CIRCUIT.top(5)).kept, CIRCUIT.kept)
    with pytest.raises(MismatchError, match="other weights"):
        edges.on(random_circuit(Graph(2, 4, 2, False), 5))


def test_all_edges_between_nodes_are_those_that_join_them() -> None:
    layout = CIRCUIT.layout
    some = CIRCUIT.between({"embed", "a1.h2", "logits"})
    names = {(a, b) for a, b, _ in Edges.of(some).named()}
    group = 2 // (layout.n_heads // layout.n_kv_heads)
    into = {"a1.h2<q>", f"a1.kv{group}<k>", f"a1.kv{group}<v>"}
    wanted = {("embed", d) for d in into} | {("embed", "logits"), ("a1.h2", "logits")}
    assert names == wanted


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"codes": [-1]}, {"scores": []}, {"layout": {}}, {"codes": "abc"}, {"run": 3}],
)
def test_other_json_is_refused_in_one_sentence(change: dict[str, Any]) -> None:
    value = {**json.loads(Edges.of(CIRCUIT).to_json()), **change}
    with pytest.raises(BadInputError, match="export it again"):
        Edges.from_json(json.dumps(value))
    with pytest.raises(BadInputError, match="no file of edges"):
        Edges.from_json("[]")


def test_csv_and_graphml_hold_every_edge() -> None:
    edges = Edges.of(CIRCUIT)
    rows = list(csv.DictReader(io.StringIO(edges.to_csv())))
    assert [float(row["score"]) for row in rows] == pytest.approx(CIRCUIT.scores.tolist())
    assert rows[0]["from"] == CIRCUIT.layout.source_name(int(CIRCUIT.edges[0, 0]))
    read = nx.parse_graphml(edges.to_graphml())
    wanted = CIRCUIT.graph()
    assert set(read) == set(wanted)
    for begin, end, about in wanted.edges(data=True):
        parallel = read.get_edge_data(begin, end)
        found = {edge["into"]: edge["score"] for edge in parallel.values()}
        assert found == pytest.approx(about["inputs"], rel=1e-5)
