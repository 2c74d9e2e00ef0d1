"""Projectors kill the retain span; the Fisher is the per-example gradients'; the bound is exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mansu import tasks
from mansu.edit import Edit
from mansu.evaluate import text_losses
from mansu.geometry import bound, fisher, projectors
from mansu.subjects import Subject
from mansu.tasks import Task

GATE = "model.layers.1.mlp.gate_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
OUT = "model.layers.2.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def mask(tiny: Subject) -> dict[str, Tensor]:
    """Some rows of one weight, some columns of two others."""
    chosen = {
        name: torch.zeros_like(tiny.parameters[name], dtype=torch.bool)
        for name in (GATE, DOWN, OUT)
    }
    chosen[GATE][::7] = True
    chosen[DOWN][:, ::7] = True
    chosen[OUT][:, 32:64] = True
    return chosen


def inputs_of(subject: Subject, name: str, tokens: Tensor, length: Tensor) -> Tensor:
    """The real positions' inputs of a map, by a plain forward pre-hook."""
    seen: list[Tensor] = []
    module = next(
        m
        for m in subject.model.modules()
        if m._parameters.get("weight") is subject.parameters[name]
    )
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    try:
        subject.next_token_logits(tokens, length)
    finally:
        handle.remove()
    return torch.cat([x[:n] for x, n in zip(seen[0], length.tolist(), strict=True)])


def test_projection_is_idempotent_and_kills_the_span(
    tiny: Subject, tiny_task: Task, mask: dict[str, Tensor]
) -> None:
    retain, text = tasks.examples(tiny_task, tiny, "retain"), tasks.text(tiny_task, tiny)
    spans = projectors(tiny, retain, text, mask, energy=0.95)
    for name, chosen in mask.items():
        update = torch.randn(chosen.shape) * chosen
        once = spans(name, update)
        assert torch.allclose(spans(name, once), once, atol=1e-5)
        assert torch.equal(once[~chosen], torch.zeros_like(once[~chosen]))
        columns, basis = spans.spans[name]
        assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-5)
        assert float((once[:, columns] @ basis).abs().max()) < 1e-4
        x = torch.cat(
            [inputs_of(tiny, name, retain.tokens, retain.length), inputs_of(tiny, name, *text)]
        )[:, columns]
        leak = float(
            (x @ once[:, columns].T).square().sum() / (x @ update[:, columns].T).square().sum()
        )
        assert leak < 0.2  # what is left of the update on retain inputs: a small share of it
        held = float((x @ basis).square().sum() / x.square().sum())
        assert 0.95 <= held < 1


def test_all_the_energy_leaves_nothing_of_the_retain_inputs(
    tiny: Subject, tiny_task: Task, mask: dict[str, Tensor]
) -> None:
    retain, text = tasks.examples(tiny_task, tiny, "retain"), tasks.text(tiny_task, tiny)
    spans = projectors(tiny, retain, text, {DOWN: mask[DOWN]}, energy=1 - 1e-9)
    columns, _ = spans.spans[DOWN]
    update = spans(DOWN, torch.randn(mask[DOWN].shape) * mask[DOWN])
    x = inputs_of(tiny, DOWN, retain.tokens, retain.length)[:, columns]
    assert float((x @ update[:, columns].T).abs().max()) < 1e-3


def test_fisher_is_the_mean_squared_gradient_of_each_example(
    tiny: Subject, tiny_task: Task, mask: dict[str, Tensor]
) -> None:
    retain = tasks.examples(tiny_task, tiny, "retain").select(range(5))
    tokens, length = (t[:3] for t in tasks.text(tiny_task, tiny))
    found = fisher(tiny, retain, (tokens, length), mask, batch=2)
    wanted = {name: torch.zeros(int(chosen.sum())) for name, chosen in mask.items()}
    parameters = [tiny.parameters[name] for name in mask]
    for p in parameters:
        p.requires_grad_(True)
    try:
        for i in range(5 + 3):
            if i < 5:
                one = retain.select([i])
                logits = tiny.next_token_logits(one.tokens, one.length)
                value = logits.log_softmax(-1)[0, one.answer[0]]
            else:
                value = -text_losses(tiny, tokens[i - 5 : i - 4], length[i - 5 : i - 4]).sum()
            for name, g in zip(mask, torch.autograd.grad(value, parameters), strict=True):
                wanted[name] += g[mask[name]].square() / 8
    finally:
        for p in parameters:
            p.requires_grad_(False)
    for name in mask:
        assert torch.allclose(found[name], wanted[name], rtol=1e-3, atol=1e-9)


def test_bound_is_the_quadratic_form_and_grows_with_the_mask(
    tiny: Subject, mask: dict[str, Tensor]
) -> None:
    weight = tiny.parameters[GATE]
    where = torch.arange(0, weight.numel(), 5)
    edit = Edit({GATE: (where, weight.detach().flatten()[where] + 0.5)})
    everything = {GATE: torch.ones_like(weight, dtype=torch.bool)}
    importance = torch.rand(weight.shape)
    wide = bound(tiny, edit, everything, {GATE: importance.flatten()})
    assert wide == pytest.approx(0.125 * float(importance.flatten()[where].sum()), rel=1e-4)
    narrow = bound(tiny, edit, mask, {GATE: importance[mask[GATE]]})
    assert 0 < narrow < wide  # Theorem 1: restricted to the circuit it is the tighter one
