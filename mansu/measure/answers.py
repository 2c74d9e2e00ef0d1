"""What each model answers to every fact, row by row, and which answers flip.

A fact is right where its answer outscores its three wrong ones, as ``Scores.correct`` has it. What
an edit and then NF4 do to it is one of ``FLIPS``::

    for row in answered(task, base, full, nf4):
        print(row.fact.prompt, row.flip)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from mansu.errors import MismatchError
from mansu.measure.scores import TITLES, Measurement
from mansu.tasks.facts import Fact, Task

ASKED: Mapping[str, str] = {"forget": "forget rows", "paraphrase": "rephrasings"}
"""The splits whose answers are to be gone, as a sentence names them; all others are to stay."""

Flip = Literal[
    "back in NF4",
    "not forgotten",
    "gone only in NF4",
    "forgotten",
    "lost",
    "lost, back in NF4",
    "lost only in NF4",
    "kept",
    "not known before",
]
"""What becomes of a fact: right or wrong before the edit, after it, and after it in NF4."""

FLIPS: Mapping[Flip, str] = {
    "back in NF4": "to be forgotten: right, wrong after the edit, right again in NF4",
    "not forgotten": "to be forgotten: right throughout",
    "gone only in NF4": "to be forgotten: right, still right after the edit, wrong in NF4",
    "forgotten": "to be forgotten: right, wrong after the edit, in NF4 too",
    "lost": "to be kept: right, wrong after the edit, in NF4 too",
    "lost, back in NF4": "to be kept: right, wrong after the edit, right again in NF4",
    "lost only in NF4": "to be kept: right, still right after the edit, wrong in NF4",
    "kept": "to be kept: right throughout",
    "not known before": "wrong before the edit",
}
"""The worst first; everybody who names what became of a fact names it so."""
assert set(FLIPS) == set(get_args(Flip))

_ORDER: tuple[tuple[bool, bool, bool], ...] = (  # asked for, right after the edit, right in NF4
    (True, False, True),
    (True, True, True),
    (True, True, False),
    (True, False, False),
    (False, False, False),
    (False, False, True),
    (False, True, False),
    (False, True, True),
)
_KNOWN: Mapping[tuple[bool, bool, bool], Flip] = dict(zip(_ORDER, FLIPS, strict=False))


def flip(split: str, before: bool, full: bool, nf4: bool) -> Flip:
    """What became of a fact of a split, by whether three models have it right."""
    return _KNOWN[split in ASKED, full, nf4] if before else "not known before"


@dataclass(frozen=True)
class Answer:
    """One model's answer to one fact.

    Attributes:
        right: its answer outscores the three wrong ones, alone.
        chosen: which of the four it takes, as text; None where that was not kept.
        log_probability: of the right answer, nats.
    """

    right: bool
    chosen: str | None
    log_probability: float


@dataclass(frozen=True)
class Answered:
    """One fact under three models.

    Attributes:
        before, full, nf4: the unedited model, the edited one in full precision, and in NF4.
    """

    fact: Fact
    before: Answer
    full: Answer
    nf4: Answer

    @property
    def flip(self) -> Flip:
        return flip(self.fact.split, self.before.right, self.full.right, self.nf4.right)


def by_row(measurement: Measurement) -> dict[int, Answer]:
    """A model's answer by its fact's line in the task file."""
    found = {}
    for scores in measurement.splits.values():
        for i, row in enumerate(scores.rows):
            chosen = scores.chosen[i] if scores.chosen else None
            found[row] = Answer(scores.correct[i] == 1, chosen, float(scores.log_probability[i]))
    return found


def answered(
    task: Task, before: Measurement, full: Measurement, nf4: Measurement
) -> tuple[Answered, ...]:
    """Every fact that was measured, in the order of the sets and of the task file.

    Args:
        before: of the unedited model in full precision. full, nf4: of the edited one.

    Raises:
        MismatchError: the three are not of the same facts, or not of this task's.
    """
    models = [by_row(m) for m in (before, full, nf4)]
    facts = {f.row: f for split in TITLES for f in task.split(split)}
    if any(set(found) != set(models[0]) for found in models) or not set(models[0]) <= set(facts):
        raise MismatchError(
            "The measurements are of other facts than each other or than the task: measure the "
            "unedited model and the edit anew."
        )
    rows = (row for row in facts if row in models[0])
    return tuple(Answered(facts[row], *(found[row] for found in models)) for row in rows)
