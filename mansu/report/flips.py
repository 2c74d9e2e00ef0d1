"""The facts, one by one: which are right before an edit, after it, and after NF4."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mansu.job.runs import Run
from mansu.measure.answers import FLIPS, flip
from mansu.measure.answers import Flip as Kind

FINE: frozenset[Kind] = frozenset({"forgotten", "kept", "not known before"})
"""What an edit is to do to a fact, or cannot."""
FAILING = tuple(kind for kind in FLIPS if kind not in FINE)
"""What it is not to do, the worst first."""


@dataclass(frozen=True)
class Flip:
    """A row of the task under three models.

    Attributes:
        row: its line in the task file. split, group, prompt, answer: the fact's.
        base, full, nf4: whether the answer outscores its three distractors (a tie does not) before
            the edit, after it, and after it in NF4.
        kind: what became of it.
    """

    row: int
    split: str
    group: str
    prompt: str
    answer: str
    base: bool
    full: bool
    nf4: bool
    kind: Kind

    @property
    def path(self) -> str:
        """``right → wrong → right``."""
        return " → ".join("right" if x else "wrong" for x in (self.base, self.full, self.nf4))


def flips(run: Run, method: str) -> list[Flip]:
    """Every row that all three models were asked, in the task's order.

    Raises:
        NotMeasuredError: the edit was not measured in both formats.
        DamagedError, MismatchError: a file is damaged, or of another edit or task.
    """
    facts = {fact.row: fact for fact in run.task().facts}
    base = run.base(nf4=False)
    full, nf4 = (run.measurement(method, nf4=f) for f in (False, True))
    found = []
    for split, before in base.splits.items():
        if split not in full.splits or split not in nf4.splits:
            continue
        right = [
            dict(zip(s.rows, (s.correct == 1).tolist(), strict=True))
            for s in (before, full.splits[split], nf4.splits[split])
        ]
        for row in before.rows:
            if row not in right[1] or row not in right[2]:
                continue
            was, now, quantised = (r[row] for r in right)
            kind = flip(split, was, now, quantised)
            fact = facts[row]
            found.append(
                Flip(row, split, fact.group, fact.prompt, fact.answer, was, now, quantised, kind)
            )
    return sorted(found, key=lambda one: one.row)


def counts(found: Iterable[Flip]) -> dict[str, int]:
    """How many rows became what, the worst first."""
    kinds = [one.kind for one in found]
    return {kind: kinds.count(kind) for kind in FLIPS if kind in kinds}
