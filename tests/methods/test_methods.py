"""The baselines against closed forms, autograd and what they promise about the weights."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from alone import answer_alone, differentiable, rows_of, states_alone, text_alone
from devices import moved, needs_cuda
from families import FAMILIES, family, known_examples
from torch import Tensor

import mansu
from mansu import subjects, tasks
from mansu.errors import BadInputError, MansuError
from mansu.measure.scores import answer_log_probability, measure
from mansu.methods import NAMES, Problem, kl, named, npo, rmu, simnpo, training
from mansu.methods.training import (
    TOY_RATE,
    Batch,
    TrainingSettings,
    batches,
    forget_and_retain,
    scratch,
    train,
)
from mansu.progress import Step
from mansu.subjects import packing
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples

BASELINES = NAMES[1:]
RATE = {"rmu": 1e-2}


class CancelledError(Exception):
    pass


def dense(problem: Problem, edit: Any) -> dict[str, Tensor]:
    """The edit's change as whole tensors (zero where nothing moved)."""
    before = {n: p.clone() for n, p in problem.subject.parameters.items()}
    with edit.applied(problem.subject):
        return {n: p - before[n] for n, p in problem.subject.parameters.items()}


# Objectives


def hand_made() -> tuple[Tensor, Tensor]:
    """log π of answers and of the reference, from logits written by hand."""
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0], [-2.0, 1.0, 0.0]], dtype=torch.double)
    other = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, -1.0]], dtype=torch.double)
    answer = torch.tensor([0, 2, 1])[:, None]
    return logits.log_softmax(1).gather(1, answer)[:, 0], other.log_softmax(1).gather(1, answer)[
        :, 0
    ]


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_npo_is_its_closed_form(beta: float) -> None:
    now, reference = hand_made()
    ratio = now.exp() / reference.exp()
    expected = (2 / beta) * torch.log(1 + ratio**beta).mean()
    assert npo.npo_loss(now, reference, beta).item() == pytest.approx(expected.item(), rel=1e-12)


def test_npo_tends_to_gradient_ascent_as_beta_tends_to_zero() -> None:
    now, reference = hand_made()
    now.requires_grad_(True)
    (ascent,) = torch.autograd.grad(now.mean(), now)
    errors = []
    for beta in (1e-1, 1e-2, 1e-3):
        (gradient,) = torch.autograd.grad(npo.npo_loss(now, reference, beta), now)
        errors.append((gradient - ascent).abs().max().item())
    assert errors[0] > 5 * errors[1] > 25 * errors[2]  # first order in beta
    assert errors[2] < 1e-3


def test_npo_gradient_fades_where_the_answer_is_already_unlikely() -> None:
    now = torch.tensor([-1.0, -100.0], requires_grad=True)
    npo.npo_loss(now, torch.tensor([-1.0, -1.0]), 0.1).backward()
    assert now.grad is not None
    assert now.grad[0].item() == pytest.approx(0.5)  # π = π_ref: weight 1, mean of two rows
    assert now.grad[1].item() < 1e-3


def test_simnpo_is_its_closed_form() -> None:
    now, _ = hand_made()
    for beta, gamma in ((2.5, 0.0), (4.5, 1.0)):
        expected = -(2 / beta) * torch.log(torch.sigmoid(-beta * now - gamma)).mean()
        value = simnpo.simnpo_loss(now, beta, gamma)
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)


def test_simnpo_is_npo_under_a_uniform_reference_of_probability_one() -> None:
    now, _ = hand_made()
    assert torch.equal(simnpo.simnpo_loss(now, 0.7, 0.0), npo.npo_loss(now, 0 * now, 0.7))


def test_kl_is_the_divergence_from_the_reference() -> None:
    now = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], dtype=torch.double)
    reference = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], dtype=torch.double)
    by_hand = (0.25 * math.log(0.25 / 0.5) + 0.5 * math.log(0.5 / 0.25)) / 2
    assert kl.kl_loss(now.log(), reference.log()).item() == pytest.approx(by_hand, rel=1e-12)
    assert kl.kl_loss(reference.log(), reference.log()).item() == 0


