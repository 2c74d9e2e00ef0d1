"""Sentences whose numbers are the record's: what stands in braces is looked up in it.

A template of ``experiments/texts`` names task, method and figure, and how to write it::

    {capitals[mansu][nf4 paraphrase]:0} %      # 53 %
    {gemma-symbols[ga][share gap, rephrasings]:1i} points      # 11.1 [5.3, 17.0] points
    {languages[back]}      # GA +0.048 [+0.002, +0.105] nats (forget rows): see ``back``
    {capitals[circuit][mass]:0} %      # 31 % of its attribution is in the mask

so that a text cannot say what is no longer measured. What a record of its own does not hold (a
control, something tried and left) is written out in the template, with where it is from.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.claims import BASELINES
from experiments.figures import Figures, checks_of
from mansu.evidence.verdict import Check, kept_loss
from mansu.methods import named
from mansu.show.numbers import measured, written
from mansu.show.sentences import enumerated

WIDTH = 104
UNBROKEN = re.compile(r" (?=%|\d+\. )")
"""Spaces that no line ends at: before a percent sign, and where the next would begin a list."""

SPEC = re.compile(r"(?P<sign>[+-]?)(?P<digits>\d)(?P<interval>i?)")


@dataclass(frozen=True)
class Figure:
    """A value and its interval, as a template writes it.

    The format is how many digits, before them ``+`` for a sign or ``-`` for the value the other
    way round (by how much less), after them ``i`` for the interval. Shares are in percent (points).

    Use: ``f"{Figure((0.5, 0.4, 0.6), 'share'):0i}"`` is ``50 [40, 60]``.

    Attributes:
        value: with the two bounds of its interval. unit: as a check of the verdict has it.
    """

    value: Sequence[float]
    unit: str

    def __format__(self, spec: str) -> str:
        found = SPEC.fullmatch(spec)
        if found is None:
            raise ValueError(f"A figure is written as 1, +1, -1 or 1i, not as {spec!r}.")
        factor = (100 if self.unit == "share" else 1) * (-1 if found["sign"] == "-" else 1)
        form = f"{found['sign'].replace('-', '')}.{found['digits']}f"
        middle, *bounds = (factor * v for v in self.value)
        if not found["interval"]:
            return written(middle, form)
        low, high = (written(bound, form) for bound in sorted(bounds))
        return f"{written(middle, form)} [{low}, {high}]"


def by_name(figures: Figures) -> dict[str, Figure | str]:
    """What a method did on a task, by the names that templates use.

    ``full forget``, ``nf4 paraphrase`` … (accuracies, also of ``keep`` groups), ``attack
    relearning`` …, ``status gap`` …, ``passed`` (the properties that are, in words), a check of the
    verdict after its unit (``share gap, rephrasings``), what it is held against (``limit share gap,
    rephrasings``), ``worst`` (nats that the kept group loses that loses most, in the worse of full
    precision and NF4), ``CAD signal`` (in full precision), ``bound restricted`` and ``bound
    measured`` (Theorem 1's, nats).
    """
    found: dict[str, Figure | str] = {}
    for part, before in (("full", "full"), ("nf4", "nf4"), ("attacks", "attack")):
        for name, value in (figures.get(part) or {}).items():
            found[f"{before} {name}"] = Figure(value, "share")
    for name, status in figures.get("status", {}).items():
        found[f"status {name}"] = status
    fine = [name for name, status in figures.get("status", {}).items() if status == "passed"]
    found["passed"] = enumerated(fine) or "none"
    for name, nats in (figures.get("bound") or {}).items():
        if name in ("restricted", "measured"):
            found[f"bound {name}"] = Figure([nats] * 3, "nats")
    if "cad" in figures:
        found["CAD signal"] = Figure(figures["cad"]["signal"], "CAD")
    checks = figures.get("checks", {})
    for check in (each for asked in checks.values() for each in asked):
        name, unit = f"{check['unit']} {check['what']}", check["unit"]
        found[name] = Figure(check["value"], unit)
        found[f"limit {name}"] = Figure([check["threshold"]] * 3, unit)
    if lost := kept_loss(checks_of(figures, "retention")):
        found["worst"] = Figure(lost.to_json(), "nats")
    return found


def back(run: Mapping[str, Any]) -> str:
    """What NF4 brings back of the baselines' edits of a task, as a list in words; "nothing".

    Of each edit that forgot anything the largest recovery whose whole interval is above zero, in
    points where there is one, else in nats.
    """
    found: list[tuple[str, Check]] = []
    for name, figures in run["methods"].items():
        if name in BASELINES and figures["status"]["gap"] != "vacuous":
            above = [c for c in checks_of(figures, "gap") if c.value.above(0)]
            most = max(above, key=_size, default=None)
            found += [(named(name).title, most)] if most else []
    found.sort(key=lambda each: _size(each[1]), reverse=True)
    told = (f"{name} {measured(c.value, c.unit)} ({c.what.split(', ')[-1]})" for name, c in found)
    return ", ".join(told) or "nothing"


def _size(check: Check) -> tuple[bool, float]:
    return check.unit == "share", check.value.value


def filled(template: str, found: Mapping[str, Any]) -> str:
    """A template with its numbers, its sentences in lines of like length.

    Args:
        found: the record (``figures.results``).

    Raises:
        KeyError: it names a task, a method or a figure that the record does not hold.
    """
    tasks = {
        run["task"]["name"]: {
            **{name: by_name(m) for name, m in run["methods"].items()},
            "back": back(run),
            "circuit": {
                name: Figure([value] * 3, "share")
                for name, value in run["circuit"].items()
                if name in ("mask", "mass", "whole mask")
            },
        }
        for run in found["runs"]
    }
    return "\n\n".join(_wrapped(b.format_map(tasks)) for b in template.strip().split("\n\n"))


def _wrapped(block: str) -> str:
    """A paragraph or a list in Markdown, its lines filled; anything else as it is."""
    if block.startswith(("#", "|", "`", "<")):
        return block
    items = re.split(r"\n(?=- )", block)
    return "\n".join(
        textwrap.fill(
            UNBROKEN.sub("\u00a0", " ".join(item.split())),
            WIDTH,
            subsequent_indent="  " if item.startswith("- ") else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for item in items
    )
