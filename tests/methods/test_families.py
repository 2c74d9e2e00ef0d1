"""Every family goes the whole way: circuit, mask, MANSU, every baseline, CAD and bounds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from alone import answer_alone, differentiable, inputs_alone, parts, rows_of, text_alone
from families import FAMILIES, VOCABULARY, family, known_examples, random_pairs
from oracles import bound

from mansu.circuits.attribution import attribute
from mansu.circuits.mask import Mask
from mansu.circuits.parameters import parameter_mask, random_mask
from mansu.circuits.search import minimal_circuit
from mansu.evidence import cad, controls
from mansu.evidence.bounds import bounds
from mansu.measure.geometry import fisher, projectors
from mansu.measure.scores import measure
from mansu.methods import NAMES, Problem, named
from mansu.quant import FORMATS, report
from mansu.subjects import packing
from mansu.subjects.edit import Edit
from mansu.subjects.weights import layout, transposed_names
from mansu.tasks.facts import Task

TASK = Task("random", "Random", "What a random model says.", ())
TEXT = torch.randint(1, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(5))
LENGTH = torch.tensor([7, 4])


@cache
def mask_of(name: str) -> Mask:
    """The parameters behind a circuit of half the effect."""
    subject, pairs = family(name), random_pairs()
    scores = attribute(subject, pairs, steps=2)
    circuit = minimal_circuit(subject, pairs, scores, tau=0.5, prune=0)
    return parameter_mask(subject, circuit, scores, max_fraction=0.2)


def problem(name: str) -> Problem:
    subject = family(name)
    forget, retain = known_examples(subject, 8, 1), known_examples(subject, 8, 2)
    return Problem(subject, TASK, forget, retain, (TEXT, LENGTH), mask_of(name).tensors())


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A family; fails the test unless it leaves the weights bit for bit as they were."""
    subject = family(request.param)
    before = {n: p.clone() for n, p in subject.parameters.items()}
    yield request.param
    for n, p in subject.parameters.items():
        assert torch.equal(p.view(torch.int32), before[n].view(torch.int32)), n
        assert not p.requires_grad and p.grad is None, n


def test_a_mask_is_whole_slices_and_as_many_are_drawn_at_random(name: str) -> None:
    subject, mask = family(name), mask_of(name)
    drawn = random_mask(subject, mask.tensors(), torch.Generator().manual_seed(3))
    assert (drawn.n_slices, drawn.n_neurons) == (mask.n_slices, mask.n_neurons) != (0, 0)
    assert drawn.size == mask.size or mask.n_slices  # slices of another kind cost something else
    assert set(mask.names) <= set(subject.quantized_names)


def test_mansu_moves_weights_of_the_mask_to_other_codes_of_every_format(name: str) -> None:
    task = problem(name)
    edit, subject = named("mansu")(task, rate=0.5, steps=2).edit, task.subject
    assert edit.n_moved > 0
    assert task.mask is not None
    for weight, (where, _) in edit.changes.items():
        moved = where.nonzero()[:, 0] if where.dtype == torch.bool else where
        assert bool(task.mask[weight].flatten()[moved].all()), weight
    for format in FORMATS:
        found = report(subject, edit, format).quantized
        assert (found.changed, found.rescaled) == (found.moved, 0), str(format)
    logits = subject.next_token_logits(task.forget.tokens, task.forget.length)
    with edit.applied(subject):
        now = subject.next_token_logits(task.forget.tokens, task.forget.length)
    assert not torch.equal(now, logits)
    again = subject.next_token_logits(task.forget.tokens, task.forget.length)
    assert torch.equal(again, logits)
    assert named("random_moves")(task, moves=20).edit.n_moved == 20


def test_every_baseline_takes_a_step_and_puts_the_weights_back(name: str) -> None:
    task = problem(name)
    for baseline in NAMES[1:]:
        edit = named(baseline)(task, learning_rate=1e-3, steps=1, batch=4).edit
        trained = {n for n in task.subject.quantized_names if n in edit.changes}
        everything = baseline not in ("rmu", "sure")
        assert trained == set(task.subject.quantized_names) or not everything, baseline
        assert trained, baseline


