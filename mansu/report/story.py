"""What a run says of unlearning under 4-bit storage, in sentences for whoever reads it first.

Every number is the run's own; a sentence says what was measured, whatever that is.
"""

from __future__ import annotations

from dataclasses import dataclass

from mansu.job import names
from mansu.job.runs import Run
from mansu.measure.answers import answered
from mansu.measure.statistics import Interval
from mansu.show.numbers import percent

MOST = 0.5
"""Of fewer moves left than this share, most are lost."""
BARELY = 0.02
"""A change of accuracy by less than this share of the facts is hardly one."""


@dataclass(frozen=True)
class Chapter:
    """One edit's part of the story.

    Attributes:
        method: the edit's name. title: as it is written.
        moved: weights that it moves and that are stored in 4 bits; left: those whose code changes.
        before, full, nf4: accuracy on the facts to forget: unedited, edited, edited in 4 bits.
        back: answers that it forgot and that are right again in 4 bits. forgot: those it forgot.
    """

    method: str
    title: str
    moved: int
    left: int
    before: Interval
    full: Interval
    nf4: Interval
    back: int
    forgot: int

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
        return (
            f"{self.title}: right answers fell from {percent(self.before.value)} to "
            f"{percent(self.full.value)}, and are at {percent(self.nf4.value)} in 4 bits; "
            f"{self.back} of {self.forgot} forgotten answers came back"
        )


def chapters(run: Run) -> list[Chapter]:
    """A chapter for each judged edit, in the order that the run has them.

    Raises:
        MansuError: something of the run was not measured, or is damaged.
    """
    task, base = run.task(), run.base(nf4=False)
    found = []
    for method in run.judged():
        full, nf4 = run.measurement(method, nf4=False), run.measurement(method, nf4=True)
        survival = run.survival(method).quantized
        facts = [a for a in answered(task, base, full, nf4) if a.fact.split == "forget"]
        flips = [a.flip for a in facts]
        found.append(
            Chapter(
                method,
                names.title(run, method),
                survival.moved,
                survival.changed,
                *(m.splits["forget"].interval for m in (base, full, nf4)),
                back=flips.count("back in NF4"),
                forgot=flips.count("back in NF4") + flips.count("forgotten"),
            )
        )
    return found


def moral(told: list[Chapter]) -> str:
    """What the example teaches beyond its numbers: whether lost moves brought anything back."""
    lossy = [c for c in told if c.share_left < MOST]
    if not lossy:
        return "No edit lost most of its moves here."
    back = [c for c in lossy if c.nf4.value - c.full.value > BARELY]
    if back:
        names = " and ".join(c.named for c in back)
        return f"Most moves of {names} are lost, and forgotten answers return with them."
    names = " and ".join(c.named for c in lossy)
    return (
        f"Most moves of {names} are lost, and yet hardly an answer returns: rounding keeps the "
        "average of many small moves. What was lost is the guarantee."
    )
