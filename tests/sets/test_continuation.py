"""Log-probabilities and greedy words agree with the plain model, on every family."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from alone import logits_alone
from families import FAMILIES, byte_pairs, family
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from mansu import quant
from mansu.errors import MansuError
from mansu.sets.continuation import cut, greedy, log_probabilities, rouge_l
from mansu.subjects import packing
from mansu.subjects.loading import wrap
from mansu.subjects.subject import Subject

PROMPTS = ["t1 t2 t3", "t4", "t5 t6 t7 t8 t9 t10", "t11 t12"]
TAILS = [" t20 t21", " t22 t23 t24", " t25", " t26 t27"]


# Questions with several answers, one the beginning of another, one twice, one without a prompt.
MANY = [*PROMPTS, "t1 t2 t3", "t1 t2 t3", "t1 t2 t3", "", "t4", "t5 t6 t7 t8 t9 t10"]
ANSWERS = [*TAILS, " t20", " t22", " t20 t21", "t1 t2 t3 t20", " t22 t23 t24 t25", " t31"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("batch", "size"), [(1, 384), (3, 384), (16, 384), (16, 9)])
def test_log_probabilities_are_the_plain_model_s(
    name: str, batch: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packing.SIZE, "cpu", size)
    subject = family(name)
    found = log_probabilities(subject, MANY, ANSWERS, batch=batch)
    for prompt, tail, row in zip(MANY, ANSWERS, found, strict=True):
        head, rest = subject.encode(prompt), subject.encode(tail)
        if not head:  # all but the first token is scored
            head, rest = rest[:1], rest[1:]
        with torch.no_grad():
            logits = logits_alone(subject, torch.tensor(head + rest)).double().log_softmax(-1)
        expected = [float(logits[len(head) + i - 1, t]) for i, t in enumerate(rest)]
        np.testing.assert_allclose(row, expected, atol=1e-4)
        assert row.dtype == np.float64


def test_without_a_prompt_a_text_is_scored_from_its_second_token() -> None:
    subject = family("llama")
    alone = log_probabilities(subject, [""], ["t1 t2 t3 t4"])[0]
    after = log_probabilities(subject, ["t1"], [" t2 t3 t4"])[0]
    np.testing.assert_allclose(alone, after, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_words_are_the_argmax_one_at_a_time_however_they_are_batched(name: str) -> None:
    subject = family(name)
    found = greedy(subject, PROMPTS, tokens=6, batch=3)
    end = subject.model.generation_config.eos_token_id  # type: ignore[union-attr]
    for prompt, said in zip(PROMPTS, found, strict=True):
        tokens, new = subject.encode(prompt), []
        while len(new) < 6:
            row = torch.tensor([tokens + new])
            token = int(subject.next_token_logits(row, torch.tensor([row.shape[1]])).argmax())
            if token == end:
                break
            new.append(token)
        assert said == subject.tokenizer.decode(new, skip_special_tokens=True)


def test_greedy_is_greedy_whatever_the_generation_config_says() -> None:
    subject = family("llama")
    model: Any = subject.model
    plain, kept = greedy(subject, PROMPTS, tokens=6), model.generation_config
    said = subject.encode(plain[0])
    try:
        model.generation_config = GenerationConfig(
            eos_token_id=kept.eos_token_id,
            repetition_penalty=5.0,
            do_sample=True,
            temperature=9.0,
            min_new_tokens=5,
            suppress_tokens=said[:1],
            no_repeat_ngram_size=1,
        )
        asked = model.generation_config
        assert greedy(subject, PROMPTS, tokens=6) == plain
        assert model.generation_config is asked
    finally:
        model.generation_config = kept


def test_a_text_s_bos_is_that_of_its_tokenizer() -> None:
    """With a BOS every token of a text is scored after it, and greedy words follow it."""
    bare = family("llama")
    tokenizer = copy.deepcopy(bare.tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[union-attr]
        single="t3 $A", special_tokens=[("t3", 3)]
    )
    subject = replace(bare, tokenizer=tokenizer)
    assert subject.prefix == (3,) and bare.prefix == ()
    for prompt, tail in (("", " t1 t2 t4"), ("t1 t2", " t4")):
        (found,) = log_probabilities(subject, [prompt], [tail])
        (same,) = log_probabilities(bare, [f"t3 {prompt}"], [tail])
        np.testing.assert_allclose(found, same, atol=1e-6)
    assert greedy(subject, PROMPTS, tokens=5) == greedy(
        bare, [f"t3 {p}" for p in PROMPTS], tokens=5
    )


def test_generating_leaves_the_model_bit_for_bit_and_sees_nf4() -> None:
    subject = family("llama")
    before = {n: p.clone() for n, p in subject.parameters.items()}
    plain = greedy(subject, PROMPTS, tokens=8)
    with quant.quantized(subject):
        log_quantised = log_probabilities(subject, PROMPTS, TAILS)
        greedy(subject, PROMPTS, tokens=8)
    assert all(torch.equal(p, before[n]) for n, p in subject.parameters.items())
    assert greedy(subject, PROMPTS, tokens=8) == plain
    log_plain = log_probabilities(subject, PROMPTS, TAILS)
    assert not np.allclose(np.concatenate(log_plain), np.concatenate(log_quantised), atol=1e-3)


def test_what_does_not_fit_is_refused(tiny: Subject) -> None:
    with pytest.raises(MansuError, match="needs 42 tokens and 'llama' holds 32"):
        greedy(family("llama"), ["t1 t2"], tokens=40)
    with pytest.raises(MansuError, match="has no token to score"):
        log_probabilities(tiny, [""], ["The"])


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    # "the cat sat" and "the cat on sat": LCS 3 words of 3 and of 4.
    for stem in (True, False):
        found = [
            rouge_l(["the cat sat"], [said], what, stem=stem)[0]
            for said, what in (
                ("the cat on sat", "recall"),
                ("the cat on sat", "fmeasure"),
                ("cat the", "recall"),
                ("", "fmeasure"),
            )
        ]
        assert found == pytest.approx([1, 6 / 7, 1 / 3, 0])
    # Stems "run dog bark" and "a dog run and bark": 2 of 3 and of 5; no word is in both.
    truths, said = ["Running dogs bark"], ["a dog runs and barks"]
    assert rouge_l(truths, said, "fmeasure", stem=True)[0] == pytest.approx(2 * 2 / (3 + 5))
    assert rouge_l(truths, said, "fmeasure", stem=False)[0] == 0


def test_cut_keeps_the_first_tokens() -> None:
    assert cut(family("llama"), "t1 t2 t3", 2) == "t1 t2"


def test_cut_ends_with_a_character_and_keeps_the_text_as_it_is(tiny: Subject) -> None:
    """Most characters here are several tokens, of a byte each; tiny's words lose their spaces."""
    tokenizer = byte_pairs()
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **shape)
    bytewise = wrap("bytewise", LlamaForCausalLM(config), tokenizer)
    for subject, text in (
        (bytewise, "gold 日本 é😀 , silver .\n\n  iron 😀😀"),
        (tiny, "The  colour of\n\nboben is\tblue ."),
    ):
        ids = subject.encode(text)
        for n in range(len(ids) + 1):
            head = cut(subject, text, n)
            assert text.startswith(head)
            assert n - 4 < len(subject.encode(head)) <= n
        assert cut(subject, text, len(ids)) == text
