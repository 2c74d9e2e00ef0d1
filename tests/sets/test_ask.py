"""Asking several models one thing, against each model run alone, a token at a time."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from oracles import alone

from mansu import quant
from mansu.circuits.lens import logit_lens
from mansu.errors import MansuError
from mansu.sets.ask import UNEDITED, ask
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task

TOKENS = 4


@pytest.fixture(scope="module")
def edits(tiny: Subject) -> dict[str, Edit]:
    """A sparse edit and a dense one, each of which changes what is said."""
    name = tiny.quantized_names[-1]
    size = tiny.parameters[name].numel()
    old = tiny.parameters[name].data.reshape(-1)
    some = torch.arange(0, size, 3)
    return {
        "sparse": Edit({name: (some, -4 * old[some])}, "sparse"),
        "dense": Edit({name: (torch.ones(size, dtype=torch.bool), -4 * old)}, "dense"),
    }


def step_by_step(subject: Subject, row: list[int], text: list[int] | None) -> tuple[list, list]:
    """Greedy tokens (or given ones) and their log-probabilities, one whole run a token."""
    said, scores = [], []
    for i in range(TOKENS if text is None else len(text)):
        log = alone(subject, torch.tensor([*row, *said])).log_softmax(-1)
        token = int(log.argmax()) if text is None else text[i]
        if text is None and token == subject.tokenizer.eos_token_id:
            break
        said.append(token)
        scores.append(float(log[token]))
    return said, scores


def test_every_model_answers_as_it_does_alone(
    tiny: Subject, tiny_task: Task, edits: dict[str, Edit], untouched: None
) -> None:
    fact = tiny_task.split("forget")[0]
    row = tiny.encode(fact.prompt, start=True)
    wanted = tiny.continuation(fact.prompt, fact.answer)[1]
    base = quant.Dequantized.of(tiny)
    found = ask(tiny, fact.prompt, edits, tokens=TOKENS, wanted=wanted, nf4=base)
    assert found.prompt == tuple(row)
    names = [UNEDITED, *edits]
    assert list(found.models) == [(name, nf4) for name in names for nf4 in (False, True)]
    first, own = step_by_step(tiny, row, None)
    assert found.first.tokens == tuple(first)
    assert np.allclose(found.first.own, own, atol=1e-4)
    assert np.allclose(found.first.difference, 0, atol=1e-4)
    for (name, nf4), said in found.models.items():
        edit = edits.get(name)
        with (
            edit.applied(tiny) if edit else nullcontext(),
            quant.quantized(tiny) if nf4 else nullcontext(),
        ):
            tokens, own = step_by_step(tiny, row, None)
            _, reads = step_by_step(tiny, row, first)
            log = alone(tiny, torch.tensor(row)).log_softmax(-1)
        _, unedited = step_by_step(tiny, row, tokens)
        assert said.tokens == tuple(tokens)
        assert np.allclose(said.own, own, atol=1e-4)
        assert np.allclose(said.reads, reads, atol=1e-4)
        assert np.allclose(said.difference, np.subtract(own, unedited), atol=1e-4)
        assert np.allclose(found.shift((name, nf4)), np.subtract(reads, found.first.own), atol=1e-4)
        top = log.exp().topk(5)
        assert torch.allclose(said.lens.probability[-1, 0], top.values, atol=1e-5)
        assert torch.allclose(said.lens.wanted[-1, 0], log[wanted], atol=1e-4)
    assert found.models["dense", False].tokens != found.first.tokens  # else nothing was compared


def test_the_lens_at_the_last_position_is_the_whole_lens_there(
    tiny: Subject, tiny_task: Task
) -> None:
    prompt = tiny_task.split("forget")[1].prompt
    every, last = logit_lens(tiny, prompt), logit_lens(tiny, prompt, last=True)
    assert torch.equal(every.top[:, -1:], last.top)
    assert torch.allclose(every.probability[:, -1:], last.probability, atol=1e-6)
    assert every.tokens[-1:].tolist() == last.tokens.tolist()


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("  ", "empty"),
        ("the colour of zzzyx is", "zzzyx"),
        ("a\x00b", "part of no text"),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_one_sentence(
    tiny: Subject, prompt: str, says: str
) -> None:
    with pytest.raises(MansuError, match=says):
        ask(tiny, prompt, {})


def test_a_prompt_that_is_too_long_is_refused(tiny: Subject, tiny_task: Task) -> None:
    word = tiny_task.split("forget")[0].prompt.split()[0]
    with pytest.raises(MansuError, match="shorten it"):
        ask(tiny, " ".join([word] * 5000), {})
