"""Tables of several values side by side; what one value says of itself is its ``table()``.

::

    print(accuracies({"unedited": base, "this edit": full}))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mansu.evidence.attacks import Attacks
from mansu.evidence.bounds import Bounds
from mansu.evidence.verdict import ABOUT, Property, Verdict
from mansu.measure.scores import Measurement
from mansu.quant.survival import Kept, floor_across
from mansu.show import numbers
from mansu.show.numbers import NOTHING, between, number, percent
from mansu.show.table import Table


def accuracies(measured: Mapping[str, Measurement], caption: str = "") -> Table:
    """A row a set, a column a model: 4-way accuracy."""
    sets = {name: measurement.sets() for name, measurement in measured.items()}
    rows = []
    for title in dict.fromkeys(title for found in sets.values() for title in found):
        scores = [found.get(title) for found in sets.values()]
        n = next(str(len(s.rows)) for s in scores if s is not None)
        rows.append((title, n, *(NOTHING if s is None else percent(s.accuracy) for s in scores)))
    return Table(("Set", "Rows", *sets), rows, caption)


def verdicts(judged: Mapping[str, Verdict], caption: str = "") -> Table:
    """A row a property, a column an edit: status and value."""
    rows = []
    for name, title in ABOUT.items():
        found = (getattr(verdict, name) for verdict in judged.values())
        rows.append((title, *(f"{p.status} {p.worst or NOTHING}" for p in found)))
    together = ("Together", *(verdict.status for verdict in judged.values()))
    return Table(("Property", *judged), [*rows, together], caption, "<" * (1 + len(judged)))


def checks(found: Property, caption: str = "") -> Table:
    """A row for each thing that a property asks."""
    lines = [
        (numbers.mark(c.status), c.what, numbers.measured(c.value, c.unit), c.limit)
        for c in found.checks
    ]
    return Table(("", "What", "Value [95 %]", "Threshold"), lines, caption, "<<>>")


def recovery(base: Attacks, edited: Attacks, name: str, caption: str = "") -> Table:
    """A row an attack: accuracy of both models, and what it brings back of the edited one's."""
    rows = [
        (
            attack,
            _under(base, attack),
            _under(edited, attack),
            numbers.measured(edited.recovered(attack), "share"),
        )
        for attack in edited.scores
    ]
    return Table(("Attack", "Unedited", name, "Recovered"), rows, caption)


def attacked(models: Mapping[str, Attacks], titles: Mapping[str, str], caption: str = "") -> Table:
    """A row a model, a column an attack.

    Args:
        titles: attack → its title, in order.
    """
    rows = [(name, *(_under(found, attack) for attack in titles)) for name, found in models.items()]
    return Table(("Model", *titles.values()), rows, caption)


def _under(found: Attacks, attack: str) -> str:
    return between(found.accuracy(attack)) if attack in found.scores else NOTHING


def formats(kept: Mapping[str, Kept], caption: str = "") -> Table:
    """A row a format: how many moved weights change their code."""
    rows = [
        (name, percent(k.share, 2), f"{k.moved - k.changed:,}", f"{k.rescaled:,}")
        for name, k in kept.items()
    ]
    head = ("Format", "Codes that change", "Moved weights that keep their code", "Blocks rescaled")
    return Table(head, rows, caption, notes=[floor_across(kept)] if kept else [])


def bounds(found: Bounds, caption: str = "") -> Table:
    """Theorem 1's bounds on the retain loss beside what was measured."""
    rows = [
        ("bound over the circuit", number(found.restricted)),
        ("bound over all weights", number(found.everywhere)),
        ("bound for an even spread", number(found.spread)),
        (f"measured ({found.facts} facts, {found.texts} texts)", f"{found.measured:+.3g}"),
    ]
    return Table(("Retain loss", "Nats"), rows, caption)


def settings(values: Mapping[str, Any], caption: str = "") -> Table:
    """Settings by name; None is said as what it means, that the work chooses."""
    rows = [(n.replace("_", " "), "automatic" if v is None else str(v)) for n, v in values.items()]
    return Table(("Setting", "Value"), rows, caption, "<<")
