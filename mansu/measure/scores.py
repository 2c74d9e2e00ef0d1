"""Accuracy, answer log-probability and margins of a subject as it now is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mansu.errors import MansuError, MismatchError
from mansu.files import read_json, reading, typed, write_json
from mansu.measure.drift import Reference
from mansu.show.numbers import between
from mansu.show.table import Shown, Table
from mansu.statistics import SHARE, Interval, bootstrap
from mansu.subjects.packing import Hidden, Pack, together
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task
from mansu.tasks.tokens import Examples, examples, text

EVALUATED = ("forget", "retain", "holdout", "neighbour", "paraphrase")

TITLES = {
    "forget": "Forget",
    "paraphrase": "Paraphrase",
    "retain": "Retain",
    "holdout": "Held out",
    "neighbour": "Neighbours",
}
"""What a split is called, in the order in which they are shown."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Per-example results of one split under one model (all arrays ``[N]``).

    Attributes:
        correct: float, 4-way multiple choice: 1 where the answer outscores its three distractors,
            0 where one of them outscores it, and a share where they tie (``share_right``).
        top1: the answer is the most probable next token.
        log_probability: of the answer, in nats.
        margin: answer logit minus the best distractor's, in nats.
        choice: log-probability of the answer among its four choices, in nats; −ln 4 at chance.
            What the raw one of an absurdly improbable answer cannot say: is it the likeliest?
        spread: KL(uniform ‖ the four choices), nats: 0 where none stands out.
        answer: the answer's token id; rephrasings of one fact share it, and are one cluster of
            the bootstrap.
        groups: the group of each row; rows: its line in the task file.
        facts: the fact that each row asks for, where the answer does not say it (a letter of a
            multiple-choice question); then the clusters are the facts.
        chosen: which of its four choices the model takes in each row, as text (the first, where
            several tie); empty in a file of a MANSU that did not keep it.
    """

    correct: np.ndarray
    top1: np.ndarray
    log_probability: np.ndarray
    margin: np.ndarray
    choice: np.ndarray
    spread: np.ndarray
    answer: np.ndarray
    groups: tuple[str, ...]
    rows: tuple[int, ...]
    facts: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()

    @property
    def clusters(self) -> np.ndarray:
        """Which rows ask for the same fact: ``[N]``, for ``bootstrap``."""
        return np.array(self.facts) if self.facts else self.answer

    @property
    def accuracy(self) -> float:
        """Mean of ``correct``; NaN of no rows (which ``measure_task`` has no split for)."""
        return float(self.correct.mean()) if len(self.correct) else float("nan")

    @property
    def interval(self) -> Interval:
        """Accuracy with its bootstrap 95 % interval over facts."""
        return bootstrap(self.correct, clusters=self.clusters, within=SHARE)

    def refuse_other(self, other: Scores) -> None:
        """Refuse scores of other rows, which cannot be compared with these row by row.

        Raises:
            MismatchError: they are of other rows, or in another order.
        """
        if self.rows != other.rows:
            raise MismatchError(
                f"Two measurements that are compared are of other rows, or of the same ones in "
                f"another order ({len(self.rows)} rows and {len(other.rows)}): measure both anew, "
                "on the same task."
            )

    def group(self, name: str) -> Scores:
        """The rows of one group."""
        keep = np.array([g == name for g in self.groups])
        pick = [i for i, k in enumerate(keep) if k]
        return Scores(
            self.correct[keep],
            self.top1[keep],
            self.log_probability[keep],
            self.margin[keep],
            self.choice[keep],
            self.spread[keep],
            self.answer[keep],
            tuple(self.groups[i] for i in pick),
            tuple(self.rows[i] for i in pick),
            tuple(self.facts[i] for i in pick) if self.facts else (),
            tuple(self.chosen[i] for i in pick) if self.chosen else (),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "correct": [int(x) if x in (0, 1) else x for x in self.correct.tolist()],
            "top1": self.top1.astype(int).tolist(),
            "log_probability": np.round(self.log_probability.astype(float), 5).tolist(),
            "margin": np.round(self.margin.astype(float), 5).tolist(),
            "choice": np.round(self.choice.astype(float), 5).tolist(),
            "spread": np.round(self.spread.astype(float), 5).tolist(),
            "answer": self.answer.tolist(),
            "groups": list(self.groups),
            "rows": list(self.rows),
            **({"facts": list(self.facts)} if self.facts else {}),
            **({"chosen": list(self.chosen)} if self.chosen else {}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Scores:
        """Read what ``to_json`` made.

        Raises:
            KeyError, TypeError, ValueError: something is missing, of another type or length, not
                finite, not what it may be, or at odds with the rest of its row; for ``reading`` to
                say of which file.
        """

        def numbers(name: str, kind: type) -> np.ndarray:
            found = value[name]
            kinds = {int} if kind is int else {int, float}
            if not isinstance(found, list) or not {type(x) for x in found} <= kinds:
                raise TypeError(f"{name} is no list of numbers")
            array = np.array(found, dtype=kind)
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
            return _fixed(array)

        def texts(name: str) -> tuple[str, ...]:
            found = tuple(value[name])
            if not all(isinstance(x, str) for x in found):
                raise TypeError(f"{name} is no list of texts")
            return found

        correct, top1 = numbers("correct", float), numbers("top1", int)
        for name, shares in (("correct", correct), ("top1", top1)):
            if ((shares < 0) | (shares > 1)).any():
                raise ValueError(f"a value of {name} is not between 0 and 1")
        scores = cls(
            correct,
            _fixed(top1.astype(bool)),
            numbers("log_probability", float),
            numbers("margin", float),
            numbers("choice", float),
            numbers("spread", float),
            numbers("answer", int),
            texts("groups"),
            tuple(numbers("rows", int).tolist()),
            texts("facts") if "facts" in value else (),
            texts("chosen") if "chosen" in value else (),
        )
        for name in ("log_probability", "choice"):
            if (getattr(scores, name) > 1e-3).any():  # it was rounded
                raise ValueError(f"a value of {name} is the logarithm of more than 1")
        optional = ("facts", "chosen")
        arrays = [len(found) for name, found in scores.__dict__.items() if name not in optional]
        arrays += [len(value[name]) for name in optional if name in value]
        if set(arrays) != {arrays[0]}:
            raise ValueError("its lists are of different lengths")
        margin = scores.margin  # 0 is a tie, or was rounded to it
        if (correct[margin > 0] < 1).any() or (correct[margin < 0] > 0).any():
            raise ValueError("a row is right by correct and wrong by margin, or the reverse")
        if (scores.log_probability > scores.choice + 1e-3).any():
            raise ValueError("an answer is likelier among all tokens than among its four choices")
        if (scores.spread < -1e-3).any():
            raise ValueError("a value of spread is a divergence below 0")
        return scores


def worst_fall(before: Scores, after: Scores) -> float:
    """The fall in accuracy of the group that falls most, of the same rows."""
    return _of_worst_group(before, before.correct - after.correct)


def worst_nats(before: Scores, after: Scores) -> float:
    """The fall in the answers' mean log-probability of the group that falls most, nats."""
    return _of_worst_group(before, before.log_probability - after.log_probability)


