from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alone import differentiable, logits_alone, rows_of, text_alone
from families import FAMILIES, VOCABULARY, family
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, multinomial
from transformers import AutoModelForCausalLM

from mansu import tasks
from mansu.errors import DamagedError, MansuError
from mansu.measure.scores import (
    EVALUATED,
    Measurement,
    Scores,
    following_losses,
    measure,
    measure_sets,
    measure_task,
    right,
    share_right,
    text_loss,
    text_losses,
)
from mansu.sets.continuation import log_probabilities
from mansu.show.numbers import between, measured
from mansu.statistics import (
    CHANGE,
    FEW,
    SHARE,
    Interval,
    McNemar,
    _bootstrap,
    _itself,
    at_most,
    bootstrap,
    change,
    fewest,
    mcnemar,
    of_skewed,
)
from mansu.subjects import packing
from mansu.subjects.edit import Edit
from mansu.subjects.shipped import TINY_FOLDER
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task
from mansu.tasks.tokens import Examples, examples


@pytest.fixture(scope="module")
def plain() -> Any:
    """The tiny model as Hugging Face runs it, without the bridge."""
    return AutoModelForCausalLM.from_pretrained(TINY_FOLDER).eval()


@torch.no_grad()
def logits_of(model: Any, subject: Subject, prompt: str) -> torch.Tensor:
    return model(input_ids=torch.tensor([subject.encode(prompt)])).logits[0, -1]


