"""What a person who signs says of a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any, Literal, get_args

from mansu.errors import BadInputError
from mansu.evidence.verdict import ABOUT, STATUSES, Status

Decision = Literal["accepted", "accepted with reservations", "rejected"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
LONGEST_NAME, LONGEST_NOTE = 200, 5000
"""Characters."""


@dataclass(frozen=True)
class Review:
    """A reviewer's decision on an edit.

    Attributes:
        decision: what was decided. name: who decided. date: when, ISO 8601.
        seen: the verdict together that it was decided on.
        notes: property → what the reviewer says of it; those without a note are left out.
        thresholds: those that were not the original ones then, by name.
        statuses: property → its status then. files: sha256 of the measurements that it rested on,
            by the file's name. None in a review of an earlier MANSU, which kept neither.

    Raises:
        BadInputError: there is no such decision, date or property, no name, or a text too long.
    """

    decision: Decision
    name: str
    date: str
    seen: Status
    notes: Mapping[str, str] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    statuses: Mapping[str, Status] | None = None
    files: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.decision not in DECISIONS:
            raise BadInputError(f"{self.decision!r} is no decision: give {', '.join(DECISIONS)}.")
        if not self.name.strip() or len(self.name) > LONGEST_NAME:
            raise BadInputError(f"A review needs a name of at most {LONGEST_NAME} characters.")
        if not self.name.isprintable():  # nothing that hides, or turns around what is beside it
            raise BadInputError(
                f"The reviewer's name {self.name!r:.80} has a character that is not printed: write "
                "it in one line."
            )
        try:
            date.fromisoformat(self.date)
        except ValueError as error:
            raise BadInputError(f"{self.date!r:.40} is no date: write it as 2026-11-26.") from error
        if self.seen not in STATUSES:
            raise BadInputError(f"{self.seen!r:.40} is no status of a verdict.")
        if self.statuses is not None and not (
            self.statuses.keys() == ABOUT.keys() and {*self.statuses.values()} <= {*STATUSES}
        ):
            raise BadInputError(f"A review's statuses must be of {', '.join(ABOUT)}, one of each.")
        for name, note in self.notes.items():
            if name not in ABOUT:
                raise BadInputError(f"{name!r:.40} is no property: give {', '.join(ABOUT)}.")
            if len(note) > LONGEST_NOTE:
                raise BadInputError(
                    f"The note on {name} is too long: write at most {LONGEST_NOTE:,} characters."
                )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Review:
        """Read what ``to_json`` made; raises TypeError or BadInputError."""
        return cls(**value)