def test_kl_starts_at_zero_and_grows(problem: Problem) -> None:
    history = named("kl")(problem, learning_rate=1e-3, steps=3, batch=8).history
    assert abs(history[0].values["retain"]) < 1e-6
    assert abs(history[0].values["text"]) < 1e-6
    assert history[2].values["retain"] > 1e-4


def alone(
    subject: Subject, forget: Examples, retain: Examples, text: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """What ``forget_and_retain`` gives, each term on its own and each row by the plain model."""

    def answers(rows: Examples) -> Tensor:
        each = zip(rows_of(rows.tokens, rows.length), rows.answer, strict=True)
        return torch.stack([answer_alone(subject, row, answer) for row, answer in each])

    kept = {"retain": -answers(retain).mean()}
    if text is not None:
        kept["text"] = torch.cat([text_alone(subject, row) for row in rows_of(*text)]).mean()
    return answers(forget), kept


def batch_of(forget: Examples, retain: Examples, text: tuple[Tensor, Tensor] | None) -> Batch:
    nothing = torch.empty(0)
    return Batch(forget, retain, text, nothing, nothing, nothing)


@pytest.mark.parametrize("size", [384, 20])
def test_losses_are_those_of_each_row_run_alone(
    problem: Problem, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing, gathering and shifting, against the plain model on one row at a time."""
    monkeypatch.setitem(packing.SIZE, "cpu", size)
    subject, retain = problem.subject, problem.retain.select(range(0, 96, 7))
    forget = problem.forget.select(range(0, 96, 7))
    text = problem.text[0][:5], problem.text[1][:5]
    with torch.no_grad():
        expected, kept = alone(subject, forget, retain, text)
        torch.testing.assert_close(answer_log_probability(subject, forget), expected)
        found, terms = forget_and_retain(subject, batch_of(forget, retain, text), 2.0)
        torch.testing.assert_close(found, expected)
        same, bare = forget_and_retain(subject, batch_of(forget, retain, None), 2.0)
        torch.testing.assert_close(same, expected)
    assert terms.keys() == kept.keys() and bare.keys() == {"retain"}
    for name, term in terms.items():
        assert term.item() == pytest.approx(2 * kept[name].item(), rel=1e-5), name
    assert bare["retain"].item() == pytest.approx(2 * kept["retain"].item(), rel=1e-5)


@pytest.mark.parametrize("size", [384, 16])
@pytest.mark.parametrize("name", FAMILIES)
def test_terms_that_run_together_have_the_gradients_of_each_alone(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a row is in both sets, so that its tokens are shared by two terms."""
    monkeypatch.setitem(packing.SIZE, "cpu", size)
    subject = family(name)
    forget, retain = known_examples(subject, 4, 1), known_examples(subject, 3, 2)
    retain.tokens[0], retain.length[0] = forget.tokens[1], forget.length[1]
    text = retain.tokens[1:, :5].clone(), torch.tensor([5, 3])  # text that begins as a fact does
    weights = list(subject.parameters.values())
    with differentiable(*weights):
        expected, kept = alone(subject, forget, retain, text)
        found, terms = forget_and_retain(subject, batch_of(forget, retain, text), 0.7)
        pairs = [(found.mean(), expected.mean()), (terms["retain"], 0.7 * kept["retain"])]
        pairs.append((terms["text"], 0.7 * kept["text"]))
        for one, other in pairs:
            assert one.item() == pytest.approx(other.item(), rel=1e-4)
            got = torch.autograd.grad(one, weights, retain_graph=True)
            for g, want in zip(got, torch.autograd.grad(other, weights), strict=True):
                least = 1e-4 * float(want.abs().max())
                torch.testing.assert_close(g, want, atol=least, rtol=1e-3)


def test_first_step_of_graddiff_is_adamw_on_the_published_objective(problem: Problem) -> None:
    subject = problem.subject
    rows = next(batches(problem, 8))
    with scratch(subject, subject.parameters):
        forget, kept = alone(subject, rows.forget, rows.retain, rows.text)
        loss = forget.mean() + torch.stack([*kept.values()]).sum()
        loss.backward()
        gradient = {n: p.grad.clone() for n, p in subject.parameters.items() if p.grad is not None}
    assert set(kept) == {"retain", "text"}
    norm = torch.stack([g.norm() for g in gradient.values()]).norm()
    outcome = named("graddiff")(problem, learning_rate=1e-3, steps=1, batch=8)
    assert outcome.history[0].values["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    change = dense(problem, outcome.edit)
    for name, g in gradient.items():
        g = g / max(norm.item(), 1.0)
        certain = g.abs() > 1e-5  # below, rounding decides the sign
        expected = -1e-3 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(change[name][certain], expected[certain], atol=2e-6, rtol=2e-3)


@pytest.mark.parametrize("name", ["graddiff", "npo", "kl", "sure"])
@pytest.mark.usefixtures("untouched")
def test_the_defaults_forget_on_a_toy_too(problem: Problem, name: str) -> None:
    outcome = named(name)(problem)
    assert outcome.settings["learning_rate"] == TOY_RATE
    before = measure(problem.subject, problem.forget).accuracy
    with outcome.edit.applied(problem.subject):
        assert measure(problem.subject, problem.forget).accuracy < 0.5 < 0.9 < before
        assert measure(problem.subject, problem.retain).accuracy > 0.9


# What every baseline promises


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.usefixtures("untouched")
def test_only_quantized_weights_are_moved_where_that_is_asked(problem: Problem, name: str) -> None:
    settings = {"learning_rate": RATE.get(name, 1e-3), "steps": 2, "batch": 8}
    everything = named(name)(problem, **settings).edit
    edit = named(name)(problem, **settings, only_quantized=True).edit
    assert edit.n_moved > 0 and set(edit.changes) <= set(problem.subject.quantized_names)
    if name not in ("rmu", "null_space"):  # they train no others anyway
        assert not set(everything.changes) <= set(problem.subject.quantized_names)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.usefixtures("untouched")
def test_every_baseline_edits_and_leaves_the_subject_alone(problem: Problem, name: str) -> None:
    seen: list[tuple[int, Tensor]] = []
    told: list[Step] = []

    def watch(step: int) -> bool:
        with torch.no_grad():
            seen.append((step, answer_log_probability(problem.subject, problem.forget)))
        return False

    watched = dataclasses.replace(problem, on_step=told.append, watch=watch)
    settings = {"learning_rate": RATE.get(name, 1e-3), "steps": 3, "batch": 8}
    outcome = named(name)(watched, **settings)
    again = named(name)(problem, **settings)
    other = named(name)(dataclasses.replace(problem, seed=1), **settings)

    assert outcome.edit.n_moved > 0
    assert [step for step, _ in seen] == [1, 2, 3]
    assert tuple(told) == outcome.history
    assert [(h.done, h.total, h.stage, h.method) for h in told] == [
        (i, 3, "unlearn", name) for i in (1, 2, 3)
    ]
    assert settings.items() <= outcome.settings.items()
    of = {"subject": "tiny", "fingerprint": problem.subject.fingerprint}
    assert outcome.edit.meta == {"method": name, "seed": 0, **outcome.settings, **of}
    json.dumps([outcome.settings, [h.to_json() for h in outcome.history], outcome.stopped])
    with outcome.edit.applied(problem.subject), torch.no_grad():
        now = answer_log_probability(problem.subject, problem.forget)
    assert torch.equal(now, seen[-1][1])  # it saw the weights that are returned
    assert outcome.history == again.history
    for key, (where, values) in outcome.edit.changes.items():
        assert torch.equal(where, again.edit.changes[key][0])
        assert torch.equal(values, again.edit.changes[key][1])
    assert outcome.history != other.history


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.usefixtures("untouched")
def test_an_exception_from_a_listener_cancels_cleanly(problem: Problem, name: str) -> None:
    steps: list[Step] = []

    def cancel(step: Step) -> None:
        steps.append(step)
        if len(steps) == 2:
            raise CancelledError

    with pytest.raises(CancelledError):
        named(name)(
            dataclasses.replace(problem, on_step=cancel), learning_rate=1e-2, steps=5, batch=8
        )
    assert len(steps) == 2


@pytest.mark.parametrize("name", ["graddiff", "npo", "kl", "simnpo"])
def test_a_large_enough_rate_forgets_and_retains(problem: Problem, name: str) -> None:
    weight = {"forget_weight": 1.0} if name == "simnpo" else {}
    outcome = named(name)(problem, learning_rate=1e-3, steps=12, batch=16, **weight)
    with outcome.edit.applied(problem.subject):
        assert measure(problem.subject, problem.forget).accuracy < 0.5
        assert measure(problem.subject, problem.retain).accuracy > 0.9
    assert measure(problem.subject, problem.forget).accuracy > 0.9


@pytest.mark.usefixtures("untouched")
def test_whoever_watches_can_end_a_run(problem: Problem) -> None:
    watched = dataclasses.replace(problem, watch=lambda step: step == 2)
    ended = named("npo")(watched, learning_rate=1e-3, steps=4, batch=8)
    assert ended.stopped == "it was told to end after step 2"
    short = named("npo")(problem, learning_rate=1e-3, steps=2, batch=8)
    assert [h.values for h in ended.history] == [h.values for h in short.history]
    for name, change in dense(problem, short.edit).items():
        assert torch.equal(dense(problem, ended.edit)[name], change)


def test_a_shorter_run_is_the_beginning_of_a_longer_one(problem: Problem) -> None:
    short = named("npo")(problem, learning_rate=1e-3, steps=2, batch=8)
    long = named("npo")(problem, learning_rate=1e-3, steps=4, batch=8)
    assert [h.values for h in long.history[:2]] == [h.values for h in short.history]


@pytest.mark.usefixtures("untouched")
def test_training_stops_where_the_loss_becomes_infinite(problem: Problem) -> None:
    outcome = named("graddiff")(problem, learning_rate=1e15, steps=5, batch=8)
    assert "infinite at step" in outcome.stopped
    assert len(outcome.history) < 5
    assert all(torch.isfinite(values).all() for _, values in outcome.edit.changes.values())


@pytest.mark.parametrize("name", ["ga", "graddiff", "kl", "rmu", "null_space"])
def test_a_task_without_plain_text_works(problem: Problem, name: str) -> None:
    bare = dataclasses.replace(problem, text=tasks.pad([]))
    outcome = named(name)(bare, learning_rate=1e-3, steps=2, batch=8)
    assert outcome.edit.n_moved > 0
    assert "text" not in outcome.history[0].values


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("ga", {"learning_rate": 0.0}, "learning_rate of ga is 0.0"),
        ("npo", {"beta": -1.0}, "beta of npo is -1.0"),
        ("simnpo", {"beta": 0.0}, "beta of simnpo"),
        ("sure", {"percentile": 100.0}, "percentile of sure"),
        ("null_space", {"energy": 1.0}, "energy of null_space"),
        ("task_vector", {"alpha": 0.0}, "alpha of task_vector"),
        ("rmu", {"layer": 3}, "layers 0 to 2"),
        ("graddiff", {"steps": 0}, "steps of graddiff is 0"),
        ("graddiff", {"steps": 99_999_999_999}, "steps of graddiff is 99999999999"),
    ],
)
def test_bad_settings_are_named(
    problem: Problem, name: str, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadInputError, match=says):
        named(name)(problem, **settings)


# Where the edits fall


def test_sure_moves_only_the_most_salient_neurons(problem: Problem) -> None:
    subject = problem.subject
    with scratch(subject, subject.parameters):
        (-answer_log_probability(subject, problem.forget).mean()).backward()
        norms = {
            n: [row.norm().item() for row in p.grad]
            for n, p in subject.parameters.items()
            if p.grad is not None
        }
    ordered = sorted(value for rows in norms.values() for value in rows)
    threshold = ordered[int(0.9 * len(ordered))]
    change = dense(problem, named("sure")(problem, learning_rate=1e-3, steps=3, batch=8).edit)
    moved = 0
    for name, rows in norms.items():
        for i, value in enumerate(rows):
            row_moved = bool((change[name][i] != 0).any())
            moved += row_moved
            assert not row_moved or value >= threshold * (1 - 1e-4), (name, i)
    assert 0.08 * len(ordered) < moved <= 0.101 * len(ordered)


def test_rmu_moves_only_its_layers_and_measures_its_objective(problem: Problem) -> None:
    subject = problem.subject
    names = rmu.trained_names(subject, 1)
    assert names == tuple(f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1))
    outcome = named("rmu")(problem, learning_rate=1e-3, steps=2, batch=8, layer=1, steering=5.0)
    assert set(outcome.edit.changes) == set(names)

    rows = next(batches(problem, 8)).forget
    direction = torch.rand(subject.config.hidden_size, generator=torch.Generator().manual_seed(0))
    target = 5.0 * direction / direction.norm()
    captured: list[Tensor] = []
    layer = subject.model.get_decoder().layers[1]  # type: ignore[operator,union-attr]
    handle = layer.register_forward_hook(
        lambda module, args, output: captured.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    try:
        with torch.no_grad():
            for row in rows_of(rows.tokens, rows.length):
                states_alone(subject, row)
    finally:
        handle.remove()
    hidden = torch.cat([h[0] for h in captured])
    assert len(hidden) == int(rows.length.sum())
    expected = ((hidden - target) ** 2).mean().item()
    assert outcome.history[0].values["forget"] == pytest.approx(expected, rel=1e-4)
    assert outcome.history[0].values["retain"] == pytest.approx(0, abs=1e-6)
    assert outcome.history[1].values["retain"] > 0


@pytest.fixture(scope="module")
def narrow(problem: Problem) -> Problem:
    """Few retain rows, so that their inputs do not span everything."""
    text = problem.text[0][:2], problem.text[1][:2]
    return dataclasses.replace(problem, retain=problem.retain.select(range(0, 96, 12)), text=text)


def test_null_space_leaves_the_retain_outputs_alone(narrow: Problem) -> None:
    """If each weight's outputs on the retain inputs are unchanged, so are the model's."""
    subject = narrow.subject
    outcome = named("null_space")(narrow, learning_rate=3e-3, steps=4, batch=8, energy=0.999999)
    free = named("ga")(narrow, learning_rate=3e-3, steps=4, batch=8)

    def outputs(rows: tasks.Examples) -> Tensor:
        with torch.no_grad():
            return subject.next_token_logits(rows.tokens, rows.length)

    forget, retain = outputs(narrow.forget), outputs(narrow.retain)
    with outcome.edit.applied(subject):
        changed, kept = outputs(narrow.forget) - forget, outputs(narrow.retain) - retain
    with free.edit.applied(subject):
        unprotected = outputs(narrow.retain) - retain
    assert set(outcome.edit.changes) <= set(subject.quantized_names)
    assert kept.abs().max() < 1e-2 * unprotected.abs().max()
    assert kept.abs().max() < 1e-2 * changed.abs().max()
    assert outcome.history[-1].values["forget"] < outcome.history[0].values["forget"] - 0.1


def test_task_vector_is_minus_alpha_times_the_fine_tuning(problem: Problem) -> None:
    def descend(rows: Batch) -> Iterator[tuple[str, Tensor]]:
        yield "forget", -answer_log_probability(problem.subject, rows.forget).mean()

    settings = TrainingSettings(learning_rate=1e-3, steps=3, batch=8)
    tuned = dense(problem, train(problem, settings, descend).edit)
    negated = dense(
        problem, named("task_vector")(problem, alpha=2.0, **dataclasses.asdict(settings)).edit
    )
    for name, change in tuned.items():
        torch.testing.assert_close(negated[name], -2 * change, atol=1e-6, rtol=0)


# The loop's parts


@pytest.mark.usefixtures("untouched")
def test_scratch_restores_after_an_exception_and_holds_the_lock(tiny: Subject) -> None:
    name = "model.norm.weight"
    got = []
    with pytest.raises(CancelledError), scratch(tiny, [name]) as before:
        other = threading.Thread(target=lambda: got.append(tiny.lock.acquire(blocking=False)))
        other.start()
        other.join()
        parameter = tiny.parameters[name]
        assert parameter.requires_grad
        assert not tiny.parameters["model.embed_tokens.weight"].requires_grad
        parameter.sum().backward()
        parameter.data.mul_(torch.nan)
        assert not torch.isnan(before[name]).any()
        raise CancelledError
    assert got == [False]


def test_scratch_names_a_parameter_that_does_not_exist(tiny: Subject) -> None:
    with (
        pytest.raises(MansuError, match=r"no parameter 'lm_head\.bias'"),
        scratch(tiny, ["lm_head.bias"]),
    ):
        pass


def test_batches_are_permutations_with_the_rows_they_say(problem: Problem) -> None:
    stream = batches(problem, 20)
    seen: list[int] = []
    for _ in range(4):  # 96 rows: four whole batches a pass
        batch = next(stream)
        assert torch.equal(batch.forget.answer, problem.forget.answer[batch.forget_rows])
        assert torch.equal(batch.retain.answer, problem.retain.answer[batch.retain_rows])
        assert batch.text is not None
        assert torch.equal(batch.text[1], problem.text[1][batch.text_rows])
        assert (len(batch.forget), len(batch.retain), len(batch.text_rows)) == (20, 20, 3)
        seen += batch.forget_rows.tolist()
    assert len(set(seen)) == 80


def test_a_batch_larger_than_the_set_is_the_set(problem: Problem) -> None:
    batch = next(batches(problem, 1000))
    assert sorted(batch.forget_rows.tolist()) == list(range(len(problem.forget)))


# Gradients in bfloat16


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.usefixtures("untouched")
def test_bfloat16_is_recorded_and_changes_an_edit_only_a_little(
    problem: Problem, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "has_bfloat16", lambda device: True)
    values: dict[str, Any] = {"learning_rate": RATE.get(name, 1e-3), "steps": 6, "batch": 8}
    usual = named(name)(problem, **values)
    exact = named(name)(problem, **values, bfloat16=False)
    half = named(name)(problem, **values, bfloat16=True)
    assert problem.subject.is_toy and usual.settings["bfloat16"] is False
    assert exact.settings == usual.settings and exact.history == usual.history
    assert half.settings == {**exact.settings, "bfloat16": True}
    one, other, again = (dense(problem, o.edit) for o in (exact, half, usual))
    assert all(torch.equal(again[n], change) for n, change in one.items())
    first, second = (torch.cat([c.flatten() for c in x.values()]) for x in (one, other))
    assert not torch.equal(first, second)
    # RMU's weight of 100 on what holds states in place finds their rounding too.
    least = 0.95 if name == "rmu" else 0.98
    assert least < float(torch.cosine_similarity(first, second, 0)) < 1
    assert float(second.norm()) == pytest.approx(float(first.norm()), rel=0.05)
    most = 0.02 if name == "rmu" else 0.002  # of 16 draws of rows, 0.009 was the largest
    for key, value in exact.history[0].values.items():
        assert half.history[0].values[key] == pytest.approx(value, rel=0.02, abs=most), key


@pytest.mark.parametrize("name", ["ga", "mansu"])
def test_bfloat16_that_the_processor_lacks_is_refused(
    problem: Problem, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "has_bfloat16", lambda device: False)
    n = problem.subject.quantized_names[0]
    mask = {n: torch.ones_like(problem.subject.parameters[n]).bool()}
    here = dataclasses.replace(problem, mask=mask)
    with pytest.raises(BadInputError) as caught:
        named(name)(here, steps=1, bfloat16=True)
    said = str(caught.value)
    assert said == "This processor has no products of bfloat16: leave the setting bfloat16 empty."
    assert named(name)(here, steps=1).settings["bfloat16"] is False


def test_bfloat16_is_chosen_where_it_is_and_the_model_no_toy(
    tiny: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = dataclasses.replace(tiny)
    object.__setattr__(large, "n_parameters", 10_000_000)  # a cached property
    for has in (True, False):
        monkeypatch.setattr(training, "has_bfloat16", lambda device, has=has: has)
        assert [training.chosen_bfloat16(s, None) for s in (tiny, large)] == [False, has]
        assert not training.chosen_bfloat16(large, False)
    assert training.has_bfloat16(torch.device("meta")) is False


# The retrained reference


def test_the_reference_is_an_edit_like_any_other(problem: Problem, untouched: None) -> None:
    outcome = named("retrained")(problem)
    other = subjects.load(subjects.RETRAINED)
    assert outcome.edit.label == "retrained" and outcome.settings == {}
    assert outcome.edit.meta["fingerprint"] == problem.subject.fingerprint
    with outcome.edit.applied(problem.subject):
        for name, parameter in problem.subject.parameters.items():
            assert torch.equal(parameter, other.parameters[name]), name


def test_no_reference_no_edit(problem: Problem, tiny_task: tasks.Task) -> None:
    fewer = tuple(f for f in tiny_task.facts if f.row > 1)
    wrong = (
        dataclasses.replace(problem, subject=family("llama")),
        dataclasses.replace(problem, task=tasks.load("capitals")),
        dataclasses.replace(problem, task=dataclasses.replace(tiny_task, facts=fewer)),
    )
    for elsewhere in wrong:
        with pytest.raises(BadInputError, match="No retrained reference ships") as caught:
            named("retrained")(elsewhere)
        assert str(caught.value).endswith("run another method.")


# On a GPU


@pytest.fixture(scope="module")
def on_devices(problem: Problem) -> list[Problem]:
    """On the GPU and on the processor."""
    subjects = [moved(problem.subject, device) for device in ("cuda", "cpu")]
    return [dataclasses.replace(problem, subject=subject) for subject in subjects]


@needs_cuda
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_does_on_a_gpu_what_it_does_on_the_processor(
    on_devices: list[Problem], name: str
) -> None:
    subject = on_devices[0].subject
    start = {n: p.detach().clone() for n, p in subject.parameters.items()}
    values: dict[str, Any] = {"learning_rate": RATE.get(name, 1e-3), "steps": 3, "batch": 8}
    found, wanted = (named(name)(each, **values) for each in on_devices)
    for key, value in wanted.history[0].values.items():
        assert found.history[0].values[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key
    one, other = (dense(each, found.edit) for each in on_devices)
    assert any(bool(change.any()) for change in one.values())
    assert all(torch.equal(change.cpu(), other[n]) for n, change in one.items())
    theirs = dense(on_devices[1], wanted.edit)
    both = [torch.cat([change.flatten() for change in x.values()]) for x in (other, theirs)]
    alike = float(torch.cosine_similarity(both[0], both[1], 0))
    print(f"{name}: cosine of the two edits {alike:.5f}")
    assert alike > 0.95  # AdamW's step is the gradient's sign where it is all but zero
    half = named(name)(on_devices[0], **values, bfloat16=True)
    assert half.edit.n_moved > 0 and half.settings["bfloat16"] is True
    for n, parameter in subject.parameters.items():
        assert torch.equal(parameter.view(torch.int32), start[n].view(torch.int32)), n
        assert not parameter.requires_grad and parameter.grad is None


@pytest.mark.parametrize("name", ["ga", "null_space"])
def test_small_steps_count_in_a_model_of_bfloat16_too(tiny_task: tasks.Task, name: str) -> None:
    """A step of 1e-5 is less than half of what two neighbouring values of bfloat16 differ by."""
    fell = {}
    for dtype in ("float32", "bfloat16"):
        subject = mansu.load("tiny", dtype=dtype)
        before = mansu.evaluate(subject, tiny_task)
        edit = mansu.unlearn(subject, tiny_task, method=name, learning_rate=1e-5, steps=16)
        after = mansu.evaluate(subject, tiny_task, edit)
        fall = [m.splits["forget"].log_probability.mean() for m in (before, after)]
        fell[dtype] = fall[0] - fall[1]
    assert fell["float32"] > 0.001
    assert fell["bfloat16"] == pytest.approx(fell["float32"], rel=0.25)