@pytest.mark.parametrize("split", [s for s in EVALUATED if tasks.load("tiny-colours").split(s)])
@pytest.mark.parametrize("size", [40, 384])
def test_measure_is_a_loop_over_rows(
    tiny: Subject,
    tiny_task: Task,
    plain: Any,
    split: str,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(packing.SIZE, "cpu", size)
    rows = tasks.examples(tiny_task, tiny, split)
    scores = measure(tiny, rows)
    facts = {f.row: f for f in tiny_task.facts}
    for i, row in enumerate(rows.rows):
        logits = logits_of(plain, tiny, facts[row].prompt)
        (answer,) = tiny.encode(facts[row].answer)
        wrong = [float(logits[d]) for d in rows.distractors[i]]
        assert scores.answer[i] == answer
        assert scores.margin[i] == pytest.approx(float(logits[answer]) - max(wrong), abs=1e-4)
        log_probability = float(logits.log_softmax(0)[answer])
        assert scores.log_probability[i] == pytest.approx(log_probability, abs=1e-4)
        assert scores.correct[i] == all(float(logits[answer]) > w for w in wrong)
        assert scores.top1[i] == (int(logits.argmax()) == answer)
    assert scores.rows == rows.rows and scores.groups == rows.groups


def test_scores_fall_when_the_answer_is_wrong(tiny: Subject, tiny_task: Task) -> None:
    """Asked for a distractor, a model that knows the facts is right in no row."""
    rows = tasks.examples(tiny_task, tiny, "forget")
    distractors = rows.distractors.clone()
    distractors[:, 0] = rows.answer
    swapped = tasks.Examples(
        rows.tokens,
        rows.length,
        rows.distractors[:, 0],
        distractors,
        rows.candidates,
        rows.vocabulary,
        rows.rows,
        rows.groups,
    )
    scores = measure(tiny, swapped)
    assert scores.accuracy == 0 and not scores.top1.any() and (scores.margin < 0).all()


@settings(max_examples=25)
@given(st.integers(1, 7), st.integers(0, 5), st.integers(0, VOCABULARY - 1))
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_right_padding_changes_no_logits(name: str, length: int, pads: int, junk: int) -> None:
    subject = family(name)
    tokens = torch.randint(1, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(3))
    padded = torch.cat([tokens, torch.full((2, pads), junk)], 1)
    real = torch.full((2,), length)
    with torch.no_grad():
        alone = subject.next_token_logits(tokens, real)
        torch.testing.assert_close(
            subject.next_token_logits(padded, real), alone, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    ("others", "share"),
    [
        ([0.0, -1.0, -2.0], 1),
        ([1.0, -1.0, -2.0], 1 / 2),
        ([1.0, 1.0, -2.0], 1 / 3),
        ([1.0, 1.0, 1.0], 1 / 4),
        ([1.0, 1.0, 2.0], 0),
    ],
)
def test_ties_count_as_a_share(others: list[float], share: float) -> None:
    found = share_right(torch.tensor([1.0]), torch.tensor([others]))
    assert float(found) == pytest.approx(share)


def test_a_model_with_equal_logits_is_at_chance(tiny: Subject, tiny_task: Task) -> None:
    """Its embedding, which is its head, at zero: every answer is as probable as every other."""
    name = "model.embed_tokens.weight"
    nothing = {name: torch.zeros_like(tiny.parameters[name])}
    rows = tasks.examples(tiny_task, tiny, "forget")
    with Edit.between(tiny.parameters, nothing, "nothing").applied(tiny):
        scores = measure(tiny, rows)
    assert scores.accuracy == 0.25 and set(scores.correct) == {0.25}
    again = Scores.from_json(json.loads(json.dumps(scores.to_json())))
    assert np.array_equal(again.correct, scores.correct)
    usual = measure(tiny, rows)
    test = mcnemar(scores.correct, usual.correct)  # a tie is not right
    assert (test.first, test.second) == (0, int(usual.correct.sum()))


def test_logits_that_are_not_finite_are_an_error(tiny: Subject, tiny_task: Task) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    broken = {name: torch.full_like(tiny.parameters[name], 3e38)}  # finite, but not what it makes
    rows = tasks.examples(tiny_task, tiny, "forget").select([0, 1])
    with Edit.between(tiny.parameters, broken, "broken").applied(tiny):
        with pytest.raises(MansuError, match="logits are not finite"):
            measure(tiny, rows)
        with pytest.raises(MansuError, match="losses are not finite"):
            text_loss(tiny, *tasks.text(tiny_task, tiny))
        with pytest.raises(MansuError, match="logits are not finite"):
            log_probabilities(tiny, ["The colour of boben is"], [" blue"])


@pytest.mark.parametrize("size", [1, 60, 10**6])  # each row alone, several packs, one
def test_packs_change_nothing(
    tiny: Subject, tiny_task: Task, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, written = tasks.examples(tiny_task, tiny, "paraphrase"), tasks.text(tiny_task, tiny)
    usual, loss = measure(tiny, rows), text_loss(tiny, *written)
    monkeypatch.setitem(packing.SIZE, "cpu", size)
    found = measure(tiny, rows)
    np.testing.assert_allclose(found.margin, usual.margin, atol=1e-5)
    np.testing.assert_allclose(found.log_probability, usual.log_probability, atol=1e-5)
    assert text_loss(tiny, *written) == pytest.approx(loss, abs=1e-5)


def every_split(task: Task, subject: Subject) -> list[Examples]:
    """The splits of a task, of unlike widths and in no order, one of a row that another has too."""
    sets = [examples(task, subject, split) for split in ("paraphrase", *EVALUATED[:3])]
    return [sets[0].select(range(len(sets[0]) - 1, -1, -2)), *sets[1:], sets[1].select([5])]


@pytest.mark.parametrize("size", [50, 384])
def test_sets_that_run_together_are_measured_as_each_alone(
    tiny: Subject, tiny_task: Task, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packing.SIZE, "cpu", size)
    sets = every_split(tiny_task, tiny)
    together, just = measure_sets(tiny, sets), right(tiny, *sets)
    for rows, found, correct in zip(sets, together, just, strict=True):
        expected = measure(tiny, rows)
        for name in ("correct", "top1", "answer"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)), name
        for name in ("log_probability", "margin"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-4)
        for name in ("groups", "rows", "facts"):
            assert getattr(found, name) == getattr(expected, name), name
        assert np.array_equal(correct.numpy(), expected.correct.astype(np.float32))


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([1, 25, 384]))
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_right_is_what_measure_finds_correct(name: str, seed: int, size: int) -> None:
    """On random rows, where some are right and some wrong, and on tied choices."""
    subject, generator = family(name), torch.Generator().manual_seed(seed)

    def rows(n: int) -> Examples:
        tokens = torch.randint(1, VOCABULARY, (n, 6), generator=generator)
        length = torch.randint(1, 7, (n,), generator=generator)
        choices = torch.randint(VOCABULARY, (n, 4), generator=generator)
        choices[::3, 2] = choices[::3, 0]  # equal choices tie
        candidates = torch.ones(n, VOCABULARY, dtype=torch.bool)
        answer, wrong = choices[:, 0], choices[:, 1:]
        vocabulary, facts = torch.arange(VOCABULARY), tuple(f"{seed} {i}" for i in range(n))
        ids, groups = tuple(range(n)), ("all",) * n
        return Examples(
            tokens, length, answer, wrong, candidates, vocabulary, ids, groups, (), facts
        )

    sets = [rows(5), rows(1), rows(8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(packing.SIZE, "cpu", size)
        found, together = right(subject, *sets), measure_sets(subject, sets)
    for one, correct, scores in zip(sets, found, together, strict=True):
        with torch.no_grad():
            logits = torch.stack(
                [logits_alone(subject, row)[-1] for row in rows_of(one.tokens, one.length)]
            )
        own = logits.gather(1, one.answer[:, None])
        others = logits.gather(1, one.distractors)
        by_hand = share_right(own[:, 0], others).numpy()
        tied = one.distractors == one.answer[:, None]
        sure = (tied | ((own - others).abs() > 1e-4)).all(1).numpy()  # rounding decides no order
        assert sure.any() or len(one) == 1
        assert np.array_equal(correct.numpy()[sure], by_hand[sure])
        assert np.array_equal(scores.correct[sure], by_hand.astype(float)[sure])
        np.testing.assert_allclose(scores.margin, (own - others).amin(1), atol=1e-4)
        expected = logits.log_softmax(1).gather(1, one.answer[:, None])[:, 0]
        np.testing.assert_allclose(scores.log_probability, expected, atol=1e-4)
        assert np.array_equal(scores.top1, (logits.argmax(1) == one.answer).numpy())
        assert scores.facts == one.facts


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_of_texts_are_those_of_each_alone(name: str) -> None:
    """In packs, from the states of all tokens, and the gradients too."""
    subject, generator = family(name), torch.Generator().manual_seed(4)
    tokens = torch.randint(1, VOCABULARY, (4, 9), generator=generator)
    tokens[1, :5] = tokens[3, :5]  # two that begin alike
    length = torch.tensor([9, 7, 1, 6])
    weights = list(subject.parameters.values())
    with differentiable(*weights):
        alone = torch.cat([text_alone(subject, row) for row in rows_of(tokens, length)])
        packed = text_losses(subject, tokens, length)
        states = following_losses(subject, subject.states(tokens, length), tokens, length)
        torch.testing.assert_close(states, alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(packed.sort()[0], alone.sort()[0], atol=1e-4, rtol=1e-4)
        expected, *found = (
            torch.autograd.grad(losses.mean(), weights) for losses in (alone, packed, states)
        )
    for gradients in found:
        for g, want in zip(gradients, expected, strict=True):
            torch.testing.assert_close(g, want, atol=1e-4 * float(want.abs().max()), rtol=1e-3)


def test_text_loss_is_that_of_hugging_face(tiny: Subject, tiny_task: Task, plain: Any) -> None:
    tokens, length = tasks.text(tiny_task, tiny)
    short, _ = tasks.pad([tokens[0].tolist(), tokens[1, :4].tolist(), tokens[2, :1].tolist()])
    real = torch.tensor([int(length[0]), 4, 1])
    total = 0.0
    for row, n in zip(short[:2], real[:2], strict=True):
        ids = row[None, :n]
        with torch.no_grad():
            total += float(plain(input_ids=ids, labels=ids).loss) * (int(n) - 1)
    want = total / int((real - 1).sum())
    assert text_loss(tiny, short, real) == pytest.approx(want, abs=1e-5)


def test_measurement_is_saved_and_loaded(tiny: Subject, tiny_task: Task) -> None:
    measured = measure_task(tiny, tiny_task)
    again = Measurement.from_json(json.loads(json.dumps(measured.to_json(), allow_nan=False)))
    assert again.text_loss == measured.text_loss
    for split, scores in measured.splits.items():
        for field in ("correct", "top1", "answer"):
            assert (getattr(again.splits[split], field) == getattr(scores, field)).all()
        np.testing.assert_allclose(again.splits[split].margin, scores.margin, atol=1e-5)
        assert again.splits[split].groups == scores.groups
        assert again.splits[split].rows == scores.rows


def test_groups_partition_a_split(tiny: Subject, tiny_task: Task) -> None:
    retain = measure(tiny, tasks.examples(tiny_task, tiny, "retain"))
    homes, foods = retain.group("homes"), retain.group("foods")
    assert sorted(homes.rows + foods.rows) == sorted(retain.rows)
    assert set(homes.groups) == {"homes"}
    assert len(homes.correct) == len(homes.answer) == len(homes.rows) == 32


def test_splits_without_a_usable_row_are_absent(tiny: Subject) -> None:
    names = ("boben", "bodar", "bofin", "bogus")
    colours = (" red", " blue", " green", " white")
    lines = [
        {"prompt": f"The colour of {n} is", "answer": c, "split": split}
        for split in ("forget", "retain")
        for n, c in zip(names, colours, strict=True)
    ]
    lines.append({"prompt": "The opposite of hot is", "answer": " very cold", "split": "holdout"})
    lines.append({"text": "The", "split": "text"})
    task = tasks.parse("\n".join(map(json.dumps, lines)), "mine")
    measured = measure_task(tiny, task)
    assert set(measured.splits) == {"forget", "retain"}
    assert measured.text_loss is None


# ---------------------------------------------------------------------------------- bootstrap


def test_bootstrap_of_a_mean_is_the_closed_form() -> None:
    """Efron: for a mean the percentile interval tends to mean ± 1.96 sd / sqrt(n)."""
    values = np.random.default_rng(0).normal(2, 3, 2000)
    got = bootstrap(values, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert got.value == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert got.high == pytest.approx(values.mean() + half, abs=0.06 * half)


def test_bootstrap_of_copies_is_the_bootstrap_of_the_facts() -> None:
    facts = np.random.default_rng(1).random(30)
    once = bootstrap(facts)
    copies = bootstrap(np.repeat(facts, 4), clusters=np.repeat(np.arange(30), 4))
    assert (copies.value, copies.low, copies.high) == pytest.approx(
        (once.value, once.low, once.high)
    )


def test_bootstrap_coverage_with_and_without_clusters() -> None:
    """30 facts, 4 rephrasings each that all agree. Clustered, the 95 % interval covers the truth
    about as often as it says; without clusters it takes rephrasings for evidence and covers
    2 Φ(1.96 / √4) − 1 = 67 % of the time."""
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(30), 4)
    trials, covered, naive = 400, 0, 0
    for seed in range(trials):
        values = np.repeat(rng.normal(0, 1, 30), 4)
        inside = bootstrap(values, resamples=400, seed=seed, clusters=clusters)
        outside = bootstrap(values, resamples=400, seed=seed)
        covered += inside.low <= 0 <= inside.high
        naive += outside.low <= 0 <= outside.high
    # Four standard errors of a share over 400 trials are 4.4 and 9.4 points; the percentile
    # interval of 30 values is itself a little short (its nominal cover is 93.5 %).
    assert covered / trials == pytest.approx(0.935, abs=0.044)
    assert naive / trials == pytest.approx(math.erf(0.98 / math.sqrt(2)), abs=0.094)


def test_bootstrap_of_unequal_clusters_is_a_ratio() -> None:
    values = np.array([1.0, 1.0, 1.0, 0.0])
    got = bootstrap(values, clusters=np.array([7, 7, 7, 2]), within=SHARE)
    assert (got.value, got.low, got.high) == (0.75, 0.0, 1.0)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.integers(0, 3))
@settings(max_examples=50)
def test_bootstrap_stays_within_the_values(values: list[float], seed: int) -> None:
    got = bootstrap(np.array(values), resamples=100, seed=seed)
    assert got.low <= got.value <= got.high
    assert got == _bootstrap(
        np.array(values)[:, None], np.arange(len(values)), 100, seed, _itself, None
    )
    least, most = min(values), max(values)
    inside = bootstrap(np.array(values), resamples=100, seed=seed, within=(least, most))
    assert least - 1e-9 <= inside.low <= inside.high <= most + 1e-9


@pytest.mark.parametrize("n", [3, 5, 8, 20, 60])
def test_of_a_hundred_intervals_of_few_facts_95_hold_the_truth(n: int) -> None:
    """Each fact asked for three times: a percentile interval of 3 facts does 75 times, of 8 86."""
    rng = np.random.default_rng(n)
    held = 0
    for _ in range(400):
        facts = np.repeat(rng.normal(size=n), 3) + 0.3 * rng.normal(size=3 * n)
        got = bootstrap(facts, clusters=np.repeat(np.arange(n), 3), resamples=500)
        held += got.low <= 0 <= got.high
    assert 0.92 <= held / 400 <= 0.98


@pytest.mark.parametrize("n", [2, 6, 16, 59])
def test_where_all_facts_agree_the_bound_is_that_of_so_much_agreement(n: int) -> None:
    nothing = bootstrap(np.zeros(2 * n), clusters=np.repeat(np.arange(n), 2), within=CHANGE)
    assert nothing.value == 0 and nothing.high == -nothing.low
    assert binom.pmf(0, n, nothing.high) == pytest.approx(0.05)
    everything = bootstrap(np.ones(n), within=SHARE)
    assert everything.value == everything.high == 1 and everything.low == 1 - nothing.high
    assert bootstrap(np.zeros(n)).to_json() == [0, 0, 0]  # nats, of one model twice


@pytest.mark.parametrize("change", [0.05, 0.1, 0.3])
def test_the_fewest_facts_that_can_tell_a_change(change: float) -> None:
    n = fewest(change)
    assert bootstrap(np.zeros(n), within=CHANGE).high <= change
    assert bootstrap(np.zeros(n - 1), within=CHANGE).high > change
    assert fewest(0) == fewest(1) == 1


WHOLE, THIRDS, MIXED = (
    (0.05, 0, 0),
    (0.05**3, 3 * 0.05**2 * 0.95, 3 * 0.05 * 0.95**2),
    (0.035, 0, 0.045),
)
"""With which probability a fact of three rows loses three, two and one of them: five points."""


@pytest.mark.parametrize("n", [30, 59, 62, 70, 80, 100])
@pytest.mark.parametrize("law", [WHOLE, THIRDS, MIXED])
def test_a_fall_of_five_points_seldom_passes_for_less(
    n: int, law: tuple[float, float, float]
) -> None:
    """Nominally 2.5 times in 100; where none of n is lost the bound is that of 5 in 100, which is
    passed 0.95^n of the time (from 69 facts on less than 3). Of 62 the bootstrap passed 18."""
    clusters, passed = np.repeat(np.arange(n), 3), 0.0
    for lost in itertools.product(range(FEW), repeat=3):
        if sum(lost) >= FEW or any(k and not p for k, p in zip(lost, law, strict=True)):
            continue
        values = np.zeros((n, 3))
        for rows, end, k in zip((3, 2, 1), np.cumsum(lost), lost, strict=True):
            values[end - k : end, :rows] = 1
        if change(values.ravel(), clusters).high <= 0.05:
            passed += multinomial.pmf((*lost, n - sum(lost)), n, (*law, 1 - sum(law)))
    assert passed <= max(0.03, 0.95**n + 1e-9 if n >= fewest(0.05) else 0)
    many = np.zeros((n, 3))
    many[:FEW, 0] = 1  # of more facts the bootstrap's is no lower
    assert change(many.ravel(), clusters).high > 0.05


def test_a_change_of_few_facts_has_the_exact_bound_and_of_none_or_many_the_bootstrap_s() -> None:
    def of(lost: int, gained: int, n: int = 64) -> tuple[Interval, Interval]:
        values = np.zeros(n)
        values[:lost], values[lost : lost + gained] = 1, -1
        found = change(values, np.arange(n))
        assert change(-values, np.arange(n)).to_json() == pytest.approx((-found).to_json())
        return found, bootstrap(values, clusters=np.arange(n), within=CHANGE)

    for lost, gained in ((0, 0), (10, 0), (20, 5), (0, 64)):
        exact, drawn = of(lost, gained)
        assert exact == drawn
    for lost in (1, 2, 5):
        exact, _ = of(lost, 0)
        assert binom.cdf(lost, 64, exact.high) == pytest.approx(0.025)  # Clopper and Pearson's
    for lost, gained in ((1, 0), (1, 1), (3, 4), (0, 2)):
        exact, drawn = of(lost, gained)
        assert exact.low <= drawn.low and exact.high >= drawn.high and exact.value == drawn.value
    values = np.zeros(3 * 64)
    values[0] = 1  # less than a whole fact, which says less than one: but no less than none
    found = change(values, np.repeat(np.arange(64), 3))
    assert of(0, 0)[0].high <= found.high < of(1, 0)[0].high
    assert change(values, np.zeros(3 * 64)).alone


@pytest.mark.parametrize(("skew", "most"), [(0.5, 0.025), (1.0, 0.05), (1.5, 0.05)])
def test_the_mean_of_16_skewed_texts_is_seldom_above_its_bound(skew: float, most: float) -> None:
    """Lognormal ones; above the bootstrap's own bound it is 7, 14 and 24 times in 100."""
    rng, trials, above, below = np.random.default_rng(1), 400, 0, 0
    for _ in range(trials):
        found = of_skewed(np.exp(skew * rng.normal(size=16)), resamples=1000)
        above += found.high < math.exp(skew**2 / 2)
        below += found.low > math.exp(skew**2 / 2)
    slack = 2 * math.sqrt(most * (1 - most) / trials)
    assert above / trials <= most + slack and below / trials <= 0.025 + slack


def test_so_are_the_falls_of_facts_of_which_a_few_lost_most() -> None:
    """Several rows a fact, some facts of more than others; the bootstrap's own bound: 13."""
    rng, trials, above, facts = np.random.default_rng(3), 300, 0, 40
    for _ in range(trials):
        rows = rng.integers(1, 4, size=facts)
        lost = np.repeat(np.exp(1.3 * rng.normal(size=facts)), rows)
        found = of_skewed(lost, clusters=np.repeat(np.arange(facts), rows), resamples=800)
        above += found.high < math.exp(1.3**2 / 2)
    assert above / trials <= 0.05


def test_clusters_are_drawn_whole_and_of_one_row_each_change_nothing() -> None:
    rng = np.random.default_rng(4)
    values = np.exp(rng.normal(size=30))
    alone = of_skewed(values)
    assert of_skewed(values, clusters=[f"fact {i:02}" for i in range(30)]) == pytest.approx(alone)
    thrice = of_skewed(np.repeat(values, 3), clusters=np.repeat(np.arange(30), 3))
    assert (thrice.value, thrice.low, thrice.high) == pytest.approx(
        (alone.value, alone.low, alone.high)
    )
    assert of_skewed(values, clusters=["one"] * 30).alone


def test_the_bound_of_skewed_values_is_finite_and_no_less_than_the_bootstrap_s() -> None:
    rng = np.random.default_rng(2)
    for values in (
        np.array([0.0] * 15 + [1.0]),
        np.array([0.001] * 15 + [1.0]) + 1e-6 * rng.random(16),
        np.array([0.3, 0.1]),
        rng.random(16),
    ):
        found, drawn = of_skewed(values), bootstrap(values)
        assert (found.value, found.low) == (drawn.value, drawn.low)
        assert drawn.high <= found.high <= max(values.max(), drawn.high)
    assert of_skewed(np.array([0.01] * 8)) == bootstrap(np.array([0.01] * 8))
    assert of_skewed(np.array([0.01])).alone


def test_rounding_decides_nothing() -> None:
    """Of equal fractions neither is above the other, whichever float is larger."""
    one_of_20 = 1.0 - 19 / 20
    assert one_of_20 > 0.05 and at_most(one_of_20, 0.05) and at_most(0.05, one_of_20)
    assert not at_most(0.0501, 0.05)
    for n in range(1, 200):  # of which the bound is computed in another way than the change
        assert fewest(bootstrap(np.zeros(n + 1), within=CHANGE).high) == n + 1
    found = Interval(0.1, one_of_20, 0.2)
    assert not found.above(0.05) and found.above(0.0499) and not found.above(0.15)
    assert not (-found).below(-0.05) and found.below(0.2001) and not found.below(0.15)
    alone = Interval(0.1, 0.1, 0.1, alone=True)
    assert not (alone.above(0) or alone.below(1))


def test_bootstrap_that_is_asked_again_is_that_of_exactly_these_values() -> None:
    """Whatever differs, it is made anew; what comes out is that of the plain calculation."""
    rng = np.random.default_rng(3)
    values, clusters = rng.random((24, 2)), np.arange(24) % 7
    other, names = values.copy(), np.array([f"fact {i}" for i in clusters])
    other[5, 1] += 1e-9
    asked = [
        (v, c, resamples, seed, of, within)
        for v in (values, values[:, ::-1], values[:, :1], other)
        for c in (clusters, clusters[::-1], names, names.astype(object))
        for resamples, seed in ((100, 0), (100, 1), (101, 0))
        for of in (_itself, np.exp)
        for within in (None, SHARE)
    ]
    for _ in range(2):
        for v, c, resamples, seed, of, within in asked:
            got = bootstrap(v, resamples=resamples, seed=seed, clusters=c, of=of, within=within)
            assert got == _bootstrap(v, c, resamples, seed, of, within)
    plain = [(v, c, n, s, of) for v, c, n, s, of, within in asked if within is None]
    found = [bootstrap(v, resamples=n, seed=s, clusters=c, of=of) for v, c, n, s, of in plain]
    assert len(set(found)) == len(plain) / 2  # names part the rows as the numbers do, twice
    of_a_difference = bootstrap(values[:, 0] - values[:, 1], clusters=clusters)
    assert bootstrap(values, clusters=clusters).value == pytest.approx(of_a_difference.value)


def test_of_one_fact_there_is_no_interval() -> None:
    values = np.array([0.9, -0.7] * 10 + [0.05] * 2)
    found = bootstrap(values, clusters=np.full(22, 7))
    assert found.alone and found.low == found.value == found.high == pytest.approx(values.mean())
    assert not bootstrap(values, clusters=np.array([7] * 21 + [8])).alone
    for one in (found, -found, bootstrap(values)):
        assert Interval.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False))) == one
    assert found.to_json() == [found.value]  # a pair of bounds would be taken for an interval
    assert measured(found, "share") == "+9.5 points (one fact alone)"
    assert between(found) == "9.5\u00a0% (one fact alone)"


