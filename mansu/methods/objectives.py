"""MANSU's two objectives, on the rows of one step: what is to be forgotten, and what is kept."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from mansu.measure.scores import Scores, measure_sets
from mansu.methods.method import Problem
from mansu.methods.signal import Signal
from mansu.subjects.lower import LowerLayers
from mansu.subjects.own_text import Rows
from mansu.subjects.packing import Pack, together
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples, forms

FORGET_ROWS, RETAIN_ROWS, PROMPT_ROWS, TEXT_ROWS = 40, 36, 60, 8
ADVANTAGE = 0.25
"""Weight of the answer's advantage in the forget objective. With 1 the forgetting overshoots: 4-way
accuracy ends at 4 to 11 %, and the answer is known by its avoidance."""


def indistinguishable(logits: Tensor, rows: Examples) -> Tensor:
    """The forget objective of each row ``[N]``, nats, from its logits ``[N, C]`` of the vocabulary.

    KL(uniform ‖ p) over the row's candidate answers, which is 0 when none stands out, plus
    ``ADVANTAGE`` times what the answer's log-probability exceeds the mean of the others' by. The
    KL is quadratic in that advantage and its pull fades long before the answer stops winning; the
    second term's does not, and it ends where the answer is an average candidate, not where it is
    an impossible one.
    """
    candidates, logits = rows.candidates.to(logits.device), logits.float()
    vocabulary = rows.vocabulary.to(logits.device)
    chosen = logits.masked_fill(~candidates, -torch.inf)
    log_probabilities = chosen.log_softmax(-1).masked_fill(~candidates, 0)
    count = candidates.sum(1)
    divergence = -log_probabilities.sum(1) / count - count.log()
    is_answer = vocabulary == rows.answer.to(logits.device)[:, None]
    answer = (log_probabilities * is_answer).sum(1)
    others = (log_probabilities.sum(1) - answer) / (count - 1).clamp_min(1)
    return divergence + ADVANTAGE * (answer - others).relu()


@dataclass(frozen=True)
class StepRows:
    """What a step is taken on: forget rows, kept rows and texts, by their places in the sets.

    Attributes:
        rows: int64 ``[N]``, which of all rows of the sets they are, the sets one after another.
        tokens: int64 ``[N, P, 2]``, forget rows, kept rows, texts; what comes first of a token is
            0 in a forget row and 1 elsewhere, so that the two share none: each token's gradient
            belongs to one of the two objectives.
        length: int64 ``[N]``.
    """

    forget: list[int]
    kept: list[int]
    text: list[int]
    rows: Tensor
    tokens: Tensor
    length: Tensor

    @classmethod
    def of(cls, sets: Sequence[Rows], *places: list[int]) -> StepRows:
        """Some rows of the three sets."""
        forget, kept, text = places
        begins = accumulate([len(length) for _, length in sets], initial=0)
        rows = [begin + i for begin, some in zip(begins, places, strict=False) for i in some]
        chosen = zip(sets, places, strict=True)
        tokens, length = together([(t[some], n[some]) for (t, n), some in chosen if some])
        objective = (torch.arange(len(tokens)) >= len(forget)).long()
        both = torch.stack([objective[:, None].expand_as(tokens), tokens], -1)
        return cls(forget, kept, text, torch.tensor(rows), both, length)

    def packs(self, subject: Subject) -> Iterator[StepPack]:
        """Each with the tokens of its rows by objective."""
        for pack in subject.packs(self.tokens, self.length):
            count = int((pack.tokens[:, 0] == 0).sum())  # forget rows' come first
            last = pack.last[pack.rows < len(self.forget)]
            yield StepPack(pack, slice(count), last, slice(count, None))


class StepPack(NamedTuple):
    """A pack of a step's rows; which of its tokens are those of forget rows, the last of each of
    these, and which are those of what is kept."""

    pack: Pack
    forgotten: slice
    last: Tensor
    kept: slice


class Objectives:
    """The two objectives, against the subject as it is when they are made: unedited.

    Args:
        mask: whose nodes are to write nothing of the facts.
        prompts: to go on with as before, besides the retain facts'.
        first: the first layer that moves: those below it are run once (``LowerLayers``).
        signal_weight, form_weight: in the forget objective, as MANSU's settings have them.
    """

    def __init__(
        self,
        problem: Problem,
        mask: Mapping[str, Tensor],
        prompts: Rows,
        *,
        first: int,
        signal_weight: float,
        form_weight: float,
    ) -> None:
        self.subject, self.problem = problem.subject, problem
        self.signal_weight, self.form_weight = signal_weight, form_weight
        self.positions = problem.text[1].tolist()
        # The head is not moved: final hidden states are the distributions, in little memory.
        with torch.no_grad():
            forget, retain = problem.forget, problem.retain
            kept = together([(retain.tokens, retain.length), prompts])
            self.sets = (forget.tokens, forget.length), kept, problem.text
            every = torch.cat([length for _, length in self.sets])
            self.lower = LowerLayers(self.subject, every, [first])
            of_forget = partial(self.hidden, 0)
            self.signal = Signal(self.subject, forget, mask, of_forget) if signal_weight else None
            of_rest = partial(self.hidden, len(forget))
            prompted, texts = self.subject.states_of(*self.sets[1:], hidden=of_rest)
            self.prompted = prompted[kept[1].cumsum(0) - 1]
            self.texts = texts.split(self.positions)
            if self.signal:  # which ran the same rows
                before = self.subject.head(self.signal.final).float()
            else:
                before = self.subject.next_token_logits(forget.tokens, forget.length).float()
            self.forms = forms(forget)
            self.average = torch.stack(
                [before[self.forms == f].softmax(-1).mean(0) for f in self.forms.unique()]
            ).clamp_min(1e-12)

    def hidden(self, begin: int, pack: Pack) -> Tensor:
        """Final hidden states of a pack of rows of the sets, the first of which is ``begin``."""
        return self.lower.hidden(pack, rows=begin + pack.rows)

    def measured(self, forget: Sequence[int], retain: Sequence[int]) -> list[Scores]:
        """Scores of some of the problem's rows on the subject as it now is."""
        problem, begin = self.problem, len(self.problem.forget)
        rows = torch.tensor([*forget, *(begin + i for i in retain)])
        chosen = ((problem.forget, forget), (problem.retain, retain))
        sets = [examples.select(some) for examples, some in chosen if some]
        return measure_sets(
            self.subject, sets, lambda pack: self.lower.hidden(pack, rows=rows[pack.rows])
        )

    def sample(self, rng: random.Random) -> StepRows:
        """Rows for a step."""
        n = len(self.problem.retain)
        facts = sample(rng, n, RETAIN_ROWS)
        prompts = sample(rng, len(self.prompted) - n, PROMPT_ROWS)
        return StepRows.of(
            self.sets,
            sample(rng, len(self.problem.forget), FORGET_ROWS),
            [*facts, *(n + i for i in prompts)],
            sample(rng, len(self.texts), TEXT_ROWS) if self.texts else [],
        )

    def losses(self, rows: StepRows, found: StepPack) -> tuple[Tensor, Tensor]:
        """What a pack adds to the two objectives, nats.

        The first is the forget rows' mean of ``indistinguishable``, plus ``signal_weight`` times
        the share of the signal that is left (no nats), plus ``form_weight`` times KL(what the
        unedited model says to that form of asking on average ‖ current). The second is
        KL(unedited ‖ current), its mean over retain facts and prompts plus its mean over the texts'
        positions.
        """
        pack, subject = found.pack, self.subject
        with self.signal.watched() if self.signal else nullcontext({}) as seen:
            hidden = self.lower.hidden(pack, rows=rows.rows[pack.rows], tokens=pack.tokens[:, 1])
        n, m = len(rows.forget), len(rows.forget) + len(rows.kept)
        forgotten, prompted = pack.rows < n, (pack.rows >= n) & (pack.rows < m)
        last = pack.last.to(hidden.device)
        forget = kept = hidden.new_zeros(())
        if forgotten.any():
            some = self.problem.forget.select([rows.forget[i] for i in pack.rows[forgotten]])
            final = hidden[last[forgotten]]
            form = self.forms[[rows.forget[i] for i in pack.rows[forgotten].tolist()]]
            losses = indistinguishable(subject.head(final, some.vocabulary), some)
            if self.signal:
                share = self.signal.share(seen, last[forgotten], form)
                losses = losses + self.signal_weight * share
            forget = losses.sum() / n
            if self.form_weight:
                average = self.average[form.to(final.device)].log()
                unknowing = _kl(average, self._distribution(final))
                forget = forget + self.form_weight * unknowing / n
        if prompted.any():
            places = [rows.kept[i - n] for i in pack.rows[prompted].tolist()]
            now = self._distribution(hidden[last[prompted]])
            kept = kept + _kl(self._reference(self.prompted[places]), now) / len(rows.kept)
        if (texts := pack.rows >= m).any():
            places = [rows.text[i - m] for i in pack.rows[texts].tolist()]
            at = pack.at[texts][pack.real[texts]].to(hidden.device)
            now = self._distribution(hidden[at])
            every = sum(self.positions[i] for i in rows.text)
            before = self._reference(torch.cat([self.texts[i] for i in places]))
            kept = kept + _kl(before, now) / every
        return forget, kept

    @torch.no_grad()
    def _reference(self, hidden: Tensor) -> Tensor:
        return self._distribution(hidden)

    def _distribution(self, hidden: Tensor) -> Tensor:
        return self.subject.head(hidden).float().log_softmax(-1)


def _kl(reference: Tensor, now: Tensor) -> Tensor:
    return (reference.exp() * (reference - now)).sum()


def sample(rng: random.Random, n: int, size: int) -> list[int]:
    return rng.sample(range(n), min(n, size))
