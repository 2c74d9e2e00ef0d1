"""Projectors kill the retain span; the Fisher is the per-example gradients'; the bound is exact."""

from __future__ import annotations

import sys

import pytest
import torch
from alone import answer_alone, differentiable, inputs_alone, rows_of, text_alone
from families import VOCABULARY, family
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import bound
from torch import Tensor

from mansu import tasks
from mansu.evidence.bounds import bounds
from mansu.measure import geometry
from mansu.measure.geometry import fisher, projectors, summed_squares
from mansu.subjects import packing
from mansu.subjects.edit import Edit
from mansu.subjects.own_text import own_answers
from mansu.subjects.subject import Subject
from mansu.subjects.weights import ROLES, weight_name
from mansu.tasks.facts import Task
from mansu.tasks.tokens import Examples

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
    """The inputs of a map at every token of rows that are run one at a time."""
    module = next(
        m
        for m in subject.model.modules()
        if m._parameters.get("weight") is subject.parameters[name]
    )
    return inputs_alone(subject, module, tokens, length)


def test_weights_that_read_the_same_share_what_they_would_have_alone(
    tiny: Subject, tiny_task: Task
) -> None:
    retain, text = tasks.examples(tiny_task, tiny, "retain").some(20), tasks.text(tiny_task, tiny)
    mask = {
        weight_name(tiny, layer, role): torch.ones(1, dtype=torch.bool).expand_as(
            tiny.parameters[weight_name(tiny, layer, role)]
        )
        for layer in (0, 2)
        for role in ROLES
    }
    fewer = weight_name(tiny, 2, "k")  # which reads less than the layer's other two
    mask[fewer] = mask[fewer].clone()
    mask[fewer][:, ::3] = False
    spans = projectors(tiny, retain, text, mask, energy=0.9).spans
    for name, chosen in mask.items():
        ((columns, basis),) = projectors(tiny, retain, text, {name: chosen}).spans.values()
        assert torch.equal(spans[name][0], columns) and torch.equal(spans[name][1], basis)
    first = weight_name(tiny, 2, "q")
    assert spans[weight_name(tiny, 2, "v")] is spans[first] is not spans[fewer]


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
        # The leading directions, and as few as hold it: a token that rows share counts for each.
        shares = torch.linalg.eigvalsh(x.double().T @ x.double()).flip(0)
        best = (shares.cumsum(0) / shares.sum()).tolist()
        assert held == pytest.approx(best[basis.shape[1] - 1], abs=1e-5)
        assert basis.shape[1] == 1 or best[basis.shape[1] - 2] < 0.95


def test_a_part_of_an_update_is_projected_as_in_the_whole(
    tiny: Subject, tiny_task: Task, mask: dict[str, Tensor]
) -> None:
    retain, text = tasks.examples(tiny_task, tiny, "retain"), tasks.text(tiny_task, tiny)
    spans = projectors(tiny, retain, text, mask, energy=0.95)
    for name, (columns, _) in spans.spans.items():
        some = columns[1::3].contiguous()
        part = torch.randn(5, len(some), generator=torch.Generator().manual_seed(1))
        whole = torch.zeros(5, mask[name].shape[1])
        whole[:, some] = part
        expected = spans(name, whole)[:, some]
        torch.testing.assert_close(spans(name, part, some), expected, atol=1e-6, rtol=1e-5)
        assert spans("elsewhere", part, some) is part


def test_all_the_energy_leaves_nothing_of_the_retain_inputs(
    tiny: Subject, tiny_task: Task, mask: dict[str, Tensor]
) -> None:
    retain, text = tasks.examples(tiny_task, tiny, "retain"), tasks.text(tiny_task, tiny)
    spans = projectors(tiny, retain, text, {DOWN: mask[DOWN]}, energy=1 - 1e-9)
    columns, _ = spans.spans[DOWN]
    update = spans(DOWN, torch.randn(mask[DOWN].shape) * mask[DOWN])
    x = inputs_of(tiny, DOWN, retain.tokens, retain.length)[:, columns]
    assert float((x @ update[:, columns].T).abs().max()) < 1e-3


def test_none_of_the_energy_leaves_an_update_as_it_is(
    tiny: Subject, tiny_task: Task, mask: dict[str, Tensor]
) -> None:
    retain, text = tasks.examples(tiny_task, tiny, "retain"), tasks.text(tiny_task, tiny)
    spans = projectors(tiny, retain, text, mask, energy=0)
    for name, chosen in mask.items():
        update = torch.randn(chosen.shape) * chosen
        assert spans.spans[name][1].shape[1] == 0 and torch.equal(spans(name, update), update)