def test_bootstrap_of_nothing() -> None:
    assert all(math.isnan(v) for v in bootstrap(np.array([])).to_json())


PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12)


@given(PAIRS)
def test_mcnemar_is_a_count_of_all_splits(pairs: list[tuple[bool, bool]]) -> None:
    """Of all ways to deal the discordant rows to the two models, how many are as uneven?"""
    first, second = np.array(pairs, dtype=bool).reshape(-1, 2).T
    found = mcnemar(first, second)
    n = found.first + found.second
    assert n == int((first != second).sum())
    uneven = abs(found.first - found.second)
    splits = [abs(2 * sum(deal) - n) for deal in product((0, 1), repeat=n)]
    assert found.p == pytest.approx(sum(s >= uneven for s in splits) / 2**n)
    assert 0 < found.p <= 1
    turned = mcnemar(second, first)
    assert (turned.first, turned.second, turned.p) == (found.second, found.first, found.p)


def test_mcnemar_without_discordant_rows_sees_no_difference() -> None:
    same = np.array([True, False, True])
    assert mcnemar(same, same) == McNemar(0, 0, 1.0)
    assert mcnemar(np.ones(900), np.zeros(900)).p == 2.0**-899
    with pytest.raises(ValueError, match="paired"):
        mcnemar(same, same[:2])


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("correct", lambda found: [7, *found[1:]]),
        ("correct", lambda found: [-5, *found[1:]]),
        ("correct", lambda found: [float("nan"), *found[1:]]),
        ("correct", lambda found: found[1:]),
        ("correct", lambda found: [True, *found[1:]]),
        ("top1", lambda found: [2, *found[1:]]),
        ("top1", lambda found: [0.5, *found[1:]]),
        ("margin", lambda found: [float("inf"), *found[1:]]),
        ("log_probability", lambda found: ["-1", *found[1:]]),
        ("log_probability", lambda found: [found]),
        ("answer", lambda found: [1.5, *found[1:]]),
        ("answer", lambda found: [10**400, *found[1:]]),
        ("rows", lambda found: [None, *found[1:]]),
        ("rows", lambda found: "rows"),
        ("groups", lambda found: [1, *found[1:]]),
        ("facts", lambda found: ["a fact too few"]),
        ("correct", lambda found: [1 - found[0], *found[1:]]),  # its margin says the reverse
        ("margin", lambda found: [-found[0], *found[1:]]),
        ("choice", lambda found: [-80.0, *found[1:]]),  # less than among all tokens
        ("spread", lambda found: [-0.1, *found[1:]]),
    ],
)
def test_a_measurement_that_holds_what_it_cannot_is_damaged(
    name: str, spoil: Callable[[Any], Any], tiny: Subject, tiny_task: Task, tmp_path: Path
) -> None:
    rows = examples(tiny_task, tiny, "forget").select(range(6))
    measured = Measurement({"forget": measure(tiny, rows)}, 1.5)
    path = tmp_path / "found.json"
    measured.save(path)
    assert Measurement.load(path).to_json() == measured.to_json()
    saved = measured.to_json()
    saved["splits"]["forget"][name] = spoil(saved["splits"]["forget"].get(name))
    path.write_text(json.dumps(saved))
    with pytest.raises(DamagedError, match=r"found\.json is damaged"):
        Measurement.load(path)
