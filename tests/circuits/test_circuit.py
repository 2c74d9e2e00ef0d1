"""Circuits: real patching against plain hooks, minimality on a trained model, masks, reports."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networkx as nx
import pytest
import torch
from devices import moved, needs_cuda
from families import FAMILIES, family, random_pairs
from oracles import alone, branching_pairs, prompts, seen
from scipy.stats import norm
from scipy.stats import t as student
from torch import Tensor

from mansu import subjects, tasks
from mansu.circuits.attribution import Attribution, attribute
from mansu.circuits.circuit import Circuit, as_mask
from mansu.circuits.graph import Graph, graph_of
from mansu.circuits.mask import Mask
from mansu.circuits.metric import metric_values
from mansu.circuits.parameters import mask_of, parameter_mask
from mansu.circuits.patching import Patched, _Pass, activation_patching, faithfulness_of
from mansu.circuits.record import packed, record
from mansu.circuits.search import _Search, find_circuit, minimal_circuit
from mansu.circuits.trust import NONE_LEFT, Trust, ablate, criteria, stability, trust
from mansu.errors import BadInputError, MansuError, MismatchError
from mansu.subjects.blocks import Block
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.subjects.weights import slices
from mansu.tasks.facts import Task
from mansu.tasks.tokens import Pairs


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("metric", ("logit_difference", "kl"))
def test_all_edges_are_the_clean_run_and_none_the_corrupt_run(name: str, metric: Any) -> None:
    subject, pairs = family(name), branching_pairs()
    patched = Patched(subject, pairs, metric)
    edges = patched.graph.edges
    known = patched.values(torch.stack([edges, torch.zeros_like(edges)]))
    assert torch.equal(known, torch.stack([patched.clean, patched.corrupt]))  # nothing is run
    whole, none = patched._measured(torch.stack([edges, torch.zeros_like(edges)]))
    assert torch.allclose(whole, patched.clean, atol=1e-5)
    assert torch.allclose(none, patched.corrupt, atol=1e-5)
    assert not torch.allclose(whole, none, atol=1e-3)
    with torch.no_grad():
        clean, corrupt = (
            torch.stack([alone(subject, row) for row in rows])
            for rows in zip(*prompts(pairs), strict=True)
        )
    reference = clean.log_softmax(-1)
    for found, logits in ((patched.clean, clean), (patched.corrupt, corrupt)):
        wanted = metric_values(metric, logits, pairs, reference)
        assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("pairs", (random_pairs, branching_pairs))
@pytest.mark.parametrize("name", FAMILIES)
def test_cutting_a_destination_equals_holding_it_at_its_corrupt_value(
    name: str, pairs: Any
) -> None:
    subject, pairs = family(name), pairs()
    layout = graph_of(subject)
    block, start = Block(subject, 1), layout.attention_inputs(1).start
    corrupt = [seen(subject, row, *block.hook_qkv, block.hook_mlp_in) for _, row in prompts(pairs)]
    patched = Patched(subject, pairs)

    def held(name: str, head: int | None) -> Tensor:
        """The metric of every pair alone with all of a hook's value, or one head's, corrupt."""

        def change(value: Tensor, new: Tensor) -> Tensor:
            value = value.clone()
            value[:, :, slice(None) if head is None else head] = (
                new if head is None else new[:, head]
            )
            return value

        with torch.no_grad():
            logits = [
                alone(subject, clean, [(name, lambda v, hook, new=new[name]: change(v, new))])
                for (clean, _), new in zip(prompts(pairs), corrupt, strict=True)
            ]
        return metric_values("logit_difference", torch.stack(logits), pairs)

    h, g = layout.n_heads, layout.n_kv_heads
    q, k, v = block.hook_qkv
    expected = [held(q, 2), held(k, 1), held(v, 0), held(block.hook_mlp_in, None)]
    cuts = [start + 2, start + h + 1, start + h + g, layout.mlp_input(1)]
    masks = layout.edges.repeat(len(cuts), 1, 1)
    for mask, destination in zip(masks, cuts, strict=True):
        mask[:, destination] = False
    found = patched.values(masks)
    assert torch.allclose(found, torch.stack(expected), atol=1e-4)
    assert (found - patched.clean).abs().max() > 1e-3


def random_masks(subject: Subject, shares: tuple[float, ...]) -> Tensor:
    """Random circuits, each of about a share of all edges, before pruning."""
    generator = torch.Generator().manual_seed(1)
    edges = graph_of(subject).edges
    return torch.stack([edges & (torch.rand(edges.shape, generator=generator) < s) for s in shares])


@pytest.mark.parametrize("pairs", (random_pairs, branching_pairs))
def test_packs_of_pairs_change_nothing(pairs: Any) -> None:
    subject, pairs = family("gemma2"), pairs()
    masks = random_masks(subject, (0.7,) * 6)
    whole = Patched(subject, pairs).values(masks)
    small = Patched(subject, pairs, memory=1)
    assert len(small.parts) == len(pairs)
    assert torch.allclose(small.values(masks), whole, atol=1e-5)
    rows = [i for i, (clean, corrupt) in enumerate(prompts(pairs)) if not clean.equal(corrupt)]
    each = [Patched(subject, pairs.select([i])).values(masks)[:, 0] for i in rows]
    assert torch.allclose(torch.stack(each, 1), whole[:, rows], atol=1e-5)


def own_forwards(subject: Subject) -> dict[str, Any]:
    """The modules that have a ``forward`` of their own rather than their class's."""
    modules = subject.bridge.named_modules()
    return {name: m.__dict__["forward"] for name, m in modules if "forward" in m.__dict__}


