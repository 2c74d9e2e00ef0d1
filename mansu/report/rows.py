"""Tables of several values side by side; what one value says of itself is its ``table()``.

::

    print(accuracies({"unedited": base, "this edit": full}))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mansu.evidence.attacks import ATTACKS, Attacks
from mansu.evidence.bounds import Bounds
from mansu.evidence.by_format import InFormat
from mansu.evidence.cad import Divergences
from mansu.evidence.verdict import ABOUT, Property, Verdict
from mansu.measure.answers import ASKED
from mansu.measure.scores import Measurement
from mansu.quant import HQQ
from mansu.quant.survival import Kept, Survival, floor_across
from mansu.show import numbers
from mansu.show.numbers import NOTHING, between, many, number, percent
from mansu.show.sentences import capitalised
from mansu.show.table import Table
from mansu.statistics import Interval


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
    """A row a property, a column an edit: status and value; how many have each together."""
    rows = []
    for name, title in ABOUT.items():
        found = (getattr(verdict, name) for verdict in judged.values())
        rows.append((title, *(f"{p.status} {p.worst or NOTHING}" for p in found)))
    together = ("Together", *(f"{v.status} ({v.counts})" for v in judged.values()))
    return Table(("Property", *judged), [*rows, together], caption, "<" * (1 + len(judged)))


def checks(found: Property, caption: str = "") -> Table:
    """A row for each thing that a property asks."""
    lines = [
        (f"{numbers.mark(c.status)} {c.status}", c.what, numbers.measured(c.value, c.unit), c.limit)
        for c in found.checks
    ]
    return Table(("Status", "What", "Value [95 %]", "Threshold"), lines, caption, "<<>>")


def recovery(base: Attacks, edited: Attacks, name: str, caption: str = "") -> Table:
    """A row an attack: accuracy of both models, and what it brings back of the edited one's.

    What is asked of is noted: without an attack it is not the accuracy on all forget rows.
    """
    rows = [
        (
            attack,
            _under(base, attack),
            _under(edited, attack),
            numbers.measured(edited.recovered(attack), "share"),
        )
        for attack in under(base, edited)
    ]
    notes = [attacked_rows(len(edited.scores["none"].rows))]
    notes += _cut_short({"the unedited model": base, "the edited model": edited})
    return Table(("Attack", "Unedited", name, "Recovered"), rows, caption, notes=notes)


def under(*models: Attacks) -> list[str]:
    """The attacks that some model has an accuracy under, in order."""
    return [attack for attack in ATTACKS if any(attack in found.scores for found in models)]


def _cut_short(models: Mapping[str, Attacks]) -> list[str]:
    return [cut for of, found in models.items() if (cut := found.cut_short(of))]


def attacked_rows(n: int | None) -> str:
    """Which rows the accuracies under attacks are of, a sentence.

    Args:
        n: how many; None where that was not kept.
    """
    which = "" if n is None else f": {many(n, 'row')}"
    return (
        f"Asked of the half that the attacker does not know{which}; so without an attack, too, it "
        "is not the accuracy on all forget rows. Paraphrases are of all facts."
    )


def attacked(models: Mapping[str, Attacks], titles: Mapping[str, str], caption: str = "") -> Table:
    """A row an attack, a column a model: its accuracy with the interval.

    Args:
        titles: attack → its title, in order.
    """
    rows = [
        (title, *(_under(found, attack) for found in models.values()))
        for attack, title in titles.items()
    ]
    asked = {len(found.scores["none"].rows) for found in models.values()}
    notes = [attacked_rows(asked.pop() if len(asked) == 1 else None), *_cut_short(models)]
    return Table(("Attack", *models), rows, caption, notes=notes)


def _under(found: Attacks, attack: str) -> str:
    return between(found.accuracy(attack)) if attack in found.scores else NOTHING


def boundary(edits: Mapping[str, Survival], exponent: float, caption: str = "") -> Table:
    """A row an edit: the share of its moved weights beyond a boundary of update ÷ bin width.

    Args:
        exponent: the boundary, log10.
    """
    rows = [
        (
            name,
            f"{s.moved:,}",
            number(s.update_over_width),
            percent(s.share_above(exponent), 2),
            percent(s.share, 2),
        )
        for name, s in edits.items()
    ]
    head = ("Edit", "Weights moved", "Median update ÷ bin", f"Above {10**exponent:.3g}")
    return Table((*head, "Codes that change in NF4"), rows, caption)


def divergences(edits: Mapping[str, Divergences], titles: Mapping[str, str]) -> Table:
    """A row a number of CAD and its controls, a column an edit.

    Args:
        titles: field of ``Divergences`` → what it is called, in order.
    """
    found = {title: [getattr(d, field) for d in edits.values()] for field, title in titles.items()}
    lines = [
        (title, *(_divergence(v) for v in values))
        for title, values in found.items()
        if any(v is not None for v in values)
    ]
    return Table(("What", *edits), lines)


def _divergence(value: Interval | float | None) -> str:
    return numbers.measured(value, "CAD") if isinstance(value, Interval) else number(value)


def formats(kept: Mapping[str, Kept], caption: str = "") -> Table:
    """A row a format: how many moved weights change their code."""
    rows = [
        (name, percent(k.share, 2), f"{k.moved - k.changed:,}", f"{k.rescaled:,}")
        for name, k in kept.items()
    ]
    head = ("Format", "Codes that change", "Moved weights that keep their code", "Blocks rescaled")
    return Table(head, rows, caption, notes=[floor_across(kept)] if kept else [])


def gaps(found: Mapping[str, tuple[InFormat, Property]], caption: str = "") -> Table:
    """A row a format: what the edited model brings back in it, and how many codes change."""
    lines, limits = [], {}
    for name, (each, p) in found.items():
        accuracies = (each.measured.splits.get(split) for split in ASKED)
        worst = p.worst
        decided = "" if worst is None else numbers.measured(worst.value, worst.unit)
        line = (
            name,
            f"{numbers.mark(p.status)} {p.status}",
            NOTHING if worst is None else f"{worst.what} {decided}",
            *(NOTHING if s is None else percent(s.accuracy) for s in accuracies),
            NOTHING if each.kept is None else percent(each.kept.share, 2),
        )
        lines.append(line)
        limits |= {check.limit: None for check in p.checks}
    asked = [capitalised(title) for title in ASKED.values()]
    head = ("Format", "PTQ gap", "Decided by [95 %]", *asked, "Codes that change")
    notes = [
        "Each format is held against full precision; the verdict's own is the first. A gap passes "
        f"at {' and '.join(limits)}."
    ]
    if str(HQQ) not in found:
        notes.append("HQQ was not measured: it needs the package hqq (pip install 'mansu[hqq]').")
    return Table(head, lines, caption, "<<<>>>", notes)


def bounds(found: Bounds, caption: str = "") -> Table:
    """Theorem 1's bounds on the retain loss beside what was measured."""
    rows = [
        ("bound over what MANSU may move", number(found.restricted)),
        ("bound over all weights", number(found.everywhere)),
        ("bound for an even spread", number(found.spread)),
        (
            f"measured ({many(found.facts, 'fact')}, {many(found.texts, 'text')})",
            numbers.written(found.measured, "+.3g"),
        ),
    ]
    more = exceeded(found)
    return Table(("Retain loss", "Nats"), rows, caption, notes=[more] if more else [])


def exceeded(found: Bounds) -> str:
    """What is to be known where more is lost than the bound of the edit says; else ""."""
    if found.measured <= found.everywhere:
        return ""
    bound = found.everywhere
    times = f" ({number(found.measured / bound)} times as much)" if bound else ""
    return (
        f"The bound does not hold here: more than it was lost{times}. It is a second-order "
        "estimate from the Fisher information's diagonal alone; the rest comes of what that leaves "
        "out."
    )


def settings(values: Mapping[str, Any], caption: str = "") -> Table:
    """Settings by name; None is said as what it means, that the work chooses."""
    rows = [(n.replace("_", " "), "automatic" if v is None else str(v)) for n, v in values.items()]
    return Table(("Setting", "Value"), rows, caption, "<<")
