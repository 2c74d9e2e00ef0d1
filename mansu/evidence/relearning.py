"""Relearning: does one half of the facts bring back the other?

Fine-tune on half of the forget set and ask for the other half (retraining on T, scored on V; Deeb &
Roger 2024, arXiv:2410.08827; Łucki et al. 2024, arXiv:2409.18025; Lynch et al. 2024,
arXiv:2402.16835). The halves share no fact, no prompt and (but for the letters of multiple choice)
no answer, so that nothing asked for can be read off what is known: what comes back was still in the
weights. The model whose circuit is ablated, relearned alike, says how much of it is guessing
better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from mansu import tasks
from mansu.errors import BadInputError, MismatchError
from mansu.measure.scores import Scores, answer_log_probability, measure
from mansu.methods import Problem
from mansu.methods.training import TOY_RATE, Batch, TrainingSettings, trained
from mansu.progress import OnStep, Step, silent
from mansu.show.numbers import many
from mansu.statistics import Interval, bootstrap
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.facts import Task
from mansu.tasks.tokens import FEW_ANSWERS, Examples

QUESTIONS = 60
"""At most this many questions are asked, drawn with the seed."""

STEPS = 8
BUDGET = TrainingSettings(learning_rate=5e-5, steps=STEPS, batch=20)
"""Relearning's budget: steps of AdamW on all parameters, and known rows a step.

Of the rates 1e-5, 2e-5 and 5e-5, this one recovers most on the default subject; the unedited model
stays at 100 % under each.
"""


def budget(subject: Subject) -> TrainingSettings:
    """``BUDGET``, as it suits the subject's size."""
    return replace(BUDGET, learning_rate=TOY_RATE) if subject.is_toy else BUDGET


