"""Edits held against each other, row by row: what separates them, with paired intervals.

::

    sides = [Side("MANSU", run, "mansu"), Side("GradDiff", run, "graddiff")]
    found = compare(sides)
    print(*found.headline, sep="\n")
    print(found.differences_table())
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log

import numpy as np

from mansu.errors import MismatchError, NotMeasuredError
from mansu.evidence.relearning import Relearned
from mansu.evidence.verdict import (
    above_chance,
    asked,
    from_chance,
    kept_groups,
    towards_chance,
)
from mansu.job.runs import Run
from mansu.measure.scores import Measurement, Scores
from mansu.show import numbers
from mansu.show.numbers import NOTHING, Unit, number, percent
from mansu.show.table import Shown, Table
from mansu.statistics import CHANGE, SHARE, Interval, bootstrap
from mansu.tasks.facts import CHANCE


@dataclass(frozen=True)
class Side:
    """An edit under the name that it is shown by."""

    label: str
    run: Run
    method: str


@dataclass(frozen=True)
class Rows:
    """A value a row of the task.

    Attributes:
        rows: each one's line in the task file, its identity. values: ``[N]``.
        clusters: which rows ask for one fact, ``[N]``.
    """

    rows: np.ndarray
    values: np.ndarray
    clusters: np.ndarray

    @classmethod
    def of(cls, scores: Scores, values: np.ndarray) -> Rows:
        return cls(np.array(scores.rows, dtype=int), values.astype(float), scores.clusters)

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        # A line may be in two groups' scores no more than once: splits share no line.
        clusters = [f"{i} {c}" for i, part in enumerate(parts) for c in part.clusters]
        rows, values = ([getattr(p, name) for p in parts] for name in ("rows", "values"))
        return cls(np.concatenate(rows), np.concatenate(values), np.array(clusters))

    def paired(self, other: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Values of the rows that both have, ``[N, 2]``, other's second, and their clusters.

        Raises:
            MismatchError: one has a row twice, or they share none.
        """
        for one in (self, other):
            if len(np.unique(one.rows)) != len(one.rows):
                raise MismatchError(
                    "A measurement has a row of the task twice, so that it cannot be paired with "
                    "another: measure the edit anew (mansu quantize)."
                )
        _, mine, theirs = np.intersect1d(self.rows, other.rows, return_indices=True)
        if not len(mine):
            raise MismatchError("Two edits were asked for other rows: they cannot be compared.")
        return np.stack([self.values[mine], other.values[theirs]], 1), self.clusters[mine]


@dataclass(frozen=True)
class Quantity:
    """Something that is compared.

    Attributes:
        title: for people. unit: of values and differences; a plain share is in percent.
        read: the rows of an edit; raises ``NotMeasuredError``.
        lower, higher: how a difference in each direction is said, after its amount.
        good: which of the two is the better one; "neither" where none is.
        statistic: of the mean over rows, what is compared; the mean itself by default.
    """

    title: str
    unit: Unit
    read: Callable[[Run, str], Rows]
    lower: str
    higher: str
    good: str = "lower"
    statistic: Callable[[np.ndarray], np.ndarray] | None = None


def _full(run: Run, method: str) -> Measurement:
    return run.measurement(method, nf4=False)


def _split(measured: Measurement, split: str, what: str) -> Scores:
    if split not in measured.splits:
        raise NotMeasuredError(f"The task has no {what}.")
    return measured.splits[split]


def _asked(split: str, what: str, value: str) -> Callable[[Run, str], Rows]:
    def read(run: Run, method: str) -> Rows:
        scores = _split(_full(run, method), split, what)
        return Rows.of(scores, getattr(scores, value))

    return read


def _kept(nf4: bool) -> Callable[[Run, str], Rows]:
    """Log-probability of each kept answer, less than what it was before the edit."""

    def read(run: Run, method: str) -> Rows:
        before = kept_groups(run.base(nf4=nf4))
        after = kept_groups(run.measurement(method, nf4=nf4))
        parts = []
        for name, old in before.items():
            new = after.get(name)
            if new is None:
                raise NotMeasuredError(f"Accuracy on {name} was not measured after the edit.")
            old.refuse_other(new)
            parts.append(Rows.of(old, new.log_probability - old.log_probability))
        if not parts:
            raise NotMeasuredError("The task has nothing that is to be kept.")
        return Rows.joined(parts)

    return read


def _back_in_nf4(run: Run, method: str) -> Rows:
    """The answer's log-probability among its choices, from chance up: in NF4 minus full."""
    full, nf4 = (run.measurement(method, nf4=f).splits["forget"] for f in (False, True))
    full.refuse_other(nf4)
    a, b = (np.maximum(s.choice.astype(float), log(CHANCE)) for s in (nf4, full))
    return Rows.of(full, a - b)