@pytest.mark.parametrize("size", [384, 10])  # one pack of each set, and several
def test_the_retain_geometry_is_that_of_autograd(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fisher and inputs of every linear map, fused ones in parts, against ``torch.autograd``."""
    monkeypatch.setitem(packing.SIZE, "cpu", size)
    subject, retain = family(name), known_examples(family(name), 3)
    every = {n: torch.ones_like(subject.parameters[n]).bool() for n in subject.quantized_names}
    found = fisher(subject, retain, (TEXT, LENGTH), every)
    weights = [subject.parameters[n] for n in every]
    wanted = {n: torch.zeros_like(p) for n, p in zip(every, weights, strict=True)}
    with differentiable(*weights):
        rows = zip(rows_of(retain.tokens, retain.length), retain.answer, strict=True)
        values = [answer_alone(subject, row, answer) for row, answer in rows]
        values += [-text_alone(subject, row).sum() for row in rows_of(TEXT, LENGTH)]
        for value in values:
            for n, g in zip(every, torch.autograd.grad(value, weights), strict=True):
                wanted[n] += g.square() / 5
    for n, values in wanted.items():
        largest = float(values.max())
        torch.testing.assert_close(
            found[n], values.flatten(), rtol=1e-3, atol=1e-5 * largest, msg=n
        )


def test_projected_updates_leave_the_outputs_on_retain_inputs(name: str) -> None:
    subject, retain = family(name), known_examples(family(name), 3)
    every = {n: torch.ones_like(subject.parameters[n]).bool() for n in subject.quantized_names}
    spans = projectors(subject, retain, (TEXT[:0], LENGTH[:0]), every, energy=1 - 1e-12)
    for n in every:
        columns, basis = spans.spans[n]
        assert len(columns) == layout(subject, n).shape[1], n
        for module, _ in parts(subject, n):
            rows = inputs_alone(subject, module, retain.tokens, retain.length)
            left = rows - (rows @ basis) @ basis.T
            assert float(left.norm() / rows.norm()) < 1e-3, n


def test_bounds_are_those_of_the_whole_fisher(name: str) -> None:
    subject, retain = family(name), known_examples(family(name), 4)
    generator = torch.Generator().manual_seed(2)
    every = {n: torch.ones_like(subject.parameters[n]).bool() for n in subject.quantized_names}
    mask = {n: torch.rand(m.shape, generator=generator) < 0.3 for n, m in every.items()}
    after = {}
    for n, chosen in mask.items():
        p = subject.parameters[n]
        spread = torch.randn(p.shape, generator=generator)
        after[n] = p + 0.01 * spread * (chosen | (torch.rand(p.shape, generator=generator) < 0.1))
    edit = Edit.between(subject.parameters, after)
    found = bounds(subject, edit, retain, (TEXT, LENGTH), mask)
    importance = fisher(subject, retain, (TEXT, LENGTH), every)
    part = {n: importance[n][m.flatten()] for n, m in mask.items()}
    assert found.everywhere == pytest.approx(bound(subject, edit, every, importance), rel=1e-3)
    assert found.restricted == pytest.approx(bound(subject, edit, mask, part), rel=1e-3)
    assert 0 < found.restricted < found.everywhere


def test_cad_and_its_controls(name: str) -> None:
    subject, pairs = family(name), random_pairs()
    forget, retain = known_examples(subject, 8, 1), known_examples(subject, 8, 2)
    assert measure(subject, forget).accuracy == 1
    edit = controls.suppressor(subject, forget, retain, accuracy=0.5)
    (changed,) = edit.changes
    assert changed == subject.quantized_names[-1]
    # The norm after Gemma's MLP bounds what it can cancel.
    assert edit.meta["accuracy"] <= (0.75 if name.startswith("gemma") else 0.5)
    with edit.applied(subject):
        assert measure(subject, forget).accuracy == pytest.approx(edit.meta["accuracy"])
    signals = cad.Signals(subject, pairs, steps=2, groups=2)
    suppressed = signals.of(edit).signal
    ablated = signals.of(controls.ablation(subject, mask_of(name).tensors())).signal
    assert 0 < cad.cad(signals.base, suppressed).value < 1
    assert 0 < cad.cad(signals.base, ablated).value < 1


def test_transposed_weights_are_those_of_gpt2_alone(name: str) -> None:
    subject = family(name)
    assert transposed_names(subject) == set(subject.quantized_names if name == "gpt2" else ())
