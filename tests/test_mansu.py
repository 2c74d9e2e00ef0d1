"""MANSU: what moves changes its NF4 code, nothing else moves, and the subject comes back whole."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch

from mansu import tasks
from mansu.attribution import attribute
from mansu.circuit import minimal_circuit, parameter_mask
from mansu.errors import MansuError
from mansu.evaluate import measure
from mansu.methods import Problem
from mansu.methods import mansu as method
from mansu.nf4 import CODES, Dequantized, quantize, quantized, sets_absmax
from mansu.subjects import Subject
from mansu.tasks import Task


@pytest.fixture(scope="module")
def problem(tiny: Subject, tiny_task: Task) -> Problem:
    pairs = tasks.pairs(tiny_task, tiny, n=32)
    scores = attribute(tiny, pairs)
    circuit = minimal_circuit(tiny, pairs, scores, tau=0.85)
    mask = parameter_mask(tiny, circuit, scores, max_fraction=0.1)
    return Problem(
        tiny,
        tiny_task,
        tasks.examples(tiny_task, tiny, "forget"),
        tasks.examples(tiny_task, tiny, "retain"),
        tasks.text(tiny_task, tiny),
        mask.tensors(),
    )


@pytest.fixture(scope="module")
def outcome(problem: Problem) -> method.Outcome:
    return method.unlearn(problem, rate=0.2, steps=30)


def test_every_moved_weight_changes_code_and_no_block_is_rescaled(
    problem: Problem, outcome: method.Outcome
) -> None:
    subject = problem.subject
    before = {n: p.detach().clone() for n, p in subject.parameters.items()}
    assert outcome.edit.n_moved > 100
    with outcome.edit.applied(subject):
        for name in outcome.edit.changes:
            old, new = before[name], subject.parameters[name].detach()
            moved = (old != new).flatten()
            assert problem.mask is not None
            assert bool(problem.mask[name].flatten()[moved].all())
            assert not bool(sets_absmax(old).flatten()[moved].any())
            first, second = quantize(old), quantize(new)
            assert bool((first.codes[moved] != second.codes[moved]).all())
            assert torch.equal(first.codes[~moved], second.codes[~moved])
            assert torch.equal(first.absmax, second.absmax)
            for dtype in (torch.bfloat16, torch.float16):
                cast = quantize(new.to(dtype))
                assert torch.equal(cast.codes[moved], second.codes[moved]), dtype
            # At the centre of its new code: NF4 gives the very same value back.
            codes = quantize(new)
            centre = CODES[codes.codes[moved].long()] * codes.scale[moved]
            assert torch.equal(centre, new.flatten()[moved])


def test_it_forgets_keeps_and_restores(problem: Problem, outcome: method.Outcome) -> None:
    subject = problem.subject
    start = {n: p.detach().clone() for n, p in subject.parameters.items()}
    base = measure(subject, problem.forget).accuracy
    with outcome.edit.applied(subject):
        forgot, kept = measure(subject, problem.forget), measure(subject, problem.retain)
        with quantized(subject):
            forgot_nf4 = measure(subject, problem.forget)
    assert forgot.accuracy < base - 0.3
    assert forgot_nf4.accuracy <= forgot.accuracy + 0.05
    assert kept.accuracy >= 0.95
    for name, parameter in subject.parameters.items():
        assert torch.equal(parameter, start[name])
        assert not parameter.requires_grad and parameter.grad is None


def test_the_same_seed_gives_the_same_edit_and_another_seed_another(problem: Problem) -> None:
    first = method.unlearn(problem, rate=0.2, steps=2).edit
    again = method.unlearn(problem, rate=0.2, steps=2).edit
    other = method.unlearn(dataclasses.replace(problem, seed=1), rate=0.2, steps=2).edit
    name = next(iter(first.changes))
    assert all(
        torch.equal(a, b) for a, b in zip(first.changes[name], again.changes[name], strict=True)
    )
    assert first.n_moved != other.n_moved


def test_without_the_floor_few_moves_survive(problem: Problem) -> None:
    edit = method.unlearn(problem, rate=0.05, steps=2, floor=False).edit
    subject = problem.subject
    name = next(iter(edit.changes))
    before = quantize(subject.parameters[name].detach()).codes
    with edit.applied(subject):
        after = quantize(subject.parameters[name].detach()).codes
    where, _ = edit.changes[name]
    assert float((before != after)[where].float().mean()) < 0.5


def test_cancelling_leaves_the_subject_whole(problem: Problem) -> None:
    start = {n: p.detach().clone() for n, p in problem.subject.parameters.items()}

    class StopError(Exception):
        pass

    def stop(share: float, message: str) -> None:
        if share > 0.4:
            raise StopError

    with pytest.raises(StopError):
        method.unlearn(dataclasses.replace(problem, progress=stop), rate=0.2, steps=4)
    for name, parameter in problem.subject.parameters.items():
        assert torch.equal(parameter, start[name])


def test_a_missing_mask_is_refused(problem: Problem) -> None:
    with pytest.raises(MansuError, match="needs a circuit"):
        method.unlearn(dataclasses.replace(problem, mask=None))
    embedding = "model.embed_tokens.weight"
    only = torch.ones_like(problem.subject.parameters[embedding], dtype=torch.bool)
    with pytest.raises(MansuError, match="No weight may move"):
        method.unlearn(dataclasses.replace(problem, mask={embedding: only}))


def test_the_rounding_is_unbiased_and_lands_on_allowed_points(problem: Problem) -> None:
    assert problem.mask is not None
    weights = method._movable(
        problem.subject, problem.mask, Dequantized.of(problem.subject), random.Random(0)
    )
    weight = max(weights.values(), key=lambda w: len(w.base))
    inner = (weight.code > 2) & (weight.code < 13)
    for share in (-0.7, -0.2, 0.0, 0.1, 0.4):
        weight.wish = share * weight.width
        values, moved = weight.rounded()
        assert torch.equal(values[~moved], weight.base[~moved])
        assert bool((moved == (values != weight.base)).all())
        got = ((values - weight.base) / weight.width)[inner]
        error = 4 * float(got.std()) / len(got) ** 0.5 + 0.01
        assert float(got.mean()) == pytest.approx(share, abs=error)


def test_the_objective_by_hand(problem: Problem) -> None:
    rows = problem.forget
    loss = method.indistinguishable(problem.subject, rows)
    logits = problem.subject.next_token_logits(rows.tokens, rows.length)
    for i in (0, len(rows) - 1):
        names = rows.vocabulary[rows.candidates[i]].tolist()
        log_p = logits[i, names].log_softmax(-1).tolist()
        answer = log_p[names.index(int(rows.answer[i]))]
        others = [v for v, name in zip(log_p, names, strict=True) if name != int(rows.answer[i])]
        uniform = -math.log(len(names))
        divergence = sum((uniform - v) / len(names) for v in log_p)
        advantage = max(answer - sum(others) / len(others), 0)
        assert float(loss[i]) == pytest.approx(divergence + method.ADVANTAGE * advantage, rel=1e-4)
