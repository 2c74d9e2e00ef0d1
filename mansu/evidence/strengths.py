"""An edit at parts of its strength: forgetting against permanence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mansu import quant
from mansu.measure.scores import Measurement, Scores, measure
from mansu.progress import OnStep, Step, silent
from mansu.quant.survival import at_centers
from mansu.show.numbers import amount, percent, written
from mansu.show.table import Shown, Table
from mansu.subjects.edit import Edit
from mansu.subjects.subject import Subject
from mansu.tasks.tokens import Examples

STRENGTHS = (0.33, 0.67)
"""Parts of an edit that are measured beside the whole of it."""

PERMANENCE = "Permanence among all words, nats"
"""What ``Point.permanence`` is called; that among an answer's choices is ``compare.PERMANENCE``."""


@dataclass(frozen=True)
class Point:
    """What a part of an edit does.

    Attributes:
        strength: which part, 0 to 1.
        forgetting: fall of forget accuracy in full precision.
        permanence: the answers' mean log-probability in full precision minus in NF4, nats.
        retain_fall: of retain accuracy, the larger of full precision's and NF4's, each against the
            unedited model in the same format.
        forget, forget_nf4: forget accuracy.
    """

    strength: float
    forgetting: float
    permanence: float
    retain_fall: float
    forget: float
    forget_nf4: float


@dataclass(frozen=True, repr=False)
class Strengths(Shown):
    """An edit's points, the whole of it last.

    Attributes:
        thinned: its parts are random moves of it; else they are scaled.
    """

    thinned: bool
    points: tuple[Point, ...]

    def table(self) -> Table:
        """A row a part: what is forgotten, whether it stays so in NF4, what is kept."""
        rows = [
            (
                percent(p.strength, 0),
                percent(p.forget),
                percent(p.forget_nf4),
                written(p.permanence, "+.2f"),
                amount(p.retain_fall, "share"),
            )
            for p in self.points
        ]
        head = ("Strength", "Forget", "Forget in NF4", PERMANENCE, "Retain fell")
        caption = f"at {len(rows)} strengths, {'thinned' if self.thinned else 'scaled'}"
        return Table(head, rows, caption)

    def to_json(self) -> dict[str, Any]:
        return {"thinned": self.thinned, "points": [asdict(point) for point in self.points]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Strengths:
        return cls(value["thinned"], tuple(Point(**point) for point in value["points"]))


def strengths(
    subject: Subject,
    edit: Edit,
    rows: Mapping[str, Examples],
    *,
    before: tuple[Measurement, Measurement],
    after: tuple[Measurement, Measurement],
    nf4: quant.Dequantized | None = None,
    seed: int = 0,
    on_step: OnStep = silent,
) -> Strengths:
    """Measure an edit at ``STRENGTHS`` of its strength.

    An edit is scaled. One with the magnitude floor is thinned instead, however many weights it
    moves: they sit at the centres of NF4 codes, and scaled they would not.

    Args:
        rows: the forget and the retain set.
        before, after: the unedited and the edited model, each in full precision and in NF4.
        nf4: the unedited weights in NF4, where they are at hand (as ``quantized`` takes them).

    Raises:
        MismatchError: ``before`` or ``after`` was measured on other rows.
    """
    thin = at_centers(subject, edit)
    base = before[0].splits, before[1].splits
    points = []
    for i, strength in enumerate(STRENGTHS):
        on_step(Step("strengths", i, len(STRENGTHS), part=f"{strength:.0%} of the edit"))
        part = edit.thinned(strength, seed) if thin else edit.scaled(subject, strength)
        with part.applied(subject):
            full = {split: measure(subject, r) for split, r in rows.items()}
            with quant.quantized(subject, nf4):
                quantised = {split: measure(subject, r) for split, r in rows.items()}
        points.append(_point(strength, base, (full, quantised)))
    points.append(_point(1.0, base, (after[0].splits, after[1].splits)))
    return Strengths(thin, tuple(points))


Both = tuple[Mapping[str, Scores], Mapping[str, Scores]]  # in full precision and in NF4


def _point(strength: float, before: Both, after: Both) -> Point:
    for one, other in zip(before, after, strict=True):
        for split in ("forget", "retain"):
            one[split].refuse_other(other[split])
    nats = [float(m["forget"].log_probability.mean()) for m in after]
    falls = (
        b["retain"].accuracy - a["retain"].accuracy for b, a in zip(before, after, strict=True)
    )
    return Point(
        strength=strength,
        forgetting=before[0]["forget"].accuracy - after[0]["forget"].accuracy,
        permanence=nats[0] - nats[1],
        retain_fall=max(falls),
        forget=after[0]["forget"].accuracy,
        forget_nf4=after[1]["forget"].accuracy,
    )
