"""What a person writes onto a circuit: pins, groups, labels and notes, saved with the run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mansu.errors import BadInputError

LONGEST = 2000  # characters of a note; 60 of a label or a group's name
SHORT = 60


@dataclass(frozen=True)
class Marks:
    """Marks by the nodes' names.

    Attributes:
        pins: nodes to keep in sight, and those whose own faithfulness can be asked for.
        groups: name → nodes that are drawn as one, their edges summed; no node is in two.
        labels: node → what a person calls it. notes: node → what there is to say of it.
    """

    pins: tuple[str, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def check(self, nodes: Collection[str]) -> None:
        """Refuse marks on what the circuit's graph does not have, or too long to be read.

        Raises:
            BadInputError: which one.
        """
        grouped = [name for members in self.groups.values() for name in members]
        named = [*self.pins, *grouped, *self.labels, *self.notes]
        if unknown := next((name for name in named if name not in nodes), None):
            raise BadInputError(f"There is no node {unknown!r:.80} to mark in this circuit.")
        if len(set(grouped)) < len(grouped) or len(set(self.pins)) < len(self.pins):
            raise BadInputError("A node is marked twice: put it into one group, and pin it once.")
        texts = [(SHORT, "name", x) for x in [*self.groups, *self.labels.values()]]
        texts += [(LONGEST, "note", x) for x in self.notes.values()]
        for most, what, text in texts:
            if not text.strip() or len(text) > most:
                raise BadInputError(
                    f"A {what} has 1 to {most:,} characters, not {len(text):,}: change it."
                )

    def to_json(self) -> dict[str, Any]:
        return {
            "pins": list(self.pins),
            "groups": {name: list(members) for name, members in self.groups.items()},
            "labels": dict(self.labels),
            "notes": dict(self.notes),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Marks:
        groups = {name: tuple(members) for name, members in value["groups"].items()}
        return cls(tuple(value["pins"]), groups, dict(value["labels"]), dict(value["notes"]))