def _relearned(run: Run, method: str) -> Rows:
    """The answer's probability among its choices, mean over the steps of relearning."""
    found: Relearned = run.read("relearned", method)
    if found.cut_short:
        raise NotMeasuredError(found.cut_short)
    curve = found.curve[1:]
    return Rows.of(curve[0], np.mean([np.exp(s.choice) for s in curve], axis=0))


QUANTITIES: Sequence[Quantity] = (
    Quantity(
        "Forget rows: accuracy, distance from chance",
        "share",
        _asked("forget", "forget rows", "correct"),
        "nearer to chance on the forget rows",
        "farther from chance on the forget rows",
        statistic=from_chance,
    ),
    Quantity(
        "Rephrasings: accuracy, distance from chance",
        "share",
        _asked("paraphrase", "rephrasings", "correct"),
        "nearer to chance on rephrasings",
        "farther from chance on rephrasings",
        statistic=from_chance,
    ),
    Quantity(
        "Forget rows: the four choices' KL from uniform",
        "nats",
        _asked("forget", "forget rows", "spread"),
        "nearer to an even choice among the four answers",
        "farther from an even choice among the four answers",
    ),
    Quantity(
        "Forget rows: log-probability of the answer",
        "nats",
        _asked("forget", "forget rows", "log_probability"),
        "less log-probability left to the forgotten answers",
        "more log-probability left to the forgotten answers",
        good="neither",  # an absurdly improbable answer is avoided, not forgotten
    ),
    Quantity(
        "Comes back in NF4: the answer among its choices, from chance up",
        "nats",
        _back_in_nf4,
        "less that comes back in NF4",
        "more that comes back in NF4",
    ),
    Quantity(
        "Kept: change of log-probability, all kept rows",
        "nats",
        _kept(False),
        "less left of the kept answers",
        "more left of the kept answers",
        good="higher",
    ),
    Quantity(
        "Kept in NF4: change of log-probability, all kept rows",
        "nats",
        _kept(True),
        "less left of the kept answers in NF4",
        "more left of the kept answers in NF4",
        good="higher",
    ),
    Quantity(
        "Relearned: probability of the half that was not trained on",
        "share",
        _relearned,
        "less that relearning brings back",
        "more that relearning brings back",
    ),
)


