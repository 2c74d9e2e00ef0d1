"""CAD is a bounded divergence and behaves on its controls."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mansu import cad, tasks
from mansu.attribution import attribute
from mansu.circuit import minimal_circuit, parameter_mask
from mansu.evaluate import measure
from mansu.graph import graph_of
from mansu.subjects import Subject
from mansu.tasks import Pairs, Task

scores = st.lists(st.floats(-10, 10, width=32), min_size=6, max_size=6).map(torch.tensor)


@pytest.fixture(scope="module")
def pairs(tiny: Subject, tiny_task: Task) -> Pairs:
    return tasks.pairs(tiny_task, tiny, n=16)


@pytest.fixture(scope="module")
def base(tiny: Subject, pairs: Pairs) -> Tensor:
    return cad.grouped_scores(tiny, pairs, steps=3, groups=4)


@given(scores, scores, st.floats(0.01, 100))
@settings(deadline=None)
def test_divergence_is_bounded_symmetric_and_blind_to_scale(
    p: Tensor, q: Tensor, factor: float
) -> None:
    value = cad.divergence(p, q)
    assert 0 <= value <= 1
    assert value == pytest.approx(cad.divergence(q, p), abs=1e-9)
    assert cad.divergence(p, p) == 0
    if float(p.abs().sum()) > 1e-3 and float(q.abs().sum()) > 1e-3:
        assert value == pytest.approx(cad.divergence(p, factor * q), abs=1e-4)


def test_divergence_of_disjoint_scores_is_one_and_of_a_known_case_is_right() -> None:
    assert cad.divergence(torch.tensor([1.0, 0, 0]), torch.tensor([0, -2.0, 0])) == 1
    # p = (1, 0), q = (1/2, 1/2): 1/2 log2(4/3) + 1/4 log2(2/3) + 1/4 log2(2)
    wanted = 0.5 * 0.4150375 + 0.25 * -0.5849625 + 0.25
    found = cad.divergence(torch.tensor([3.0, 0]), torch.tensor([1.0, 1.0]))
    assert found == pytest.approx(wanted, abs=1e-6)


def test_groups_add_up_to_the_attribution(tiny: Subject, pairs: Pairs, base: Tensor) -> None:
    whole = attribute(tiny, pairs, steps=3).scores * len(pairs)
    assert torch.allclose(base.sum(0), whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


def test_signals_of_the_unedited_model_are_its_scores(
    tiny: Subject, pairs: Pairs, base: Tensor
) -> None:
    signals = cad.Signals(tiny, pairs, steps=3, groups=4)
    assert torch.allclose(signals(), base, rtol=1e-3, atol=1e-4 * float(base.abs().max()))
    assert cad.cad(base, signals()).value < 1e-6


def test_controls_behave(tiny: Subject, tiny_task: Task, pairs: Pairs, base: Tensor) -> None:
    forget = tasks.examples(tiny_task, tiny, "forget")
    retain = tasks.examples(tiny_task, tiny, "retain")
    kept = measure(tiny, retain).accuracy
    signals = cad.Signals(tiny, pairs, steps=3, groups=4)
    edit = cad.suppressor(tiny, forget, retain, accuracy=0.5)
    with edit.applied(tiny):
        assert measure(tiny, forget).accuracy == pytest.approx(edit.meta["accuracy"])
        assert edit.meta["accuracy"] <= 0.5
        assert measure(tiny, retain).accuracy >= kept - 0.05
        suppressed = signals()
    # It only changes what the last MLP writes, which only the logits read.
    graph = graph_of(tiny)
    changed = (suppressed - base).abs().sum(0) > 1e-3 * base.abs().max()
    last = graph.mlp(graph.n_layers - 1)
    assert changed[last, graph.logits]
    changed[last, graph.logits] = False
    assert not bool(changed.any())

    circuit = minimal_circuit(tiny, pairs, attribute(tiny, pairs), tau=0.85)
    mask = parameter_mask(tiny, circuit, attribute(tiny, pairs), max_fraction=0.1).tensors()
    with cad.ablation(tiny, mask).applied(tiny):
        ablated = signals()
    assert cad.cad(base, ablated).value > cad.cad(base, suppressed).value > 0
    assert float(cad.cad(base, base).high) == 0
    assert 0 < cad.noise_floor(base).value < 1


def test_interval_holds_the_value(base: Tensor) -> None:
    other = base + torch.randn_like(base) * base.abs().mean()
    found = cad.cad(base, other)
    assert 0 < found.low <= found.value <= found.high < 1
    again = cad.Divergences.from_json(cad.Divergences(found, suppressor=found).to_json())
    assert again == cad.Divergences(found, suppressor=found)


def test_overlap(base: Tensor) -> None:
    assert cad.overlap(base.sum(0), base.sum(0)) == (pytest.approx(1), 1)
    rank, top = cad.overlap(torch.tensor([1.0, 2, 3, 4]), torch.tensor([4.0, 3, 2, 1]), top=2)
    assert rank == pytest.approx(-1) and top == 0
