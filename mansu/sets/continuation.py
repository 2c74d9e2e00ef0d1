"""What the model says after a prompt: log-probabilities of given words, greedy words, ROUGE-L."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from mansu.errors import BadInputError
from mansu.measure.scores import finite
from mansu.progress import OnStep, Step, silent
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import pad


@torch.no_grad()
def log_probabilities(
    subject: Subject,
    prompts: Sequence[str],
    continuations: Sequence[str],
    *,
    batch: int = 16,
) -> list[np.ndarray]:
    """Log-probability (nats) of every token of each continuation, given its prompt.

    Prompt and continuation are tokenised as one text (``Subject.continuation``). An empty prompt
    scores a text on its own: all of it after the tokenizer's BOS, or from its second token on.

    Returns:
        One float64 array a row: ``[tokens of the continuation]``.

    Raises:
        MansuError: a row with nothing to score, one longer than the model's context, or logits
            that are not finite.
    """
    split = [subject.continuation(p, c) for p, c in zip(prompts, continuations, strict=True)]
    rows = [head + tail for head, tail in split]
    starts = [max(len(head), 1) for head, _ in split]
    for text, row, start in zip(continuations, rows, starts, strict=True):
        if len(row) <= start:
            raise BadInputError(f"The text {text[:40]!r} has no token to score: give a longer one.")
        check_fits(subject, len(row), text)
    return token_log_probabilities(subject, rows, starts, batch=batch)


@torch.no_grad()
def token_log_probabilities(
    subject: Subject, rows: Sequence[list[int]], starts: Sequence[int], *, batch: int = 16
) -> list[np.ndarray]:
    """``log_probabilities`` of token ids: of every token of a row from its place ``starts`` on.

    Args:
        starts: at least 1; the row's length where nothing of it is to be scored.

    Raises:
        MansuError: logits that are not finite.
    """
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: rows[i])  # those that begin alike together
    for first in range(0, len(order), batch):
        some = order[first : first + batch]
        tokens, length = pad([rows[i] for i in some])
        place, begin = torch.arange(tokens.shape[1])[None], torch.tensor([starts[i] for i in some])
        real = place < length[:, None]
        scored = (place >= begin[:, None]) & real
        before = (scored.roll(-1, 1) & real)[real]  # the places whose next token is scored
        hidden = subject.states(tokens, length)[before.to(subject.device)]
        logits = finite(subject.head(hidden).double(), "logits")
        wanted = tokens[scored][:, None].to(logits.device)
        flat = logits.gather(1, wanted)[:, 0] - logits.logsumexp(1)
        for i, part in zip(some, flat.cpu().split(scored.sum(1).tolist()), strict=True):
            found[i] = part.numpy()
    return found


@torch.no_grad()
def greedy(
    subject: Subject,
    prompts: Sequence[str],
    *,
    tokens: int,
    batch: int = 16,
    on_step: OnStep = silent,
) -> list[str]:
    """The most probable next tokens after each prompt as text (``greedy_tokens``).

    Raises:
        MansuError: a prompt that leaves no room for the new tokens.
    """
    rows = [subject.encode(p, start=True) for p in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        check_fits(subject, len(row) + tokens, prompt)
    found = greedy_tokens(subject, rows, tokens=tokens, batch=batch, on_step=on_step)
    return [str(subject.tokenizer.decode(row, skip_special_tokens=True)) for row in found]


@torch.no_grad()
def greedy_tokens(
    subject: Subject,
    rows: Sequence[list[int]],
    *,
    tokens: int,
    batch: int = 16,
    on_step: OnStep = silent,
) -> list[list[int]]:
    """The most probable next tokens after each row of token ids, up to the end token.

    Rows are left-padded (the last real token must be the last column) and run through the model's
    own ``generate`` with its key-value cache. Of its ``generation_config`` only the end tokens
    count: a penalty or forced tokens that a checkpoint asks for would not be greedy.

    Args:
        rows: no longer than leaves room for ``tokens`` more (``check_fits``).
    """
    model: Any = subject.plain
    ends = end_tokens(subject)
    plain = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,
        eos_token_id=model.generation_config.eos_token_id,
    )
    found: list[list[int]] = [[]] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for first in range(0, len(order), batch):
        some = order[first : first + batch]
        width = max(len(rows[i]) for i in some)
        ids = torch.zeros(len(some), width, dtype=torch.long)  # any token: the mask hides it
        real = torch.zeros_like(ids)
        for at, i in enumerate(some):
            ids[at, width - len(rows[i]) :] = torch.tensor(rows[i])
            real[at, width - len(rows[i]) :] = 1
        with _only(subject, plain):
            out = model.generate(
                ids.to(subject.device),
                attention_mask=real.to(subject.device),
                generation_config=plain,
            )[:, width:].tolist()
        for i, row in zip(some, out, strict=True):
            stop = next((at for at, token in enumerate(row) if token in ends), len(row))
            found[i] = row[:stop]
        on_step(Step("score", min(first + batch, len(order)), len(order)))
    return found


def end_tokens(subject: Subject) -> set[int]:
    """The tokens with which the model ends what it says."""
    model: Any = subject.plain
    end = model.generation_config.eos_token_id
    return set(end if isinstance(end, list) else [end])


@contextmanager
def _only(subject: Subject, config: GenerationConfig) -> Iterator[None]:
    """``generate`` fills what its config leaves open from the model's own: let that be this."""
    model: Any = subject.plain
    with subject.lock:
        kept, model.generation_config = model.generation_config, config
        try:
            yield
        finally:
            model.generation_config = kept


def cut(subject: Subject, text: str, tokens: int) -> str:
    """The first ``tokens`` tokens of a text, as it has them.

    Fewer where the last of them ends inside a character, which takes up to four tokens.

    Raises:
        BadInputError: the tokenizer does not say where in the text its tokens lie.
    """
    tokenizer, ids = subject.tokenizer, subject.encode(text)[:tokens]
    for n in range(len(ids), max(len(ids) - 4, 0), -1):
        head = str(tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False))
        if text.startswith(head):
            return head
    if not tokenizer.is_fast:
        raise BadInputError(
            f"The tokenizer of {subject.name!r} writes {text[:40]!r} in another way and does not "
            "say where it cuts it: give a model with a fast tokenizer (tokenizer.json)."
        )
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return text[: places["offset_mapping"][len(ids) - 1][1]] if ids else ""  # type: ignore[index]


def rouge_l(truths: Sequence[str], said: Sequence[str], what: str, *, stem: bool) -> np.ndarray:
    """ROUGE-L (Lin 2004) of what was said.

    Args:
        what: ``recall`` or ``fmeasure``.
        stem: compare Porter's stems of the words, as TOFU's code does, or the words, as MUSE's.

    Returns:
        float ``[N]`` in 0 to 1.
    """
    scorer = _scorer(stem)
    pairs = zip(truths, said, strict=True)
    return np.array([getattr(scorer.score(t, s)["rougeL"], what) for t, s in pairs], dtype=float)


@cache
def _scorer(stem: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stem)


def check_fits(subject: Subject, length: int, text: str) -> None:
    """Raise ``BadInputError`` if a text of ``length`` tokens is longer than the context."""
    if not subject.fits(length):
        raise BadInputError(
            f"The text {text[:40]!r} needs {length} tokens and {subject.name!r} holds "
            f"{subject.context}: shorten it, or give fewer new tokens."
        )
