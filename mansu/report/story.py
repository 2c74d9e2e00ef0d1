"""What a run says of unlearning under 4-bit storage, in sentences for whoever reads it first.

Every number is the run's own; a sentence says what was measured, whatever that is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mansu.job import names
from mansu.job.runs import Run
from mansu.measure.answers import Answered, answered
from mansu.measure.scores import Measurement
from mansu.show.numbers import percent
from mansu.statistics import Interval

MOST = 0.5
"""Of fewer moves left than this share, most are lost."""
BARELY = 0.02
"""A change of accuracy by less than this share of the facts is hardly one."""


@dataclass(frozen=True)
class Asked:
    """What became of the facts to forget, as they were asked for.

    Attributes:
        before, full, nf4: accuracy on them: unedited, edited, edited in 4 bits.
        back: answers that the edit forgot and that are right again in 4 bits. forgot: those it
            forgot.
    """

    before: Interval
    full: Interval
    nf4: Interval
    back: int
    forgot: int

    @property
    def returns(self) -> bool:
        """Whether more of them are right in 4 bits than in full precision."""
        return self.nf4.value - self.full.value > BARELY


@dataclass(frozen=True)
class Chapter:
    """One edit's part of the story.

    Attributes:
        method: the edit's name. title: as it is written.
        moved: weights that it moves and that are stored in 4 bits; left: those whose code changes.
        rows: the forget rows. rephrasings: the same facts in other words; None where the task has
            none.
    """

    method: str
    title: str
    moved: int
    left: int
    rows: Asked
    rephrasings: Asked | None

    @property
    def named(self) -> str:
        """Its title within a sentence, whose commas are not the title's."""
        return f"“{self.title}”" if "," in self.title else self.title

    @property
    def share_left(self) -> float:
        """Of the moves, what 4 bits keep; 1 where nothing was moved that is rounded."""
        return self.left / self.moved if self.moved else 1.0

    @property
    def moves(self) -> str:
        """What 4 bits leave of its moves."""
        left = "all of them" if self.left == self.moved else percent(self.share_left)
        return f"{self.named} moved {self.moved:,} weights, and 4 bits keep {left}"

    @property
    def answers(self) -> str:
        """What became of the facts to forget."""
        rows, others = self.rows, self.rephrasings
        told = (
            f"{self.title}: right answers fell from {percent(rows.before.value)} to "
            f"{percent(rows.full.value)}, and are at {percent(rows.nf4.value)} in 4 bits "
            f"({rows.back} of {rows.forgot} forgotten came back)"
        )
        if others is None:
            return told
        return (
            f"{told}; to rephrased questions they are at {percent(others.full.value)}, and at "
            f"{percent(others.nf4.value)} in 4 bits ({others.back} of {others.forgot})"
        )

    @property
    def returns(self) -> bool:
        """Whether answers return in 4 bits, to the questions that were trained on or to others."""
        return self.rows.returns or (self.rephrasings is not None and self.rephrasings.returns)


def chapters(run: Run) -> list[Chapter]:
    """A chapter for each judged edit, in the order that the run has them.

    Raises:
        MansuError: something of the run was not measured, or is damaged.
    """
    task, base = run.task(), run.base(nf4=False)
    found = []
    for method in run.judged():
        models = base, run.measurement(method, nf4=False), run.measurement(method, nf4=True)
        survival = run.survival(method).quantized
        facts = answered(task, *models)
        found.append(
            Chapter(
                method,
                names.title(run, method),
                survival.moved,
                survival.changed,
                _asked("forget", models, facts),
                _asked("paraphrase", models, facts) if "paraphrase" in base.splits else None,
            )
        )
    return found


def _asked(split: str, models: Iterable[Measurement], facts: Iterable[Answered]) -> Asked:
    flips = [a.flip for a in facts if a.fact.split == split]
    back = flips.count("back in NF4")
    accuracies = (m.splits[split].interval for m in models)
    return Asked(*accuracies, back=back, forgot=back + flips.count("forgotten"))


def moral(told: list[Chapter]) -> str:
    """What the example teaches beyond its numbers: whether lost moves brought anything back."""
    lossy = [c for c in told if c.share_left < MOST]
    if not lossy:
        return "No edit lost most of its moves here."
    back = [c for c in lossy if c.returns]
    if back:
        names = " and ".join(c.named for c in back)
        where = "" if any(c.rows.returns for c in back) else ", to rephrased questions"
        return f"Most moves of {names} are lost, and forgotten answers return{where}."
    names = " and ".join(c.named for c in lossy)
    return (
        f"Most moves of {names} are lost, and yet hardly more answers are right in 4 bits: "
        "rounding keeps the average of many small moves. What was lost is the guarantee."
    )
