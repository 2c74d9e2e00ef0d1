"""Where a fact leaks: prompts that ask something else of its thing, and yet favour its answer.

"This kind of France is called" does not ask for a capital. But of the answers that the forget facts
have, the unedited model finds Paris likelier there than after other countries. A method that makes
the answers indistinguishable in the forget set's own forms alone leaves that, and a rephrasing is
answered from it. So MANSU forgets them in the prompts of ``mansu.methods.keep``, too.

What is forgotten there is only what the thing adds: a candidate's log-probability over its mean in
that frame over all things. That Paris is likelier than Suva wherever it is said may stay so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mansu.methods.keep import framed
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples, asked_about

ADVANTAGE = 1.0
"""Nats, at least, by which a prompt favours the answer over the other candidates on average."""


@dataclass(frozen=True)
class Leaks:
    """Prompts in which forget facts leak.

    Attributes:
        rows: the prompts, with the answer and candidates of the fact each.
        frame: int64 ``[N]``, the frame of each.
        usual: ``[frames, V]``, log-probability of every answer in a frame, nats, mean over all
            things: over the vocabulary of the forget rows.
    """

    rows: Examples
    frame: Tensor
    usual: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def none(cls, forget: Examples) -> Leaks:
        """As where a subject knows no frame."""
        nothing = torch.zeros(0, len(forget.vocabulary))
        return cls(forget.select([]), torch.zeros(0, dtype=torch.long), nothing)

    @classmethod
    @torch.no_grad()
    def of(cls, subject: Subject, forget: Examples) -> Leaks:
        """Of the subject as it now is; none where it does not know the frames' words, as a toy.

        Use: ``leaks = Leaks.of(subject, forget)``.
        """
        first: dict[tuple[tuple[int, ...], int], int] = {}  # row of a fact
        for row, thing in enumerate(asked_about(forget)):
            if thing:
                first.setdefault((thing, int(forget.answer[row])), row)
        things, rows = [thing for thing, _ in first], torch.tensor([*first.values()])
        (tokens, length), thing, frame = framed(subject, things)
        vocabulary = forget.vocabulary
        if not len(tokens):
            return cls.none(forget)
        found = subject.next_token_logits(tokens, length, vocabulary).float().log_softmax(-1)
        where, count = frame.to(found.device), frame.bincount().to(found)[:, None]
        usual = found.new_zeros(len(count), len(vocabulary)).index_add(0, where, found)
        usual = usual / count.clamp_min(1)
        asked = forget.select(rows[thing].tolist())
        candidates = asked.candidates.to(found.device)
        added = (found - usual[where]).masked_fill(~candidates, 0)
        answer = (vocabulary == asked.answer[:, None]).to(found.device)
        advantage = (added * answer).sum(1) - added.sum(1) / candidates.sum(1)
        leaking = (advantage > ADVANTAGE).nonzero()[:, 0].cpu()
        prompts = asked.select(leaking.tolist()).asking(tokens[leaking], length[leaking])
        return cls(prompts, frame[leaking], usual)