def _of_worst_group(rows: Scores, fall: np.ndarray) -> float:
    groups = np.array(rows.groups)
    return max(float(fall[groups == name].mean()) for name in dict.fromkeys(rows.groups))


def _fixed(array: np.ndarray) -> np.ndarray:
    """The array, which nobody can change: whoever reads the same file shares it."""
    array.setflags(write=False)
    return array


@dataclass(frozen=True, repr=False, eq=False)
class Measurement(Shown):
    """Everything measured on one model: each split's scores and the loss on plain text.

    Attributes:
        splits: scores by split (a split without a usable row is absent).
        text_loss: mean next-token cross-entropy on the task's plain text, nats; None without.
        drift: KL from the unedited model in the same format on text of its own, nats a token, by
            text; None of the unedited model itself.
    """

    splits: Mapping[str, Scores]
    text_loss: float | None
    drift: tuple[float, ...] | None = None

    def sets(self) -> dict[str, Scores]:
        """Scores by set, as they are shown: forget, rephrasings, each retain group, held-out."""
        found = {}
        for split, title in TITLES.items():
            if split in self.splits:
                scores = self.splits[split]
                for group in dict.fromkeys(scores.groups):
                    found[title if group == split else f"{title}: {group}"] = scores.group(group)
        return found

    def table(self) -> Table:
        """A row a set: accuracy with its interval, and the answers' log-probability."""
        rows = [
            (name, str(len(s.rows)), between(s.interval), f"{s.log_probability.mean():.2f}")
            for name, s in self.sets().items()
        ]
        text = "" if self.text_loss is None else f"; loss on text {self.text_loss:.2f} nats"
        caption = f"4-way accuracy on {sum(len(s.rows) for s in self.splits.values())} rows{text}"
        return Table(("Set", "Rows", "Accuracy [95 %]", "Log-probability, nats"), rows, caption)

    def to_json(self) -> dict[str, Any]:
        return {
            "splits": {name: scores.to_json() for name, scores in self.splits.items()},
            "text_loss": self.text_loss,
            "drift": None if self.drift is None else [round(kl, 7) for kl in self.drift],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measurement:
        """Read what ``to_json`` made; raises as ``Scores.from_json`` does."""
        splits = {name: Scores.from_json(scores) for name, scores in value["splits"].items()}
        drift = None if value["drift"] is None else tuple(value["drift"])
        return typed(cls(splits, value["text_loss"], drift))

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Measurement:
        """Read what ``save`` wrote.

        Raises:
            NotMeasuredError: there is no such file. DamagedError: it is damaged.
        """
        with reading(Path(path)):
            return cls.from_json(read_json(Path(path)))


def share_right(own: Tensor, others: Tensor) -> Tensor:
    """Multiple choice, ties shared: a model with equal scores for all choices is at chance.

    Args:
        own: the right choice's score, ``[N]``. others: the wrong ones', ``[N, C - 1]``.

    Returns:
        float ``[N]``: 1 where ``own`` is the highest, 0 where it is not, 1 ÷ (how many choices
        are the highest) where it is one of several.
    """
    best = others.max(1).values
    tied = 1 + (others == own[:, None]).sum(1)
    return torch.where(own == best, 1 / tied, (own > best).float())


def finite(values: Tensor, what: str) -> Tensor:
    """The values, all of which must be numbers.

    Raises:
        MansuError: one is NaN or infinite.
    """
    if not bool(torch.isfinite(values).all()):
        raise MansuError(
            f"The model's {what} are not finite (NaN or infinite): its weights, or an edit of "
            "them, are broken or too large for their number format."
        )
    return values


@torch.no_grad()
def measure(subject: Subject, rows: Examples) -> Scores:
    """Score every row of one split on the subject as it now is.

    Raises:
        MansuError: logits that are not finite.
    """
    return measure_sets(subject, [rows])[0]


@torch.no_grad()
def measure_sets(
    subject: Subject, sets: Sequence[Examples], hidden: Hidden | None = None
) -> list[Scores]:
    """``measure`` of several splits whose rows run together, so that they share beginnings.

    Args:
        hidden: what runs a pack of these rows; by default ``subject.hidden``.

    Raises:
        MansuError: logits that are not finite.
    """
    hidden = hidden or subject.hidden
    tokens, length = together([(rows.tokens, rows.length) for rows in sets])
    answers = torch.cat([rows.answer for rows in sets])
    choices = torch.cat([answers[:, None], torch.cat([rows.distractors for rows in sets])], 1)
    found = []
    for pack in subject.packs(tokens, length):
        logits = subject.head(hidden(pack)[pack.last.to(subject.device)]).float().cpu()
        chosen = finite(logits, "logits").gather(1, choices[pack.rows])
        top = (logits.argmax(1) == answers[pack.rows]).float()
        found.append((pack.rows, chosen, logits.logsumexp(1), top))
    order, chosen, total, top = (torch.cat(parts) for parts in zip(*found, strict=True))
    place = order.argsort()
    sizes = [len(rows) for rows in sets]
    parts = (values[place].split(sizes) for values in (chosen, total, top))
    return [_scores(subject, rows, *values) for rows, *values in zip(sets, *parts, strict=True)]


def _scores(subject: Subject, rows: Examples, chosen: Tensor, total: Tensor, top: Tensor) -> Scores:
    """From the logits of answer and distractors ``[N, 4]`` and the log-sum of all ``[N]``."""
    own, others = chosen[:, 0], chosen[:, 1:]
    among = chosen.log_softmax(1)
    choices = torch.cat([rows.answer[:, None], rows.distractors], 1)
    taken = choices.gather(1, chosen.argmax(1, keepdim=True))[:, 0].tolist()
    texts = {token: str(subject.tokenizer.decode([token])) for token in {*taken}}
    return Scores(
        correct=share_right(own, others).numpy().astype(float),
        top1=top.bool().numpy(),
        log_probability=(own - total).numpy(),
        margin=(own - others.max(1).values).numpy(),
        choice=among[:, 0].numpy(),
        spread=(-among.mean(1) - math.log(among.shape[1])).numpy(),
        answer=rows.answer.numpy(),
        groups=rows.groups,
        rows=rows.rows,
        facts=rows.facts,
        chosen=tuple(texts[token] for token in taken),
    )


@torch.no_grad()
def right(subject: Subject, *sets: Examples) -> tuple[Tensor, ...]:
    """``Scores.correct`` of some sets, float32 ``[N]`` each, and no more: for a check on the way.

    All rows run together, and the head gives the logits of the choices only.
    """
    tokens, length = together([(rows.tokens, rows.length) for rows in sets])
    choices = torch.cat([torch.cat([r.answer[:, None], r.distractors], 1) for r in sets])
    vocabulary, place = choices.unique(return_inverse=True)
    logits = subject.next_token_logits(tokens, length, vocabulary).float().cpu()
    logits = finite(logits, "logits").gather(1, place)
    return share_right(logits[:, 0], logits[:, 1:]).split([len(rows) for rows in sets])


def answer_log_probability(subject: Subject, rows: Examples) -> Tensor:
    """log π(answer | prompt) in nats, ``[N]`` (differentiable)."""
    logits = subject.next_token_logits(rows.tokens, rows.length).float()
    return -cross_entropy(logits, rows.answer.to(logits.device), reduction="none")


@torch.no_grad()
def text_loss(subject: Subject, tokens: Tensor, length: Tensor) -> float:
    """Mean next-token cross-entropy (nats) over the real positions of ``tokens`` ``[N, T]``."""
    return float(text_losses(subject, tokens, length).mean())


def text_losses(subject: Subject, tokens: Tensor, length: Tensor) -> Tensor:
    """Cross-entropy of every real next token, flat, in no order (differentiable).

    Raises:
        MansuError: one is not finite, where no gradient is asked for (training stops by itself).
    """
    found = [pack_losses(subject, p, subject.hidden(p)) for p in subject.packs(tokens, length)]
    losses = torch.cat(found)
    return losses if losses.requires_grad else finite(losses, "losses")


def pack_losses(subject: Subject, pack: Pack, hidden: Tensor) -> Tensor:
    """``text_losses`` of the rows of a pack, from its final hidden states ``[T, d]``."""
    states = hidden[pack.at[pack.real].to(hidden.device)]
    return following_losses(subject, states, pack.tokens[pack.at], pack.length)


def following_losses(subject: Subject, states: Tensor, tokens: Tensor, length: Tensor) -> Tensor:
    """``text_losses`` of rows, from the final hidden states of all their tokens.

    Args:
        states: ``[Σ length, d]``, as ``Subject.states`` gives them.
    """
    real = torch.arange(tokens.shape[1]) < length[:, None]
    ends = (torch.arange(1, tokens.shape[1] + 1) == length[:, None])[real]  # no token follows
    logits = subject.head(states[~ends.to(states.device)]).float()
    following = tokens[:, 1:][real[:, 1:]].to(logits.device)
    return cross_entropy(logits, following, reduction="none")


def measured_rows(subject: Subject, task: Task, *, seed: int = 0) -> dict[str, Examples]:
    """The rows of every split of the task that has some, as ``measure_task`` runs them."""
    rows = {split: examples(task, subject, split, seed=seed) for split in EVALUATED}
    return {split: usable for split, usable in rows.items() if len(usable)}


def measure_task(
    subject: Subject,
    task: Task,
    *,
    seed: int = 0,
    reference: Reference | None = None,
    hidden: Hidden | None = None,
) -> Measurement:
    """Measure every split of the task on the subject as it now is.

    Args:
        reference: of the unedited model in the same format, for ``drift``.
        hidden: as ``measure_sets`` takes it, for the ``measured_rows``.
    """
    rows = measured_rows(subject, task, seed=seed)
    splits = dict(zip(rows, measure_sets(subject, list(rows.values()), hidden), strict=True))
    tokens, length = text(task, subject)
    has_text = bool((length > 1).any())
    loss = text_loss(subject, tokens, length) if has_text else None
    drift = None if reference is None else tuple(reference.divergences(subject).tolist())
    return Measurement(splits, loss, drift)
