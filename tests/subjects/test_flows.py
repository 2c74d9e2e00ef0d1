"""What enters linear maps and the gradients at what leaves them, against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from alone import differentiable, parts
from families import FAMILIES, VOCABULARY, family
from torch import Tensor

from mansu.subjects.flows import watched
from mansu.subjects.packing import Pack
from mansu.subjects.subject import Subject
from mansu.subjects.weights import layer_of, transposed_names


def pack_of() -> Pack:
    """Three rows, two of which begin alike."""
    tokens = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 3, 0, 0], [4, 0, 0, 0, 0]])
    (pack,) = family("llama").packs(tokens, torch.tensor([5, 3, 1]))
    return pack


PACK = pack_of()
OTHER = (PACK.tokens + 11) % VOCABULARY
RUNS = torch.stack([PACK.tokens, OTHER])


def loss_of(subject: Subject, tokens: Tensor = RUNS, *, hooked: bool = False) -> Tensor:
    """A number that depends on every token of every run, on each in its own way."""
    hidden = subject.run(PACK, tokens, hooked=hooked)
    weights = torch.randn(hidden.shape[1:], generator=torch.Generator().manual_seed(1))
    return (hidden * weights).sum() + subject.head(hidden[:, -1]).log_softmax(-1)[:, 3].sum()


def hooks_of(subject: Subject) -> int:
    """How many hooks of torch there are, in the plain model and in the bridge's."""
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for model in (subject.model, subject.plain)
        for m in model.modules()
    )


@pytest.fixture(params=FAMILIES)
def subject(request: pytest.FixtureRequest) -> Subject:
    return family(request.param)


def test_inputs_and_gradients_are_those_of_autograd(subject: Subject) -> None:
    """At each map of each run: by the tensors of the bridge's modules, which run fused maps in
    parts, and by the gradient of the weight."""
    names = subject.quantized_names
    weights = [subject.parameters[n] for n in names]
    entered: dict[str, Tensor] = {}
    left: dict[str, list[Tensor]] = {n: [] for n in names}
    handles = []
    with differentiable(*weights):
        try:
            for name in names:
                for module, _ in parts(subject, name):

                    def keep(_: object, args: Any, out: Tensor, name: str = name) -> None:
                        entered[name] = args[0].detach()
                        left[name].append(out)

                    handles.append(module.register_forward_hook(keep))
            loss = loss_of(subject, hooked=True)
        finally:
            for handle in handles:
                handle.remove()
        outputs = [out for name in names for out in left[name]]
        grads = torch.autograd.grad(loss, [*outputs, *weights])
        at_outputs = dict(zip(map(id, outputs), grads, strict=False))
        whole = grads[len(outputs) :]
        each = [torch.autograd.grad(loss_of(subject, run[None]), weights) for run in RUNS]

    seen: dict[str, Tensor] = {}
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def see(name: str, inputs: Tensor) -> None:
        assert name not in seen
        seen[name] = inputs

    def see_gradient(name: str, inputs: Tensor, gradients: Tensor) -> None:
        assert name not in found
        found[name] = inputs, gradients

    with watched(subject, names, see, see_gradient):
        loss_of(subject).backward()
    assert seen.keys() == found.keys() == set(names)
    turned = transposed_names(subject)
    for i, name in enumerate(names):
        inputs, gradients = found[name]
        assert torch.equal(inputs, seen[name])
        assert not inputs.requires_grad and not gradients.requires_grad
        assert inputs.shape[:2] == gradients.shape[:2] == RUNS.shape
        close(inputs, entered[name])
        # Parts of a fused map lie where their outputs do in the weight.
        joined = torch.empty_like(gradients)
        for (_, rows), out in zip(parts(subject, name), left[name], strict=True):
            joined[..., slice(None) if rows is None else rows] = at_outputs[id(out)]
        close(gradients, joined)
        for x, g, want in (
            (inputs.flatten(0, 1), gradients.flatten(0, 1), whole[i]),
            (inputs[0], gradients[0], each[0][i]),
            (inputs[1], gradients[1], each[1][i]),
        ):
            close(x.T @ g if name in turned else g.T @ x, want)