@pytest.mark.parametrize("name", FAMILIES)
def test_skipping_what_nothing_reads_changes_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, pairs = family(name), branching_pairs()
    layout, before = graph_of(subject), own_forwards(subject)
    masks = [
        *random_masks(subject, (0.5, 0.2, 0.1)),
        *(layout.edges.clone() for _ in range(3)),
        torch.zeros_like(layout.edges),
    ]
    masks[3][layout.mlp(0)] = False  # one MLP of no use, one attention, and all but the embedding
    masks[4][layout.head(1) : layout.mlp(1)] = False
    masks[5][1:] = False
    masks[6][0, layout.logits] = True
    skipped: list[int] = []
    skipping = _Pass.skipping

    def counting(run: _Pass) -> Any:
        found = skipping(run)

        class Counted:
            def __enter__(self) -> None:
                found.__enter__()
                skipped.append(len(own_forwards(subject)) - len(before))

            def __exit__(self, *error: Any) -> Any:
                return found.__exit__(*error)

        return Counted()

    patched = Patched(subject, pairs)
    monkeypatch.setattr(_Pass, "skipping", counting)
    some = [patched.values(mask[None]) for mask in masks]  # one by one: each skips its own
    assert max(skipped) == 2 * layout.n_layers and 1 in skipped
    assert own_forwards(subject) == before
    monkeypatch.setattr(_Pass, "skipping", lambda run: nullcontext())
    every = [patched.values(mask[None]) for mask in masks]
    assert torch.allclose(torch.cat(some), torch.cat(every), atol=1e-6)


def test_a_run_that_fails_skips_nothing_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, pairs = family("gpt2"), random_pairs()
    logits = alone(subject, pairs.clean[0])
    before, during = own_forwards(subject), []
    mask = torch.zeros_like(graph_of(subject).edges)
    mask[0, graph_of(subject).logits] = True
    patched = Patched(subject, pairs)

    def fail(run: _Pass, value: Tensor) -> Tensor:
        during.append(own_forwards(subject))
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="in the middle"):
        patch.setattr(_Pass, "_final", fail)
        patched.values(mask[None])
    assert len(during[0]) > len(before) and own_forwards(subject) == before
    assert torch.equal(alone(subject, pairs.clean[0]), logits)
    assert patched.values(mask[None]).shape == (1, len(pairs))


