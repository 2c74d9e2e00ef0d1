"""MUSE's measures against their closed forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from families import family
from hypothesis import given
from hypothesis import strategies as st
from parrot import END, parrot

from mansu.errors import MansuError
from mansu.sets import muse
from mansu.sets.continuation import greedy, log_probabilities

SAMPLE = st.lists(st.integers(-5, 5), min_size=1, max_size=8)


@given(SAMPLE, SAMPLE)
def test_auc_is_the_share_of_pairs_won(forget: list[int], holdout: list[int]) -> None:
    won = [(h > f) + 0.5 * (h == f) for f in forget for h in holdout]
    found = muse.auc(np.array(forget, float), np.array(holdout, float))
    assert found == pytest.approx(np.mean(won))


def test_the_interval_holds_the_auc_and_shrinks_with_more_texts() -> None:
    rng = np.random.default_rng(0)

    def width(n: int) -> float:
        found = muse.auc_interval(rng.normal(0, 1, n), rng.normal(0.5, 1, n))
        assert found.low < found.value < found.high
        return found.high - found.low

    assert width(400) < width(25) / 2
    apart = muse.auc_interval(np.zeros(5), np.ones(5))
    assert (apart.low, apart.value, apart.high) == (1, 1, 1)


def test_privacy_leak_is_relative_to_the_reference() -> None:
    assert muse.privacy_leak(0.0, 0.4772) == pytest.approx(-100)
    assert muse.privacy_leak(1.0, 0.5) == pytest.approx(100)
    assert muse.privacy_leak(0.6, 0.5) == pytest.approx(20)
    with pytest.raises(MansuError, match="an AUC above zero"):
        muse.privacy_leak(0.5, 0.0)


def test_min_k_is_the_mean_of_the_least_probable_tokens() -> None:
    subject = family("llama")
    text = "t1 t2 t3 t4 t5 t6 t7 t8 t9 t10 t11"  # ten scored tokens
    row = np.sort(log_probabilities(subject, [""], [text])[0])
    assert muse.min_k(subject, [text], share=0.4)[0] == pytest.approx(row[:4].mean())
    assert muse.min_k(subject, [text], share=0.01)[0] == pytest.approx(row[0])
    assert len(muse.min_k(subject, [" ".join([text] * 9)])) == 1  # longer than the context: cut


def test_memorisation_is_rouge_with_the_greedy_words() -> None:
    subject = family("llama")
    prompts = ["t1 t2 t3", "t4 t5"]
    said = greedy(subject, prompts, tokens=6)
    truths = [said[0], "t40 t41"]
    found = muse.verbatim(subject, list(zip(prompts, truths, strict=True)), tokens=6)
    assert found[0] == pytest.approx(1)  # what the model says itself is known by heart
    # No more of the truth counts than the model may say.
    longer = [(prompts[0], f"{said[0]} t1 t2 t3 t4 t5 t6 t7 t8")]
    assert muse.verbatim(subject, longer, tokens=6)[0] == pytest.approx(1)
    asked = [("t1 t2", "t9"), ("t3", "t8")]
    answers = greedy(subject, [f"Question: {q}\nAnswer: " for q, _ in asked], tokens=4)
    found = muse.knowledge(
        subject, [(q, a) for (q, _), a in zip(asked, answers, strict=True)], tokens=4
    )
    np.testing.assert_allclose(found, 1)


@pytest.mark.parametrize(
    ("said", "truth", "expected"),
    [
        # Words as they are, not their stems: "the" and "by" of 7 and 7, "he" of 3 and 7, "the" of
        # 6 and 4. What the model asks itself is no part of its answer.
        (
            (
                "The",
                " companies",
                " were",
                " founding",
                " by",
                " a",
                " brother",
                " Question:",
                " x",
            ),
            "The company was founded by three brothers",
            2 / 7,
        ),
        (("He", " runs", " charity"), "He was running several charities in Leeds", 2 / (3 + 7)),
        (
            ("A", " protester", " is", " blocking", " the", " road", "\n\n", "the"),
            "Protesters blocked the roads",
            2 / (6 + 4),
        ),
        (("red", "\nQuestion", " red"), "red", 1),
        (("do", " n't"), "don't", 1),
    ],
)
def test_knowledge_is_the_authors_score(said: tuple[str, ...], truth: str, expected: float) -> None:
    """By hand, as metrics/knowmem.py and metrics/logger.py of their code have it."""
    chain = dict(zip((" ", *said), (*said, END), strict=True))
    subject = parrot({**chain, "Answer:": " wrong"})  # what a prompt without its last space gives
    (found,) = muse.knowledge(subject, [("Who?", truth)], [("Where?", "here")])
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tokens", "truth", "bos", "expected"),
    [
        (6, "a b", False, 2 * 2 / (6 + 2)),  # all that is said counts, however short the truth is
        (4, "a b c d e f", False, 1),
        (4, "a b c d e f", True, 2 * 3 / (4 + 3)),  # the truth's BOS is one of its four tokens
    ],
)
def test_verbatim_is_the_authors_score(tokens: int, truth: str, bos: bool, expected: float) -> None:
    """By hand, as metrics/verbmem.py of their code has it."""
    said = (" a", " b", " c", " d", " e", " f")
    subject = parrot(dict(zip(("go", *said), (*said, END), strict=True)), bos=bos)
    (found,) = muse.verbatim(subject, [("go", truth)], tokens=tokens)
    assert found == pytest.approx(expected)


def test_configs_are_read_from_a_copy_of_the_hub_s_repository(tmp_path: Path) -> None:
    def write(name: str, row: dict[str, str]) -> None:
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([row]))

    write("verbmem/forget", {"prompt": "t1", "gt": "t2 t3"})
    write("early/forget", {"text": " ".join(f"t{i}" for i in range(1, 41))})
    write("knowmem/forget_qa", {"question": "t1", "answer": "t2"})
    write("privleak/holdout", {"text": "t1 t2"})
    subject = family("llama")
    assert muse.read_verbatim(f"{tmp_path}:verbmem", subject) == [("t1", "t2 t3")]
    head, rest = muse.read_verbatim(f"{tmp_path}:early", subject)[0]
    assert head.split()[-1] == "t32" and rest.split() == [f"t{i}" for i in range(33, 41)]
    assert muse.read_knowledge(f"{tmp_path}:knowmem", split="forget_qa") == [("t1", "t2")]
    assert muse.read_texts(f"{tmp_path}:privleak", split="holdout") == ["t1 t2"]
    with pytest.raises(MansuError, match="lacks the column 'text'"):
        muse.read_texts(f"{tmp_path}:knowmem", split="forget_qa")
    with pytest.raises(MansuError, match="lacks the column 'prompt'"):
        muse.read_verbatim(f"{tmp_path}:knowmem", subject, split="forget_qa")
