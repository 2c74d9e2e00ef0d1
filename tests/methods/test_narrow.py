"""Weights in bfloat16: the same products bit for bit, and the subject comes back whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mansu import tasks
from mansu.methods.narrow import Narrow
from mansu.quant.swap import swapped
from mansu.subjects.flows import watched
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task


def flown(subject: Subject, task: Task) -> dict[str, Tensor]:
    """Logits of some rows under autocast, and the gradients at every quantised map."""
    rows = tasks.examples(task, subject, "forget").select(list(range(8)))
    found: dict[str, Tensor] = {}

    def see(name: str, inputs: Tensor, gradients: Tensor) -> None:
        found[name] = gradients

    with watched(subject, subject.quantized_names, see_gradient=see):
        with torch.autocast("cpu", torch.bfloat16):
            logits = subject.next_token_logits(rows.tokens, rows.length)
        logits.float().logsumexp(-1).sum().backward()
    return {**found, "logits": logits.detach()}


def test_products_are_those_of_autocast(tiny: Subject, tiny_task: Task) -> None:
    narrow, plain = Narrow(tiny), flown(tiny, tiny_task)
    with swapped(tiny, narrow.weights):
        found = flown(tiny, tiny_task)
    assert all(torch.equal(plain[name], found[name]) for name in plain)
    assert len(plain) == len(tiny.quantized_names) + 1


def test_it_follows_a_move(tiny: Subject) -> None:
    narrow, name = Narrow(tiny), tiny.quantized_names[0]
    parameter, where = tiny.parameters[name], torch.tensor([3, 5])
    with tiny.lock:
        before = parameter.data.clone()
        try:
            parameter.data.view(-1)[where] = torch.tensor([0.1234567, -7.654321])
            narrow.set(name, where, parameter.data.view(-1)[where])
            assert torch.equal(narrow.weights[name], Narrow(tiny).weights[name])
        finally:
            parameter.data.copy_(before)


def test_the_subject_comes_back_whole(tiny: Subject) -> None:
    before = {name: (p.data_ptr(), p.dtype) for name, p in tiny.parameters.items()}
    narrow = Narrow(tiny)
    with pytest.raises(RuntimeError, match="no more"), swapped(tiny, narrow.weights):
        assert tiny.parameters[tiny.quantized_names[0]].dtype == torch.bfloat16
        raise RuntimeError("no more")
    assert {name: (p.data_ptr(), p.dtype) for name, p in tiny.parameters.items()} == before