@pytest.mark.parametrize("size", [384, 12])  # one pack of each set, and several
def test_fisher_is_the_mean_squared_gradient_of_each_example(
    tiny: Subject,
    tiny_task: Task,
    mask: dict[str, Tensor],
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(packing.SIZE, "cpu", size)
    retain = tasks.examples(tiny_task, tiny, "retain").select(range(5))
    tokens, length = (t[:3] for t in tasks.text(tiny_task, tiny))
    found = fisher(tiny, retain, (tokens, length), mask)
    wanted = {name: torch.zeros(int(chosen.sum())) for name, chosen in mask.items()}
    parameters = [tiny.parameters[name] for name in mask]
    with differentiable(*parameters):
        rows = zip(rows_of(retain.tokens, retain.length), retain.answer, strict=True)
        values = [answer_alone(tiny, row, answer) for row, answer in rows]
        values += [-text_alone(tiny, row).sum() for row in rows_of(tokens, length)]
        for value in values:
            for name, g in zip(mask, torch.autograd.grad(value, parameters), strict=True):
                wanted[name] += g[mask[name]].square() / 8
    for name in mask:
        assert torch.allclose(found[name], wanted[name], rtol=1e-3, atol=1e-9)


def test_products_of_half_the_digits_give_the_same_fisher_information(
    tiny: Subject, tiny_task: Task, mask: dict[str, Tensor]
) -> None:
    retain = tasks.examples(tiny_task, tiny, "retain").some(20)
    text = tasks.text(tiny_task, tiny)
    whole = fisher(tiny, retain, text, mask)
    half = fisher(tiny, retain, text, mask, lambda: torch.autocast("cpu", torch.bfloat16))
    for name in mask:
        assert not torch.equal(half[name], whole[name])
        assert float(torch.cosine_similarity(half[name], whole[name], 0)) > 0.995
        assert float(half[name].sum()) == pytest.approx(float(whole[name].sum()), rel=0.05)


def test_answers_of_its_own_give_the_expected_fisher_information() -> None:
    """Σ_v p(v) (∂ log p(v) / ∂ w)², by autograd, and not that of a lasting answer."""
    subject = family("llama")
    only = {DOWN: torch.ones_like(subject.parameters[DOWN], dtype=torch.bool)}
    prompt = torch.tensor([3, 7, 11])
    wanted = torch.zeros(only[DOWN].shape)
    with differentiable(subject.parameters[DOWN]):
        for answer in range(VOCABULARY):
            log_p = answer_alone(subject, prompt, torch.tensor(answer))
            (g,) = torch.autograd.grad(log_p, [subject.parameters[DOWN]])
            wanted += log_p.detach().exp() * g.square()
    many = prompt.repeat(600, 1), torch.full((600,), 3)
    found = fisher(subject, own_answers(subject, many, seed=1), NO_TEXT, only)[DOWN]
    assert float(torch.cosine_similarity(found, wanted.flatten(), 0)) > 0.97
    assert float(found.sum()) == pytest.approx(float(wanted.sum()), rel=0.1)


@pytest.mark.parametrize("at_once", [1, 100, 1 << 26])
def test_summed_squares_are_those_of_each_example(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry, "AT_ONCE", {"cpu": at_once})
    gradients, inputs = torch.randn(5, 4, 6), torch.randn(5, 4, 7)
    each = torch.stack([g.T @ x for g, x in zip(gradients, inputs, strict=True)])
    torch.testing.assert_close(summed_squares(gradients, inputs), each.square().sum(0))


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


def retain_of(answers: Tensor, *, one_prompt: bool = False) -> Examples:
    """Random prompts of the random families, one for each answer, or the same for all."""
    n, generator = len(answers), torch.Generator().manual_seed(3)
    tokens = torch.randint(1, VOCABULARY, (n, 6), generator=generator)
    length = torch.randint(3, 7, (n,), generator=generator)
    if one_prompt:
        tokens, length = tokens[:1].expand(n, -1), length[:1].expand(n)
    return Examples(
        tokens,
        length,
        answers,
        torch.zeros(n, 3, dtype=torch.long),
        torch.ones(n, VOCABULARY, dtype=torch.bool),
        torch.arange(VOCABULARY),
        tuple(range(n)),
        ("all",) * n,
    )


NO_TEXT = torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, dtype=torch.long)


