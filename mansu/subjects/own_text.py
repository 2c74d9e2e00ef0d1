"""Text in a subject's own words: what it must go on saying after an edit.

No shipped text is what *this* model expects, and a task's own few are trained on. Sampled from the
unedited model, a text is drawn from the very distribution that an edit is not to change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig

from mansu.subjects.subject import Subject

WORDS = ("The", "In", "A", "When", "I", "If", "We", "It", "For", "This", "One", "After")
"""How a text begins where nothing else says how."""

Rows = tuple[Tensor, Tensor]
"""(tokens int64 ``[N, T]``, right-padded; length int64 ``[N]``)"""


class Answered(NamedTuple):
    """Prompts and a token that each goes on with.

    Attributes:
        tokens: int64 ``[N, T]``, right-padded; length: int64 ``[N]``; answer: int64 ``[N]``.
    """

    tokens: Tensor
    length: Tensor
    answer: Tensor


@torch.no_grad()
def own_text(
    subject: Subject, starts: Sequence[Sequence[int]], tokens: int, *, seed: int = 0
) -> Rows:
    """Sample a text from each start on the subject as it now is, at temperature 1 from all words.

    The same seed gives the same texts on the same machine; another may round another way.

    Args:
        starts: token ids that the texts begin with, one or more each.
        tokens: of each text, at most: one may end before. No text is longer than the context.

    Returns:
        tokens ``[N, T]``, with T ``tokens`` or the context where that is shorter; length ``[N]``.

    Use: ``tokens, length = own_text(subject, [subject.encode("The", start=True)], 32)``.
    """
    model: Any = subject.plain
    end = model.generation_config.eos_token_id
    ends = torch.tensor(end if isinstance(end, list) else [-1 if end is None else end])
    config = GenerationConfig(
        do_sample=True, top_k=0, num_beams=1, pad_token_id=0, eos_token_id=end, use_cache=True
    )
    tokens = min(tokens, subject.context or tokens)
    starts = [list(start)[:tokens] for start in starts]
    sizes = [len(start) for start in starts]
    n, longest = len(starts), max(sizes, default=0)
    found, length = torch.zeros(n, tokens, dtype=torch.long), torch.zeros(n, dtype=torch.long)
    if not n:
        return found, length
    config.max_new_tokens = max(tokens - min(sizes), 1)
    if longest > min(sizes) and not subject.fits(longest + config.max_new_tokens):
        # All write as much as the shortest start leaves to write, and the longest would go too far.
        for size in dict.fromkeys(sizes):
            at = [i for i, other in enumerate(sizes) if other == size]
            some = own_text(subject, [starts[i] for i in at], tokens, seed=seed)
            found[at], length[at] = some
        return found, length
    # Left-padded, so that all begin to write at the same place and go on together.
    begun = torch.tensor([[0] * (longest - len(start)) + start for start in starts])
    real = torch.arange(longest) >= longest - torch.tensor(sizes)[:, None]
    devices = [subject.device] if subject.device.type == "cuda" else []
    with subject.lock, torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        kept, model.generation_config = model.generation_config, config
        try:
            out = model.generate(
                begun.to(subject.device),
                attention_mask=real.long().to(subject.device),
                generation_config=config,
            ).cpu()
        finally:
            model.generation_config = kept
    for i, size in enumerate(sizes):
        row = out[i, longest - size :][:tokens]
        over = torch.isin(row[size:], ends).nonzero()
        length[i] = size + int(over[0]) if len(over) else len(row)
        found[i, : len(row)] = row
    return found * (torch.arange(tokens) < length[:, None]), length


@torch.no_grad()
def own_answers(subject: Subject, prompts: Rows, *, seed: int = 0) -> Answered:
    """Prompts, each with a next token drawn from what the subject as it now is expects.

    Squared gradients of their log-likelihoods are its Fisher information on the prompts, where
    answers from elsewhere give the empirical one (Kunstner et al. 2019, arXiv 1905.12558).

    Use: ``fisher(subject, own_answers(subject, prompts), no_text, mask)``.
    """
    tokens, length = prompts
    expected = subject.next_token_logits(tokens, length).float().softmax(-1).cpu()
    generator = torch.Generator().manual_seed(seed)
    return Answered(tokens, length, torch.multinomial(expected, 1, generator=generator)[:, 0])