@dataclass(frozen=True)
class Relearned:
    """What relearning brought back of one model.

    Attributes:
        of: whose, for people.
        before: accuracy of the unedited model on the asked half.
        curve: scores after 0, 1, … steps.
        settings: the budget, as JSON values.
    """

    of: str
    before: float
    curve: tuple[Scores, ...]
    settings: Mapping[str, Any]

    @property
    def steps(self) -> int:
        """How many were done."""
        return len(self.curve) - 1

    @property
    def cut_short(self) -> str | None:
        """Why it cannot be compared, a sentence: fewer steps were done than its budget has."""
        asked = self.settings.get("steps", self.steps)
        return None if 0 < self.steps == asked else ended(self.of, self.steps, asked)

    def steps_to(self, accuracy: float) -> int | None:
        """After how many steps it is as accurate; None if never."""
        return next((i for i, s in enumerate(self.curve) if s.accuracy >= accuracy), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "of": self.of,
            "before": self.before,
            "curve": [scores.to_json() for scores in self.curve],
            "settings": dict(self.settings),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Relearned:
        """Read what ``to_json`` made; raises as ``Scores.from_json`` does."""
        curve = tuple(Scores.from_json(found) for found in value["curve"])
        if not curve:
            raise ValueError("its curve is empty")
        return cls(value["of"], value["before"], curve, dict(value["settings"]))


def ended(of: str, steps: int, asked: int) -> str:
    """What is said of relearning that did fewer steps than were asked for."""
    return (
        f"Relearning of {of} ended after {many(steps, 'step')} of {asked}, since its loss became "
        "infinite: what it would have brought back is not known."
    )


def gained(edited: Relearned, reference: Relearned) -> Interval:
    """The answer's probability among its choices above the reference's, mean over the steps.

    Not accuracy: near chance it hangs on thousandths of a nat, and a model that never knew the
    facts stays undecided.

    Raises:
        MismatchError: they were asked for other rows, or did not do equally many steps, or none.
    """
    if not 0 < edited.steps == reference.steps:
        raise MismatchError(
            f"Relearning of {edited.of} has {many(edited.steps, 'step')}, of {reference.of} "
            f"{many(reference.steps, 'step')}: only equally many can be compared."
        )
    for a, b in zip(edited.curve, reference.curve, strict=True):
        a.refuse_other(b)
    means = [np.mean([np.exp(s.choice) for s in r.curve[1:]], axis=0) for r in (edited, reference)]
    return bootstrap(means[0] - means[1], clusters=edited.curve[0].clusters)


def halves(task: Task, subject: Subject, *, seed: int = 0) -> tuple[Examples, Examples]:
    """The forget set split into what is known and what is asked, with no answer or fact in both.

    With fewer than ``FEW_ANSWERS`` answers (the letters of multiple choice) an answer is not a
    fact, and the halves share answers. Else the distractors of what is asked are no answers of what
    is known, unless the task gives them or the row's group has too few others in its half.

    Raises:
        BadInputError: the forget set cannot be split so: it asks for one fact.
    """
    forget = tasks.examples(task, subject, "forget", seed=seed)
    few, units = _is_few(forget), _inseparable(forget)
    order = units.unique()[torch.randperm(len(units.unique()), generator=_generator(seed))]
    is_known = torch.isin(units, order[: len(order) // 2])
    if not is_known.any():
        raise BadInputError(
            f"The forget set of {task.name!r} has one fact, or facts that share their answers or "
            "prompts: relearning and attacks need two that share none, so add facts to forget."
        )
    known = forget.select(is_known.nonzero().flatten().tolist())
    lines = {row for row, mine in zip(forget.rows, is_known.tolist(), strict=True) if not mine}
    rest = replace(task, facts=tuple(f for f in task.facts if f.row in lines))
    asked = forget.select((~is_known).nonzero().flatten().tolist())
    if not few:
        asked = replace(asked, distractors=_distractors(asked, rest, subject, seed))
    if len(asked) > QUESTIONS:
        drawn = torch.randperm(len(asked), generator=_generator(seed))[:QUESTIONS]
        asked = asked.select(sorted(drawn.tolist()))
    return known, asked


def _distractors(asked: Examples, rest: Task, subject: Subject, seed: int) -> torch.Tensor:
    """Of the asked rows, int64 ``[N, 3]``, drawn from the task without what is known.

    One half of a group may not have enough wrong ones: such a row keeps its own.
    """
    drawn: dict[int, torch.Tensor] = {}
    with suppress(BadInputError):  # no row has
        found = tasks.examples(rest, subject, "forget", seed=seed)
        drawn = dict(zip(found.rows, found.distractors, strict=True))
    rows = zip(asked.rows, asked.distractors, strict=True)
    return torch.stack([drawn.get(row, own) for row, own in rows])


def separable(forget: Examples) -> bool:
    """Whether ``halves`` can split a forget set: of one fact it cannot."""
    return len(_inseparable(forget).unique()) > 1


def _is_few(forget: Examples) -> bool:
    """Whether answers tell no fact: then each row has one."""
    return bool(forget.facts) and len(forget.vocabulary) < FEW_ANSWERS


def _inseparable(rows: Examples) -> torch.Tensor:
    """Rows of one number, int64 ``[N]``, are of one half: they share a fact, a prompt or, unless
    answers are few, an answer, or each does with a third row."""
    tokens, length = rows.tokens.tolist(), rows.length.tolist()
    shared: list[Sequence[Any]] = [
        [tuple(row[:n]) for row, n in zip(tokens, length, strict=True)],
        rows.facts or range(len(rows)),
        range(len(rows)) if _is_few(rows) else rows.answer.tolist(),
    ]
    units, before = list[int](shared[-1]), list[int]()
    while units != before:
        before = units
        for keys in shared:
            lowest: dict[Any, int] = {}
            for key, unit in zip(keys, units, strict=True):
                lowest[key] = min(unit, lowest.get(key, unit))
            units = [lowest[key] for key in keys]
    return torch.tensor(units)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relearn(
    subject: Subject,
    task: Task,
    known: Examples,
    asked: Examples,
    *,
    seed: int = 0,
    steps: int = STEPS,
    on_step: OnStep = silent,
) -> tuple[Scores, ...]:
    """Fine-tune on the known rows, ask for the others after each step, and put all back.

    An exception that ``on_step`` raises ends it, and leaves the subject as it was.

    Returns:
        Scores after 0, 1, … ``steps`` steps (fewer if the loss became infinite).
    """
    curve = [measure(subject, asked)]
    if not steps:
        return tuple(curve)

    def loss(rows: Batch) -> Iterator[tuple[str, torch.Tensor]]:
        yield "relearning", -answer_log_probability(subject, rows.forget).mean()

    def ask(step: int) -> bool:
        curve.append(measure(subject, asked))
        on_step(Step("relearning", step, steps, part="relearning"))
        return False

    nothing = torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    problem = Problem(subject, task, known, known, nothing, seed=seed, watch=ask)
    with trained(problem, replace(budget(subject), steps=steps), loss):
        return tuple(curve)


def relearning(
    subject: Subject,
    task: Task,
    edit: Edit,
    halved: Sequence[Examples] | None = None,
    *,
    seed: int = 0,
    on_step: OnStep = silent,
) -> Relearned:
    """Relearn the subject with an edit.

    Args:
        halved: of ``halves``, where they are at hand.

    Raises:
        MansuError: the forget set is too small to split, or the edit does not fit.

    Use: ``relearning(subject, task, edit).curve[-1].accuracy``
    """
    halved = halves(task, subject, seed=seed) if halved is None else halved
    known, asked = halved
    before = measure(subject, asked).accuracy
    with edit.applied(subject):
        curve = relearn(subject, task, known, asked, seed=seed, on_step=on_step)
    sizes = {"known": len(known), "asked": len(asked)}
    of = "the model with its circuit ablated" if edit.label == "ablation" else "the edited model"
    return Relearned(of, before, curve, {**asdict(budget(subject)), **sizes})