@pytest.mark.parametrize("name", ("llama", "pythia"))
def test_pruning_keeps_exactly_the_edges_on_a_path(name: str) -> None:
    layout = graph_of(family(name))
    generator = torch.Generator().manual_seed(5)
    kept = layout.edges & (torch.rand(layout.edges.shape, generator=generator) < 0.4)
    graph = nx.DiGraph()
    for source, destination in kept.nonzero().tolist():
        graph.add_edge(("s", source), ("d", destination))
    for destination, source in layout.feeds.nonzero().tolist():
        graph.add_edge(("d", destination), ("s", source))
    end = ("d", layout.logits)
    graph.add_nodes_from([("s", 0), end])
    alive = (nx.descendants(graph, ("s", 0)) | {("s", 0)}) & (nx.ancestors(graph, end) | {end})
    expected = torch.zeros_like(kept)
    for source, destination in kept.nonzero().tolist():
        expected[source, destination] = ("s", source) in alive and ("d", destination) in alive
    assert torch.equal(layout.prune(kept), expected)
    assert 0 < int(expected.sum()) < int(kept.sum())
    patched = Patched(family(name), random_pairs())
    assert torch.equal(patched.values(kept[None]), patched.values(expected[None]))


@pytest.mark.parametrize("n", (1, 2, 90, 5000))
@pytest.mark.parametrize("curve", ("line", "late", "early", "noisy"))
def test_the_crossing_is_found_to_a_hundredth(n: int, curve: str) -> None:
    """Of curves that a straight line fits, and of those that it does not."""
    layout: Any = SimpleNamespace(n_sources=1, n_destinations=n)
    shares = torch.linspace(0, 1, n + 1)
    rise = {
        "line": shares,
        "late": shares**40,
        "early": shares ** (1 / 40),
        "noisy": shares + 0.3 * torch.sin(torch.arange(n + 1.0)) * (shares < 1),
    }[curve]
    runs: list[int] = []

    def values(masks: Tensor) -> Tensor:
        sizes = masks.flatten(1).sum(1)
        runs.extend(sizes.tolist())
        return rise[sizes][:, None]

    patched: Any = SimpleNamespace(
        graph=layout, values=values, faithfulness=lambda found: found.mean(1)
    )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(2))
    search = _Search(patched, order, 0.85, 1, lambda step: None)
    size = search.crossing()
    assert search.measured[size] >= 0.85
    below = max((tried for tried in search.measured if tried < size), default=0)
    assert below == 0 or search.measured[below] < 0.85
    assert size - below <= max(1, size // 100)
    assert len(runs) == len(set(runs)) <= 12 + 3 * 12  # no size twice; the curve, then few rounds
    assert torch.equal(as_mask(layout, order[:size]).sum(), torch.tensor(size))


@pytest.fixture(scope="module")
def found(tiny: Subject, tiny_task: tasks.Task) -> tuple[Pairs, Attribution, Circuit]:
    pairs = tasks.pairs(tiny_task, tiny, n=12)
    scores = attribute(tiny, pairs)
    return pairs, scores, minimal_circuit(tiny, pairs, scores, tau=0.85)


def test_minimal_circuit_of_a_trained_model(tiny: Subject, found: Any) -> None:
    pairs, scores, circuit = found
    patched = Patched(tiny, pairs)
    measured = patched.values(circuit.edge_mask[None])
    assert float(patched.faithfulness(measured)) == pytest.approx(circuit.faithfulness, abs=1e-4)
    assert circuit.faithfulness >= 0.85
    assert len(circuit) < 0.5 * circuit.layout.n_edges
    low, high = circuit.interval
    assert circuit.facts == len(set(pairs.facts)) < len(pairs)
    assert low <= circuit.faithfulness <= high
    assert torch.equal(circuit.layout.prune(circuit.edge_mask), circuit.edge_mask)  # no orphan
    assert torch.equal(circuit.scores, scores.scores[circuit.edges[:, 0], circuit.edges[:, 1]])
    generator = torch.Generator().manual_seed(0)
    others = circuit.order[torch.randperm(len(circuit.order), generator=generator)[: len(circuit)]]
    mask = torch.zeros(circuit.edge_mask.numel(), dtype=torch.bool)
    mask[others] = True
    random = patched.values(mask.view_as(circuit.edge_mask)[None])
    assert float(patched.faithfulness(random)) < 0.5  # as many random edges do not do the task
    assert circuit.curve[-1, 0] == circuit.layout.n_edges
    assert circuit.curve[-1, 1] == pytest.approx(1, abs=1e-3)


def test_slider(found: Any) -> None:
    circuit = found[2]
    assert circuit.at(circuit.faithfulness) is circuit
    assert circuit.at(0.999).faithfulness >= 0.999
    few = circuit.top(int(circuit.curve[3, 0]))
    assert few.faithfulness == pytest.approx(float(circuit.curve[3, 1]))
    unmeasured = next(n for n in range(1, 10**6) if n not in circuit.curve[:, 0].int().tolist())
    assert circuit.top(unmeasured).faithfulness is None
    assert len(circuit.top(0)) == 0 and len(circuit.top(10**6)) == circuit.layout.n_edges


def test_fewer_edges_than_none_and_nodes_that_are_not_there_are_refused(found: Any) -> None:
    circuit = found[2]
    with pytest.raises(BadInputError, match="no -1 edges"):
        circuit.top(-1)
    logits = circuit.layout.n_sources
    assert circuit.node(logits)["name"] == "logits"
    for index in (-1, logits + 1, 10**6):
        with pytest.raises(BadInputError, match=f"no node {index}"):
            circuit.node(index)


def test_networkx_graph(found: Any) -> None:
    circuit = found[2]
    graph = circuit.graph()
    assert nx.is_directed_acyclic_graph(graph)
    assert {"embed", "logits"} <= set(graph)
    for node, values in graph.nodes.items():
        assert values["name"] == node and values["kind"] in ("embedding", "head", "mlp", "logits")
        assert nx.has_path(graph, "embed", node) and nx.has_path(graph, node, "logits")
    for _, _, values in graph.edges(data=True):
        assert values["score"] == pytest.approx(sum(values["inputs"].values()), abs=1e-6)
        assert values["sign"] == (values["score"] > 0) - (values["score"] < 0)
    total = sum(value["score"] for value in graph.nodes.values())
    assert total == pytest.approx(float(circuit.scores.sum()), rel=1e-4)


def test_saves_and_loads(tiny: Subject, found: Any, tmp_path: Any) -> None:
    _, scores, circuit = found
    mask = parameter_mask(tiny, circuit, scores, max_fraction=0.1)
    circuit.save(tmp_path)
    mask.save(tmp_path)
    again, mask_again = Circuit.load(tmp_path), Mask.load(tmp_path)
    assert torch.equal(again.kept, circuit.kept) and torch.equal(again.curve, circuit.curve)
    assert (again.faithfulness, again.interval) == (circuit.faithfulness, circuit.interval)
    assert mask_again.size == mask.size and mask_again.mass == mask.mass
    assert all(torch.equal(mask_again.dense(n), mask.dense(n)) for n in mask.names)
    assert mask_again.candidates is None
    more = parameter_mask(tiny, circuit, scores, share=1, max_fraction=0.3)
    replace(mask, candidates=more).save(tmp_path)
    again = Mask.load(tmp_path)
    assert again.size == mask.size and again.candidates is not None
    assert again.candidates.mass == more.mass > mask.mass
    for name in more.names:
        assert torch.equal(again.candidates.dense(name), more.dense(name))


def test_a_masks_candidates_are_more_of_the_circuit(
    tiny: Subject, found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, scores, circuit = found
    assert mask_of(tiny, circuit, scores, max_fraction=0.02).candidates is None  # of a toy
    monkeypatch.setattr(Subject, "is_toy", False)
    mask = mask_of(tiny, circuit, scores, max_fraction=0.02)
    small = parameter_mask(tiny, circuit, scores, max_fraction=0.02)
    more = mask.candidates
    assert more is not None and mask.size == small.size < more.size <= 0.1 * mask.total
    wider = next(circuit.top(int(n)) for n, share, *_ in circuit.curve if share >= 0.95)
    used = parameter_mask(tiny, wider, scores, share=1, max_fraction=1)
    assert used.size > more.size
    for name in more.names:
        assert name not in mask.names or bool((mask.dense(name) <= more.dense(name)).all())
        assert bool((more.dense(name) <= used.dense(name)).all())


def test_mask_keeps_to_its_budget_and_to_the_circuit(tiny: Subject, found: Any) -> None:
    _, scores, circuit = found
    small = parameter_mask(tiny, circuit, scores, max_fraction=0.02)
    large = parameter_mask(tiny, circuit, scores, max_fraction=0.5)
    assert 0 < small.fraction <= 0.02 and small.size < large.size and small.mass < large.mass
    assert large.mass >= 0.9
    for mask in (small, large):
        tensors = mask.tensors()
        assert sum(int(t.sum()) for t in tensors.values()) == mask.size
        assert all(tiny.parameters[n].shape == t.shape for n, t in tensors.items())
    assert all(bool((large.dense(n) | ~small.dense(n)).all()) for n in small.names)
    with pytest.raises(MansuError, match="raise max_fraction"):
        parameter_mask(tiny, circuit, scores, max_fraction=1e-6)


def test_ablating_the_mask_hurts_more_than_random_masks(tiny: Subject, found: Any) -> None:
    pairs, scores, circuit = found
    before = {n: p.clone() for n, p in tiny.parameters.items()}
    mask = parameter_mask(tiny, circuit, scores, max_fraction=0.05)
    result = ablate(tiny, pairs, circuit, mask, draws=8)
    assert result.random_sizes == (mask.size,) * 8
    assert result.whole - result.masked > 2 * float((result.whole - result.random).mean())
    assert all(torch.equal(p, before[n]) for n, p in tiny.parameters.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_slices_are_the_weights_of_that_head_or_neuron(name: str) -> None:
    subject, pairs = family(name), random_pairs()
    layout = graph_of(subject)

    (part,) = packed(subject, pairs)

    def run() -> Any:
        kept = ("qkv", "attention", "neurons", "mlp")
        return record(subject, layout, part, part.clean, kept)

    def without(kind: str, unit: int) -> Any:
        changes = {}
        gone = {}
        for part in slices(subject, 1, kind):
            weight = gone.setdefault(part.name, torch.zeros_like(subject.parameters[part.name]))
            weight.index_fill_(part.axis, part.of(torch.tensor([unit])), 1)
        for weight, mask in gone.items():
            where = mask.flatten().nonzero()[:, 0]
            changes[weight] = (where, torch.zeros(len(where)))
        with Edit(changes).applied(subject):
            return run()

    clean = run()
    h, g = layout.n_heads, layout.n_kv_heads
    for kind, start in (("q", 0), ("k", h), ("v", h + g)):
        moved = (without(kind, 1).qkv[1] - clean.qkv[1]).abs().amax((0, 2)) > 1e-6
        assert moved.nonzero()[:, 0].tolist() == [start + 1]
    assert not torch.allclose(without("o", 1).attention[1], clean.attention[1])
    neuron = without("neuron", 3)
    moved = (neuron.neurons[1] - clean.neurons[1]).abs().amax(0) > 1e-6
    assert moved.nonzero()[:, 0].tolist() in ([3], [])  # [] where its bias alone is left
    assert not torch.allclose(neuron.mlp[1], clean.mlp[1])


def test_activation_patching_of_some_edges(tiny: Subject, found: Any) -> None:
    pairs, _, circuit = found
    some = circuit.kept[:3]
    exact = activation_patching(tiny, pairs, edges=some)
    assert exact.flatten()[some].abs().min() > 0
    assert int((exact != 0).sum()) == 3


def test_stability_and_criteria(tiny: Subject, found: Any) -> None:
    pairs, _, circuit = found
    stable = stability(tiny, pairs, 40, groups=4, resamples=50)
    assert 0.3 < stable.interval[0] <= stable.overlap <= stable.interval[1] <= 1
    assert float(stable.frequency.mean()) > 0.5
    alike = replace(pairs.select([0, 0, 0, 0]), facts=tuple("abcd"))
    assert stability(tiny, alike, 40, groups=4, resamples=5).overlap == 1
    tested = criteria(tiny, pairs, circuit, subsets=3, nodes=50)
    assert tested.completeness.shape == (3, 2) and len(tested.nodes) == len(tested.minimality)
    assert float(tested.minimality.max()) > 0.1
    whole = criteria(tiny, pairs, circuit.top(circuit.layout.n_edges), subsets=3, nodes=2)
    assert whole.incompleteness < 1e-4  # the whole model is complete


def test_faithfulness_is_bootstrapped_over_facts(tiny: Subject, tiny_task: Task) -> None:
    pairs = tasks.pairs(tiny_task, tiny, n=24)
    fact = torch.from_numpy(pairs.clusters)
    n = int(fact.max()) + 1
    assert 2 < n < len(pairs) and len(fact.bincount().unique()) > 1  # not each asked as often
    patched = Patched(tiny, pairs)
    scores = attribute(tiny, pairs, steps=1).scores.abs() * patched.graph.edges
    masks = torch.stack([scores >= scores.flatten().topk(k).values[-1] for k in (5, 60)])
    values = patched.values(masks)
    shares = []
    for drawn in torch.randint(n, (1000, n), generator=torch.Generator().manual_seed(3)):
        rows = torch.cat([(fact == f).nonzero()[:, 0] for f in drawn])
        whole, corrupt = patched.clean[rows].mean(), patched.corrupt[rows].mean()
        shares.append((values[:, rows].mean(1) - corrupt) / (whole - corrupt))
    wanted = torch.stack(shares).double().quantile(torch.tensor([0.025, 0.975]).double(), 0).T
    value = patched.faithfulness(values)[:, None]
    by = (n / (n - 1)) ** 0.5 * float(student.ppf(0.975, n - 1) / norm.ppf(0.975))
    found = patched.intervals(values, seed=3)
    assert torch.allclose(found.double(), value + by * (wanted - value), atol=1e-5)


def in_templates(every: Pairs) -> list[tuple[Pairs, Pairs]]:
    """Six facts in three templates alike, and in one; with and without names."""
    once = every.select([int((every.clusters == f).argmax()) for f in range(6)])
    both = once.select([*range(6)] * 3), once
    again, single = (replace(pairs, facts=()) for pairs in both)  # which the answers say
    return [both, (again, single)]


def test_templates_are_no_further_evidence(tiny: Subject, tiny_task: Task) -> None:
    for thrice, once in in_templates(tasks.pairs(tiny_task, tiny)):
        few, many = Patched(tiny, once), Patched(tiny, thrice)
        scores = attribute(tiny, once, steps=1).scores.abs() * few.graph.edges
        mask = (scores >= scores.flatten().topk(20).values[-1])[None]
        wanted, found = (p.intervals(p.values(mask)) for p in (few, many))
        assert torch.allclose(found, wanted, atol=1e-5) and float(wanted.diff()) > 0.01


def test_stability_resamples_facts(tiny: Subject, tiny_task: Task) -> None:
    for both in in_templates(tasks.pairs(tiny_task, tiny)):
        again, stable = (stability(tiny, p, 40, steps=1, resamples=50) for p in both)
        assert again.overlap == pytest.approx(stable.overlap, abs=0.01) and stable.overlap < 0.99
        assert again.interval == pytest.approx(stable.interval, abs=0.03)


def test_of_one_fact_a_circuit_has_no_interval(
    tiny: Subject, tiny_task: Task, tmp_path: Path
) -> None:
    every = tasks.pairs(tiny_task, tiny)
    pairs = every.select((every.clusters == 0).nonzero()[0])
    assert len(pairs) > 1
    scores = attribute(tiny, pairs)
    circuit = find_circuit(tiny, pairs, scores, max_fraction=0.1)
    patched = Patched(tiny, pairs)
    assert faithfulness_of(patched, circuit.edge_mask) == (
        pytest.approx(circuit.faithfulness, abs=1e-4),
    )
    circuit.save(tmp_path)
    for each in (circuit, Circuit.load(tmp_path)):
        assert each.facts == 1 and each.interval is None and each.curve.shape[1] == 2
        assert "(one fact alone)" in each.table().caption and each.at(0.9).interval is None
    assert circuit.mask is not None
    found = trust(tiny, pairs, circuit, circuit.mask, pairs)
    assert found.overlap is None and found.always is None and found.facts == 1
    assert found.held_out_faithfulness is not None and len(found.held_out_faithfulness) == 1
    assert str(found.table()).count("(one fact alone)") == 2
    assert Trust.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_what_the_held_out_pairs_are_is_told(tiny: Subject, found: Any) -> None:
    pairs, scores, circuit = found
    mask = mask_of(tiny, circuit, scores, max_fraction=0.1)
    halves = pairs.clusters < 4
    mine, others = (pairs.select(half.nonzero()[0]) for half in (halves, ~halves))
    told = trust(tiny, mine, circuit, mask, others, steps=1)
    assert (told.facts, told.held_out_facts) == (4, len(set(others.facts)))
    assert (
        told.held_out
        == f"{len(others)} pairs of {told.held_out_facts} facts that it was not chosen on"
    )
    assert "best edges of resampled facts" in str(told.table())
    told = trust(tiny, mine, circuit, mask, pairs, steps=1)
    assert told.held_out_facts is None and "not all of other facts" in told.held_out
    old = {k: v for k, v in told.to_json().items() if k not in ("facts", "held_out_facts")}
    before = Trust.from_json(old)
    assert before.held_out == f"{len(pairs)} pairs of other rows, whatever facts they ask for"
    assert "best edges of resampled pairs" in str(before.table())
    alone = trust(tiny, pairs, circuit, mask, None, steps=1)
    assert alone.held_out_pairs == 0 and alone.held_out_faithfulness is None
    assert ["faithfulness on other pairs", NONE_LEFT] in map(list, alone.table().rows)


def test_refuses_bad_input(tiny: Subject, found: Any) -> None:
    pairs, scores, _ = found
    with pytest.raises(MansuError, match=r"tau must lie in \(0, 1\], not 1.5"):
        minimal_circuit(tiny, pairs, scores, tau=1.5)
    other = attribute(family("llama"), random_pairs(), steps=1)
    with pytest.raises(MismatchError, match="is of 'llama' with other weights than 'tiny'"):
        minimal_circuit(tiny, pairs, other)
    with pytest.raises(MismatchError, match="made with other clean–corrupt pairs"):
        minimal_circuit(tiny, pairs.select(range(6)), scores)
    for one in ([0], [0, 0, 0]):  # a fact's templates are no further facts
        with pytest.raises(MansuError, match="pairs of at least two facts"):
            stability(tiny, pairs.select(one), 5)


def test_known_architectures_are_those_tested() -> None:
    tested = {type(family(name).model).__name__ for name in FAMILIES}
    assert tested == set(subjects.FAMILIES)
    assert isinstance(graph_of(family("pythia")), Graph) and graph_of(family("pythia")).parallel


@needs_cuda
def test_a_gpu_finds_the_circuit_that_the_processor_finds(tiny: Subject, tiny_task: Task) -> None:
    here, there = moved(tiny, "cpu"), moved(tiny, "cuda")
    pairs = tasks.pairs(tiny_task, tiny, n=32)
    scores = [attribute(subject, pairs) for subject in (here, there)]
    circuits = [
        find_circuit(subject, pairs, each, max_fraction=0.1)
        for subject, each in zip((here, there), scores, strict=True)
    ]
    wanted, found = circuits
    one, other = set(found.kept.tolist()), set(wanted.kept.tolist())
    print(f"{len(one)} and {len(other)} edges, {len(one & other)} of them in both")
    assert len(one & other) >= 0.9 * len(one | other)  # edges of near equal scores change places
    assert found.clean == pytest.approx(wanted.clean, rel=1e-4)
    assert found.corrupt == pytest.approx(wanted.corrupt, rel=1e-4)
    assert all(each.faithfulness is not None and each.faithfulness >= 0.85 for each in circuits)
    # Of the same edges both measure the same.
    again = find_circuit(there, pairs, scores[0], max_fraction=0.1)
    sizes, shares = again.curve[:, 0].tolist(), again.curve[:, 1].tolist()
    known = dict(zip(wanted.curve[:, 0].tolist(), wanted.curve[:, 1].tolist(), strict=True))
    shared = [(share, known[n]) for n, share in zip(sizes, shares, strict=True) if n in known]
    assert len(shared) >= 12
    assert all(mine == pytest.approx(theirs, abs=1e-3) for mine, theirs in shared)
    assert again.mask is not None and wanted.mask is not None
    assert set(again.mask.names) & set(wanted.mask.names)
