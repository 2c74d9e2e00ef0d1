"""What a step of the lesson is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlencode

from app.lesson.bench import Bench
from app.lesson.tally import Said
from mansu.job.runs import Run

Answer = tuple[float | str, ...]
"""A prediction, with the choices that it was made for."""


class Outcome(NamedTuple):
    """A prediction beside what was measured, in words.

    Attributes:
        said, truth: both, as a student reads them.
        difference: how far they are apart.
        lesson: the sentence to take away.
        caught: a common mistake that the prediction shows; empty where it shows none.
    """

    said: str
    truth: str
    difference: str
    lesson: str
    caught: str = ""


class Link(NamedTuple):
    """A place in the workbench where the same thing is seen.

    Attributes:
        page: its name in the address. label: of the button.
        edits: that a run must have for it, and that are chosen there.
    """

    page: str
    label: str
    edits: tuple[str, ...] = ()

    def address(self, run: Run) -> str:
        """The page with the run and the edits chosen, by the names that it has them under."""
        chosen = {
            "nf4": {"edit": self.edits[:1]},
            "compare": {"edits": [f"{run.name}/{method}" for method in self.edits]},
        }
        query = {"run": run.name, **chosen.get(self.page, {})}
        return f"{self.page}?{urlencode(query, doseq=True)}"


@dataclass(frozen=True)
class Step:
    """One screen of the lesson.

    Attributes:
        key: in the address and the tally. title: in a few words. question: one sentence.
        story: what has to be known first.
        minutes: it takes in a class.
        ask: what a teacher asks before the reveal. notes: for the teacher.
        predict: draws what there is to drag or choose; gives the prediction once it is made.
        reveal: draws what was measured over the prediction.
        outcome: the same in words. It computes, and draws nothing.
        accepts: whether an answer (out of an address) is one of this step's.
        said: what of an answer the class's tally counts.
        link: where the workbench shows the same.
        real: the same of a run of a larger model, a sentence.
        counted: what the numbers of the class's tally are, where ``said`` gives numbers.
        signed: whether they are differences from what was measured, so that zero is marked.
    """

    key: str
    title: str
    question: str
    story: str
    minutes: float
    ask: str
    notes: str
    predict: Callable[[Bench], Answer | None]
    reveal: Callable[[Bench, Answer], None]
    outcome: Callable[[Bench, Answer], Outcome]
    accepts: Callable[[Answer], bool]
    said: Callable[[Bench, Answer], Said]
    link: Link
    real: Callable[[Run], str] | None = None
    counted: str = ""
    signed: bool = False


def between(answer: Answer, *ends: tuple[float, float]) -> bool:
    """Whether an answer is as many numbers, each within its two ends."""
    return len(answer) == len(ends) and all(
        isinstance(value, float) and low <= value <= high
        for value, (low, high) in zip(answer, ends, strict=True)
    )


def apart(said: float, truth: float, unit: str, digits: int = 0, way: str = "high low") -> str:
    """How far a prediction is from what was measured, and to which side.

    Args:
        unit: what both count. way: words for too much of it and too little.
    """
    far, (more, less) = abs(said - truth), way.split()
    if round(far, digits) == 0:
        return "exactly"
    return f"{far:.{digits}f} {unit} too {more if said > truth else less}".replace("  ", " ")


def first(answer: Answer) -> float:
    """The number that an answer begins with."""
    return float(answer[0])
