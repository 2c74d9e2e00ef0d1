"""TOFU's measures against their closed forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parrot import parrot
from scipy.stats import kstwo

from mansu.errors import MansuError
from mansu.sets import tofu
from mansu.sets.continuation import greedy
from mansu.subjects.subject import Subject

ROWS = [
    tofu.Row("The colour of boben is", "blue", "painted blue", ("red", "painted green is")),
    tofu.Row("The home of boben is the", "river", "river", ("forest", "cave", "valley")),
]


def test_probability_is_the_geometric_mean_over_the_answer_s_tokens(tiny: Subject) -> None:
    found = tofu.probability(tiny, [ROWS[0].question], [ROWS[0].paraphrased])
    head = tiny.encode("Question: The colour of boben is\nAnswer:")
    rest = tiny.encode(" painted blue")
    with torch.no_grad():
        logits = tiny.model(torch.tensor([head + rest])).logits[0].double().softmax(-1)
    parts = [float(logits[len(head) + i - 1, t]) for i, t in enumerate(rest)]
    assert found[0] == pytest.approx((parts[0] * parts[1]) ** 0.5, rel=1e-4)


def test_the_truth_ratio_is_equation_1() -> None:
    ratio = tofu.truth_ratio(np.array([0.5, 0.1]), [np.array([0.1, 0.3]), np.array([0.2])])
    np.testing.assert_allclose(ratio, [0.4, 2.0])


def test_scores_are_made_of_their_parts(tiny: Subject) -> None:
    found = tofu.scores(tiny, ROWS, tokens=4)
    said = greedy(tiny, [tofu.prompt(r.question) for r in ROWS], tokens=4)
    for i, row in enumerate(ROWS):
        own = tofu.probability(tiny, [row.question], [row.answer])[0]
        right = tofu.probability(tiny, [row.question], [row.paraphrased])[0]
        wrong = tofu.probability(tiny, [row.question] * len(row.perturbed), row.perturbed)
        assert found["probability"][i] == pytest.approx(own, rel=1e-4)
        assert found["truth_ratio"][i] == pytest.approx(wrong.mean() / right, rel=1e-4)
        # A one-word answer is recalled wholly or not at all.
        assert found["rouge"][i] == (row.answer in said[i].split())
        world = tofu.scores(tiny, ROWS, tokens=4, world=True)["probability"][i]
        assert world == pytest.approx(own / (own + wrong.sum()), rel=1e-4)
    plain = [tofu.Row(r.question, r.answer, r.answer, ()) for r in ROWS]
    assert set(tofu.scores(tiny, plain, tokens=2)) == {"rouge", "probability"}


@pytest.mark.parametrize(("context", "words", "said"), [(512, 250, 200 - 5), (64, 59, 64 - 5)])
def test_prompt_and_answer_are_as_long_as_in_the_authors_code(
    context: int, words: int, said: int
) -> None:
    """Their max_length is of both; the prompt has five tokens, and the model never ends."""
    subject = parrot({"Answer:": " la", " la": " la"}, context=context)
    assert len(subject.encode(tofu.prompt("So what?"))) == 5
    found = tofu.scores(subject, [tofu.Row("So what?", " ".join(["la"] * words), "la", ())])
    assert found["rouge"][0] == pytest.approx(said / words)


def test_utility_is_the_harmonic_mean() -> None:
    one = {"rouge": np.array([0.5]), "probability": np.array([0.25]), "truth_ratio": np.array([0])}
    # 1 ÷ mean(1/0.5, 1/0.25, 1/1) = 3/7
    assert tofu.utility({"retain": one}) == pytest.approx(3 / 7)
    # A truth ratio above one counts as nothing known, not as a negative.
    two = {**one, "truth_ratio": np.array([0.0, 5.0])}
    assert tofu.utility({"retain": two}) == pytest.approx(3 / (2 + 4 + 2))
    with pytest.raises(MansuError, match="'retain' has no perturbed_answer"):
        tofu.utility({"retain": {"rouge": np.array([1.0])}})


def test_forget_quality_is_the_kolmogorov_smirnov_p() -> None:
    same = np.linspace(0, 1, 40)
    assert tofu.forget_quality(same, same) == pytest.approx(1)
    # Disjoint samples of n: D = 1, and the exact p is 2 ÷ C(2n, n).
    assert tofu.forget_quality(np.arange(5.0), np.arange(5.0) + 9) == pytest.approx(2 / 252)
    half = np.concatenate([same[:20], same[20:] + 1])
    p = tofu.forget_quality(half, same)
    assert 0 < p < 0.2 and p == pytest.approx(kstwo.sf(0.5, 20), abs=0.01)


def test_rows_are_read_with_and_without_the_perturbed_columns(tmp_path: Path) -> None:
    row = {"question": "Q?", "answer": "A."}
    full = {**row, "paraphrased_answer": "B.", "perturbed_answer": ["C.", "D."]}
    for name, one in (("forget10.json", row), ("forget10_perturbed.json", full)):
        (tmp_path / name).write_text(json.dumps(one) + "\n")
    assert tofu.read(f"{tmp_path}:forget10") == [tofu.Row("Q?", "A.", "A.", ())]
    assert tofu.read(f"{tmp_path}:forget10_perturbed")[0] == tofu.Row(
        "Q?", "A.", "B.", ("C.", "D.")
    )
