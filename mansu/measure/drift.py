"""How far a model's next-token distribution has moved from the unedited model's, on text.

Accuracy sees facts that somebody thought of. KL(unedited ‖ edited) on what the unedited model
writes sees every next word of it::

    reference = Reference.of(subject, *texts(subject, task))
    with edit.applied(subject):
        nats = reference.divergences(subject)     # one a text
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mansu.subjects.own_text import WORDS, Rows, own_text
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task
from mansu.tasks.tokens import text

TEXTS, TOKENS, BEGUN = 16, 32, 3
"""Texts that drift is measured on, the most tokens of each (as many distributions over all words
are held), and how many of them a text of the task gives."""


def texts(subject: Subject, task: Task, *, seed: int = 0) -> Rows:
    """What drift is measured on: text of the subject as it now is, which no method is given.

    It begins as the task's plain text does, so that it is of that kind, and goes on as the subject
    does: a text that came to the forgotten facts by itself would be to blame for their loss.
    """
    tokens, length = text(task, subject)
    starts = [row[: min(n, BEGUN)] for row, n in zip(tokens.tolist(), length.tolist(), strict=True)]
    starts = starts or [subject.encode(word, start=True) for word in WORDS]
    return own_text(subject, [starts[i % len(starts)] for i in range(TEXTS)], TOKENS, seed=seed)


@dataclass(frozen=True)
class Reference:
    """A model's next-token distributions on some texts.

    Attributes:
        tokens, length: int64 ``[N, T]`` and ``[N]``.
        log_probabilities: float32 ``[length, V]``, by text.
    """

    tokens: Tensor
    length: Tensor
    log_probabilities: Sequence[Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, subject: Subject, tokens: Tensor, length: Tensor) -> Reference:
        """Of the subject as it now is; as many floats as positions times words."""
        return cls(tokens, length, _distributions(subject, tokens, length))

    @torch.no_grad()
    def divergences(self, subject: Subject) -> np.ndarray:
        """Mean KL(reference ‖ subject as it now is) of each text's positions, nats, ``[N]``."""
        now = _distributions(subject, self.tokens, self.length)
        pairs = zip(self.log_probabilities, now, strict=True)
        kl = [float((p.exp() * (p - q)).sum(1).mean()) for p, q in pairs]
        return np.array(kl).clip(min=0)


def _distributions(subject: Subject, tokens: Tensor, length: Tensor) -> tuple[Tensor, ...]:
    logits = subject.head(subject.states(tokens, length)).float()
    return logits.log_softmax(-1).split(length.tolist())