@dataclass(frozen=True)
class Difference:
    """One quantity of one edit minus that of the first.

    Attributes:
        value: paired over the rows that both have. rows: how many.
    """

    quantity: Quantity
    value: Interval
    rows: int

    @property
    def is_told(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.value.above(0) or self.value.below(0)

    @property
    def says(self) -> str:
        """better, worse, lower, higher, or not told apart."""
        if not self.is_told:
            return "not told apart"
        side = "lower" if self.value.value < 0 else "higher"
        good = self.quantity.good
        return side if good == "neither" else "better" if side == good else "worse"

    def __str__(self) -> str:
        v, unit = self.value, self.quantity.unit
        low = v.value < 0
        turned = -v if low else v
        phrase = self.quantity.lower if low else self.quantity.higher
        return f"{numbers.measured(turned, unit).lstrip('+')} {phrase}"


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Some edits beside each other.

    Attributes:
        sides: the first is the one that the others are held against.
        values: of each side, by the title of a quantity; absent where it was not measured.
        differences: of each side but the first; empty where it is about another subject or task.
    """

    sides: Sequence[Side]
    values: Sequence[Mapping[str, Interval]]
    differences: Sequence[Sequence[Difference]]

    @cached_property
    def headline(self) -> list[str]:
        """For each side but the first, what separates the two: better, worse, only different."""
        return list(self._sentences())

    def _sentences(self) -> Iterator[str]:
        first = self.sides[0]
        for side, found in zip(self.sides[1:], self.differences, strict=True):
            who = f"{side.label} against {first.label}"
            if not comparable(first.run, side.run):
                yield f"{who}. Another subject or task, so their numbers do not compare."
                continue
            if not found:
                yield f"{who}. Nothing was measured of both."
                continue
            parts = []
            for title, says in (
                ("Better", ("better",)),
                ("Worse", ("worse",)),
                ("Neither good nor bad", ("lower", "higher")),
            ):
                told = [str(d) for d in found if d.says in says]
                parts += [f"{title}: {'; '.join(told)}"] if told else []
            yield f"{who}. {'. '.join(parts) or 'Nothing that was measured tells them apart'}."

    def table(self) -> Table:
        """A row a quantity, a column an edit: its value."""
        labels = [side.label for side in self.sides]
        rows = [
            (q.title, *(numbers.measured(found.get(q.title), q.unit) for found in self.values))
            for q in QUANTITIES
            if any(q.title in found for found in self.values)
        ]
        return Table(("What", *labels), rows, "values with their 95 % intervals")

    def differences_table(self) -> Table:
        """A row a quantity, a column an edit but the first: its value minus the first's."""
        told = [{d.quantity.title: d for d in found} for found in self.differences]
        titles = [q.title for q in QUANTITIES if any(q.title in found for found in told)]
        rows = [(title, *(_said(found.get(title)) for found in told)) for title in titles]
        first = self.sides[0].label
        return Table(
            ("What", *(f"{side.label} − {first}" for side in self.sides[1:])),
            rows,
            "paired differences with their 95 % intervals",
            notes=[
                "Paired by row of the task, rephrasings of one fact together. Each interval holds "
                "by itself: of twenty comparisons of equal edits, chance tells about one apart."
            ],
        )


def _said(d: Difference | None) -> str:
    if d is None:
        return NOTHING
    return f"{numbers.measured(d.value, d.quantity.unit)}: {d.says}"


PERMANENCE = "Permanence among the choices, nats"
"""What ``Spot.permanence`` is called; that among all words is ``strengths.PERMANENCE``."""


@dataclass(frozen=True)
class Spot:
    """Where an edit lies between forgetting and permanence.

    Attributes:
        of: forget rows, or rephrasings.
        forgetting: fall of accuracy towards chance in full precision, a share.
        permanence: by how much the answer's log-probability among its choices, from chance up, is
            lower in NF4 than in full precision, nats; below 0 it comes back.
    """

    of: str
    forgetting: Interval
    permanence: Interval


def spots(side: Side) -> list[Spot]:
    """The whole edit on the forget rows and on rephrasings, from what was measured.

    Raises:
        NotMeasuredError: accuracy, or accuracy in NF4, was not measured.
    """
    run, method = side.run, side.method
    measured = (run.base(nf4=False), *(run.measurement(method, nf4=f) for f in (False, True)))
    found = []
    for _, title, (before, full, nf4) in asked(*measured):
        found.append(Spot(title, towards_chance(before, full), -above_chance(nf4, full)))
    return found


def sizes(sides: Sequence[Side]) -> Table:
    """A row a measure, a column an edit: how much it moved, and what that cost on plain text."""
    columns = {side.label: _sizes(side) for side in sides}
    names = dict.fromkeys(name for found in columns.values() for name in found)
    rows = [(n, *(found.get(n, NOTHING) for found in columns.values())) for n in names]
    return Table(("What", *columns), rows, "size of the edits")


def _sizes(side: Side) -> dict[str, str]:
    run, method, found = side.run, side.method, {}
    if run.has("history", method):
        history = run.history(method)
        found["Weights moved"] = f"{history['moved']:,} ({percent(history['fraction'])} of all)"
        found["Seconds to make it"] = number(history["seconds"])
    if run.has("survival", method):
        survival = run.survival(method).quantized
        found["Median update ÷ bin width"] = number(survival.update_over_width)
        found["Codes that change in NF4"] = percent(survival.share, 2)
    for title, base, kind in (
        ("Loss on text (unedited)", "base", "full"),
        ("Loss on text in NF4 (unedited)", "base_nf4", "nf4"),
    ):
        if run.has(base) and run.has(kind, method):
            before, after = run.read(base).text_loss, run.read(kind, method).text_loss
            found[title] = f"{number(after)} ({number(before)})"
    return found


def comparable(one: Run, other: Run) -> bool:
    """Whether two runs are about the same weights and the same facts."""
    facts = (run.about["digest"] for run in (one, other))
    return one.fingerprint == other.fingerprint and len(set(facts)) == 1


def compare(sides: Sequence[Side]) -> Comparison:
    """Hold edits against the first of them. What was not measured is left out.

    Args:
        sides: at least one.

    Raises:
        DamagedError, MismatchError: a file is damaged, or of another edit.
    """
    read = [_read(side) for side in sides]
    values = [{q.title: _value(q, r) for q, r in found} for found in read]
    differences = []
    for side, found in zip(sides[1:], read[1:], strict=True):
        same, mine = comparable(sides[0].run, side.run), dict(read[0])
        differences.append([_difference(q, mine[q], r) for q, r in found if same and q in mine])
    return Comparison(tuple(sides), values, differences)


def _read(side: Side) -> list[tuple[Quantity, Rows]]:
    found = []
    for quantity in QUANTITIES:
        try:
            found.append((quantity, quantity.read(side.run, side.method)))
        except NotMeasuredError:
            continue
    return found


def _value(quantity: Quantity, rows: Rows) -> Interval:
    within = SHARE if quantity.unit == "share" else None
    return bootstrap(rows.values, clusters=rows.clusters, of=quantity.statistic, within=within)


def _difference(quantity: Quantity, first: Rows, other: Rows) -> Difference:
    pairs, clusters = first.paired(other)
    within = CHANGE if quantity.unit == "share" else None
    value = bootstrap(pairs[:, ::-1], clusters=clusters, of=quantity.statistic, within=within)
    return Difference(quantity, value, len(pairs))