def loss_of(subject: Subject, retain: Examples, text: tuple[Tensor, Tensor]) -> float:
    """Mean negative log-likelihood of the examples, by hand."""
    with torch.no_grad():
        rows = zip(rows_of(retain.tokens, retain.length), retain.answer, strict=True)
        losses = [-answer_alone(subject, row, answer) for row, answer in rows]
        losses += [text_alone(subject, row).sum() for row in rows_of(*text)]
        return float(torch.stack(losses).mean())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@settings(max_examples=16)
@given(
    seed=st.integers(0, 2**31),
    share=st.sampled_from([0.002, 0.1, 1.0]),
    covered=st.floats(0, 1),
    inside=st.booleans(),
    size=st.sampled_from([11, 384]),
    paired=st.sampled_from([0, 5, 16]),  # by pairs of positions or not: it is one number
)
def test_theorem_1_restricted_is_at_most_the_global_bound_of_the_same_edit(
    name: str, seed: int, share: float, covered: float, inside: bool, size: int, paired: int
) -> None:
    subject, generator = family(name), torch.Generator().manual_seed(seed)
    mask, after = {}, {}
    for n in sorted(subject.quantized_names):
        p = subject.parameters[n]
        mask[n] = torch.rand(p.shape, generator=generator) < covered
        moved = torch.rand(p.shape, generator=generator) < share
        moved = moved & mask[n] if inside else moved
        after[n] = p + 0.01 * torch.randn(p.shape, generator=generator) * moved
    edit = Edit.between(subject.parameters, after)
    retain = retain_of(torch.randint(VOCABULARY, (5,), generator=generator))
    text = torch.randint(VOCABULARY, (2, 7), generator=generator), torch.tensor([7, 4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(packing.SIZE, "cpu", size)
        patch.setattr(sys.modules["mansu.evidence.bounds"], "PAIRED", paired)
        found = bounds(subject, edit, retain, text, mask)
    assert 0 <= found.restricted <= found.everywhere
    if inside:
        assert found.restricted == found.everywhere
    # The oracle: the Fisher of every weight held whole.
    every = {n: torch.ones_like(m) for n, m in mask.items()}
    importance = fisher(subject, retain, text, every)
    assert found.everywhere == pytest.approx(bound(subject, edit, every, importance), rel=1e-3)
    part = {n: importance[n][m.flatten()] for n, m in mask.items()}
    assert found.restricted == pytest.approx(bound(subject, edit, mask, part), rel=1e-3)
    energy = sum(float(d.square().sum()) for _, d in edit.delta(subject).values())
    mean = float(torch.cat(list(importance.values())).mean())
    assert found.spread == pytest.approx(mean * energy / 2, rel=1e-3)
    before = loss_of(subject, retain, text)
    with edit.applied(subject):
        change = loss_of(subject, retain, text) - before
    assert found.measured == pytest.approx(change, abs=1e-4)
    assert (found.facts, found.texts) == (5, 2)


@pytest.mark.parametrize("entry", [(0, 3), (5, 20)])
def test_the_bound_is_the_loss_change_where_it_must_be(entry: tuple[int, int]) -> None:
    """One weight, answers distributed as the model has them: E[loss change] = KL = ½ F δ²."""
    subject = family("llama")
    weight = subject.parameters[DOWN]
    only = {DOWN: torch.zeros_like(weight, dtype=torch.bool)}
    only[DOWN][entry] = True
    retain = retain_of(torch.arange(VOCABULARY), one_prompt=True)

    def log_p() -> Tensor:
        with torch.no_grad():
            return subject.next_token_logits(retain.tokens[:1], retain.length[:1])[0].log_softmax(0)

    p = log_p().double()
    scores = [
        fisher(subject, retain.select([v]), NO_TEXT, only)[DOWN] for v in retain.answer.tolist()
    ]
    true = float((p.exp() * torch.cat(scores)).sum())
    delta = (2e-4 / true) ** 0.5
    where = only[DOWN].flatten().nonzero()[:, 0]
    divergence = 0.0
    for step in (delta, -delta):  # the mean of both sides has no cubic term
        edit = Edit({DOWN: (where, weight.detach().flatten()[where] + step)})
        with edit.applied(subject):
            divergence += float((p.exp() * (p - log_p().double())).sum()) / 2
    assert divergence == pytest.approx(true * delta**2 / 2, rel=0.05)
