"""Text of the subject's own: drawn from its own distribution, the same for the same seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import family

from mansu import subjects
from mansu.subjects.own_text import own_answers, own_text
from mansu.subjects.subject import Subject


def test_a_seed_gives_the_same_text_and_leaves_the_random_state(tiny: Subject) -> None:
    starts = [tiny.encode("The hot"), tiny.encode("The"), tiny.encode("Look at boben")]
    state = torch.get_rng_state()
    tokens, length = own_text(tiny, starts, 12, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    again, _ = own_text(tiny, starts, 12, seed=3)
    other, _ = own_text(tiny, starts, 12, seed=4)
    assert torch.equal(tokens, again) and not torch.equal(tokens, other)
    assert tokens.shape == (3, 12) and int(length.max()) <= 12
    for row, n, start in zip(tokens.tolist(), length.tolist(), starts, strict=True):
        assert row[: len(start)] == start and not any(row[n:])


def test_answers_are_of_their_prompts_in_any_order_and_of_a_seed() -> None:
    subject = family("llama")
    tokens, length = torch.randint(1, 50, (40, 5)), torch.tensor([1, 2, 3, 4, 5] * 8)
    found = own_answers(subject, (tokens, length), seed=3)
    assert torch.equal(found.tokens, tokens) and torch.equal(found.length, length)
    assert torch.equal(own_answers(subject, (tokens, length), seed=3).answer, found.answer)
    assert not torch.equal(own_answers(subject, (tokens, length), seed=4).answer, found.answer)
    model: Any = subject.model
    head = model.get_output_embeddings().weight.data
    kept = head.clone()
    try:
        head.mul_(1e4)  # all but certain: an answer is the first of its own prompt's logits
        wanted = subject.next_token_logits(tokens, length).argmax(1)
        assert torch.equal(own_answers(subject, (tokens, length)).answer, wanted)
    finally:
        head.copy_(kept)


@pytest.mark.parametrize("name", ["tiny", "gpt2", "gemma3"])
def test_tokens_come_as_often_as_the_model_says(name: str) -> None:
    """The first sampled token of 2,000 texts, against the distribution after their start; a longer
    start beside them, which the others are padded to, changes nothing."""
    subject = subjects.load(subjects.TINY) if name == "tiny" else family(name)
    start = [*subject.prefix, 5, 6, 7]
    tokens, length = own_text(subject, [[*start, 8, 9], *[start] * 2000], len(start) + 1, seed=0)
    ended = length == len(start)  # the first token was the end, which is no part of the text
    if ended.any():
        tokens[ended, -1] = subject.plain.generation_config.eos_token_id
    row = torch.tensor([start])
    with torch.no_grad():
        said = subject.next_token_logits(row, torch.tensor([len(start)])).softmax(-1)[0]
    found = tokens[1:, -1].bincount(minlength=len(said)) / 2000
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(said.cpu().expand(2000, -1), 1, generator=generator)[:, 0]
    draws = draws.bincount(minlength=len(said)) / 2000
    apart, usual = ((x - said.cpu()).abs().sum() / 2 for x in (found, draws))
    assert float(apart) < 1.5 * float(usual) + 0.02


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_of_every_family(name: str) -> None:
    tokens, length = own_text(family(name), [[3], [4, 5]], 6, seed=0)
    assert tokens.shape == (2, 6) and bool((length >= 1).all())


@pytest.mark.parametrize("name", ["gpt2", "llama"])  # learned positions, and rotary ones
def test_no_text_is_longer_than_the_context(name: str) -> None:
    subject = family(name)
    assert subject.context == 32
    starts = [[3], [4, 5], [*range(1, 31)], [*range(1, 41)]]
    for some, asked in ((starts, 40), (starts, 32), (starts[:1], 33)):
        tokens, length = own_text(subject, some, asked)
        assert tokens.shape == (len(some), 32) and int(length.max()) == 32
        for row, start in zip(tokens.tolist(), some, strict=True):
            assert row[: len(start)] == start[:32]
    longer, _ = own_text(subject, starts[:3], 40)
    alone = [own_text(subject, [start], 40)[0][0] for start in starts[:3]]
    assert torch.equal(longer, torch.stack(alone))


def test_the_models_own_settings_come_back() -> None:
    subject = subjects.load(subjects.TINY)
    before = subject.plain.generation_config
    own_text(subject, [[5]], 4)
    assert subject.plain.generation_config is before