def close(found: Tensor, wanted: Tensor) -> None:
    largest = float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, atol=1e-4 * largest, rtol=1e-3)


def test_no_weight_gets_a_gradient_and_no_layer_before_is_differentiated(
    subject: Subject,
) -> None:
    names = [n for n in subject.quantized_names if layer_of(subject, n) == 1]
    below = next(n for n in subject.quantized_names if layer_of(subject, n) == 0)
    needed: list[bool] = []
    module = subject.plain.get_submodule(below.removesuffix(".weight"))
    handle = module.register_forward_hook(lambda _m, _x, out: needed.append(out.requires_grad))
    calls: list[str] = []
    before = hooks_of(subject)
    weights = {n: p.clone() for n, p in subject.parameters.items()}
    try:
        with watched(subject, names, see_gradient=lambda name, x, g: calls.append(name)):
            loss = loss_of(subject)
            assert loss.requires_grad
            loss.backward()
    finally:
        handle.remove()
    assert needed == [False]
    assert sorted(calls) == sorted(names)
    for name, p in subject.parameters.items():
        assert p.grad is None and not p.requires_grad, name
        assert torch.equal(p, weights[name]), name
    assert hooks_of(subject) == before - 1


def test_watching_changes_nothing_that_the_model_says(subject: Subject) -> None:
    with torch.no_grad():
        plain = subject.run(PACK, RUNS)
        calls: list[str] = []
        with watched(subject, subject.quantized_names, lambda n, x: calls.append(n), fail):
            assert torch.equal(subject.run(PACK, RUNS), plain)  # and nothing is differentiated
        assert sorted(calls) == sorted(subject.quantized_names)
    with watched(subject, subject.quantized_names, see_gradient=fail):
        hidden = subject.run(PACK, RUNS)
    assert hidden.requires_grad and torch.equal(hidden, plain)
    assert not subject.run(PACK, RUNS).requires_grad


def fail(name: str, inputs: Tensor, gradients: Tensor) -> None:
    raise AssertionError(name)


def test_each_pass_is_seen_by_itself(subject: Subject) -> None:
    """Two runs, one after the other, give what each gives."""
    found: list[tuple[str, Tensor, Tensor]] = []

    def add(name: str, inputs: Tensor, gradients: Tensor) -> None:
        found.append((name, inputs, gradients))

    names = subject.quantized_names
    with watched(subject, names, see_gradient=add):
        for run in RUNS:
            loss_of(subject, run[None]).backward()
    twice = found.copy()
    found.clear()
    for i, run in enumerate(RUNS):
        with watched(subject, names, see_gradient=add):
            loss_of(subject, run[None]).backward()
        n = len(names)
        for (a, x, g), (b, y, h) in zip(twice[i * n : (i + 1) * n], found[-n:], strict=True):
            assert a == b and torch.equal(x, y) and torch.equal(g, h)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_handles_are_removed_after_an_exception(name: str) -> None:
    subject = family(name)
    before = hooks_of(subject)

    def stop(*_: object) -> None:
        raise StoppedError

    names = subject.quantized_names
    with pytest.raises(StoppedError), watched(subject, names, see=stop):
        loss_of(subject)
    assert hooks_of(subject) == before
    with pytest.raises(StoppedError), watched(subject, names, see_gradient=stop):
        loss_of(subject).backward()
    assert hooks_of(subject) == before
    with pytest.raises(StoppedError), watched(subject, names):
        raise StoppedError
    assert hooks_of(subject) == before
    with pytest.raises(AttributeError), watched(subject, [*names, "nowhere.weight"]):
        raise AssertionError
    assert hooks_of(subject) == before
    assert not loss_of(subject).requires_grad
