"""One prompt, several models: the unedited one and edited ones, in full precision and in NF4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from mansu import quant
from mansu.circuits.lens import LogitLens, logit_lens
from mansu.errors import BadInputError
from mansu.measure.scores import finite
from mansu.sets.continuation import (
    check_fits,
    end_tokens,
    greedy_tokens,
    token_log_probabilities,
)
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.facts import no_text

UNEDITED = "unedited"


@dataclass(frozen=True, eq=False)
class Said:
    """What one model says after a prompt.

    Attributes:
        lens: the logit lens at the prompt's last token; its last layer is what the model says next.
        tokens: its greedy continuation, n token ids, without the end token.
        own, unedited: ``[n]``, the log-probability of each of ``tokens`` under this model and
            under the unedited one in full precision, nats.
        reads: ``[m]``, this model's log-probability of each token that the unedited model in full
            precision says.
    """

    lens: LogitLens
    tokens: tuple[int, ...]
    own: np.ndarray
    unedited: np.ndarray
    reads: np.ndarray

    @property
    def difference(self) -> np.ndarray:
        """How much more probable its own tokens are to it than to the unedited model, nats."""
        return self.own - self.unedited


@dataclass(frozen=True, eq=False)
class Answers:
    """What each model says after one prompt.

    Attributes:
        prompt: its token ids. wanted: the tokens whose log-probability each model's lens tells.
        models: by (name of the edit or ``UNEDITED``, in NF4), in the order they were asked.
    """

    prompt: tuple[int, ...]
    wanted: tuple[int, ...]
    models: Mapping[tuple[str, bool], Said]

    @property
    def first(self) -> Said:
        """Of the unedited model in full precision, which the others are compared with."""
        return self.models[UNEDITED, False]

    def shift(self, model: tuple[str, bool]) -> np.ndarray:
        """How much more probable the unedited model's tokens are to another, nats, ``[m]``."""
        return self.models[model].reads - self.first.reads


def check_prompt(subject: Subject, prompt: str, tokens: int) -> list[int]:
    """A prompt's tokens, if the model can go on with it for ``tokens`` more.

    Raises:
        BadInputError: it is empty, no text, has a word that the tokenizer does not know, or is too
            long.
    """
    if not prompt.strip():
        raise BadInputError("The prompt is empty: type the beginning of a sentence.")
    if (odd := no_text(prompt)) is not None:
        raise BadInputError(
            f"The prompt has the character {odd!a}, which is part of no text: take it out."
        )
    row = subject.encode(prompt, start=True)
    unknown = subject.tokenizer.unk_token_id
    if unknown in row[len(subject.prefix) :]:
        words = [w for w in prompt.split() if unknown in subject.encode(w)] or [prompt]
        raise BadInputError(
            f"{subject.name!r} does not know the word {words[0]!r:.40}: ask with words of its task."
        )
    check_fits(subject, len(row) + tokens, prompt)
    return row


@torch.no_grad()
def ask(
    subject: Subject,
    prompt: str,
    edits: Mapping[str, Edit],
    *,
    tokens: int = 8,
    top: int = 5,
    wanted: Sequence[int] = (),
    nf4: quant.Dequantized | None = None,
) -> Answers:
    """Let the unedited model and each edit of it go on with a prompt, in full precision and NF4.

    The subject's lock is held all the while, so that nobody else's edit is in what is read.

    Args:
        edits: by name, which is not ``UNEDITED``.
        tokens: at most so many new ones, by greedy decoding.
        top: so many of the most probable next tokens.
        wanted: tokens whose log-probability the lens tells too, such as the right answer; by
            default what the unedited model says next.
        nf4: the unedited weights in NF4, where they are at hand (as ``quant.quantized`` has them).

    Raises:
        MansuError: a prompt that is empty or too long, or an edit that does not fit.

    Use: ``ask(subject, "The chemical symbol for gold is", {"mansu": edit}).models["mansu", True]``
    """
    row = check_prompt(subject, prompt, tokens)
    lenses, texts, own, reads = {}, {}, {}, {}
    with subject.lock:
        if not wanted:
            wanted = [int(logit_lens(subject, prompt, top=1, last=True).top[-1, 0, 0])]
        for name, edit in {UNEDITED: None, **edits}.items():
            with edit.applied(subject) if edit else nullcontext():
                for in_nf4 in (False, True):
                    key = name, in_nf4
                    # What others said is likely said again: read it first, go on where it parts.
                    drafts = [texts[k] for k in ((UNEDITED, False), (name, False)) if k in texts]
                    with quant.quantized(subject, nf4) if in_nf4 else nullcontext():
                        lenses[key] = logit_lens(subject, prompt, top=top, wanted=wanted, last=True)
                        texts[key], scores = _said(subject, row, drafts, tokens)
                        first = texts[UNEDITED, False]
                        own[key], reads[key] = scores[tuple(texts[key])], scores[tuple(first)]
        rows = [row + text for text in texts.values()]
        unedited = token_log_probabilities(subject, rows, [len(row)] * len(rows))
    before = dict(zip(texts, unedited, strict=True))
    return Answers(
        tuple(row),
        tuple(wanted),
        {k: Said(lenses[k], tuple(texts[k]), own[k], before[k], reads[k]) for k in texts},
    )


def _said(
    subject: Subject, row: list[int], drafts: Sequence[list[int]], tokens: int
) -> tuple[list[int], dict[tuple[int, ...], np.ndarray]]:
    """What the model as it now is says after a row, by greedy decoding.

    Args:
        drafts: what it may say; as much of the best one as it does say is not decoded again.

    Returns:
        Its tokens, and their log-probabilities and those of each draft.
    """
    said, scores = [], {}
    for draft in drafts:
        length = torch.tensor([len(row) + len(draft)])
        states = subject.states(torch.tensor([row + draft]), length)[len(row) - 1 :]
        logs = finite(subject.head(states).double(), "logits").log_softmax(-1).cpu()
        likeliest = logs.argmax(-1).tolist()
        same = next((i for i, t in enumerate(draft) if likeliest[i] != t), len(draft))
        said = max(said, [*draft[:same], likeliest[same]][:tokens], key=len)
        scores[tuple(draft)] = logs[range(len(draft)), draft].numpy()
    if ends := end_tokens(subject).intersection(said):
        said = said[: min(map(said.index, ends))]
    elif len(said) < tokens:
        said = said + greedy_tokens(subject, [row + said], tokens=tokens - len(said))[0]
    if tuple(said) not in scores:
        (scores[tuple(said)],) = token_log_probabilities(subject, [row + said], [len(row)])
    return said, scores
