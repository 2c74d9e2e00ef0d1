"""The verdict: four properties that must hold together, a pure function of saved measurements.

::

    verdict = judge(base=…, edited=…, base_nf4=…, edited_nf4=…, divergences=…,
                    thresholds=Thresholds(margin=0.6, tolerance=0.05))
    verdict.status                  # passed, failed or unknown
    verdict.retention.evidence      # a sentence with the numbers
    print(verdict)                  # a table
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from mansu.errors import DamagedError
from mansu.evidence.cad import FEWEST_GROUPS, Divergences
from mansu.files import read_json, reading, write_json
from mansu.measure.scores import Measurement, Scores
from mansu.measure.statistics import Interval, bootstrap, mcnemar
from mansu.show import numbers
from mansu.show.numbers import Unit, percent
from mansu.show.table import Shown, Table

Status = Literal["passed", "failed", "unknown"]

Name = Literal["forgetting", "retention", "gap", "erasure"]
"""The fields of a verdict."""


@dataclass(frozen=True)
class About:
    """What a property is called.

    Attributes:
        title: for people. quantity: what its value is. unit: of value, threshold and margin.
        at_least: it holds when the value is at least the threshold; else when it is at most that.
    """

    title: str
    quantity: str
    unit: Unit
    at_least: bool


ABOUT: Mapping[Name, About] = {
    "forgetting": About("meaningful forgetting", "fall of forget accuracy", "share", True),
    "retention": About("retain preservation", "worst fall of what is kept", "share", False),
    "gap": About("PTQ gap ≤ 0", "PTQ gap", "share", False),
    "erasure": About("structural erasure", "signal CAD", "CAD", True),
}


@dataclass(frozen=True)
class Thresholds:
    """What the properties are held against, where no control gives it.

    Attributes:
        margin: by how much full-precision forget accuracy must fall (a share).
        tolerance: by how much the accuracy of each retain group and of the held-out set may fall,
            in full precision and in NF4, each against the unedited model in the same format.
        gap: by how much forget accuracy may be higher in NF4 than in full precision.
    """

    margin: float
    tolerance: float
    gap: float = 0.0


@dataclass(frozen=True)
class Property:
    """One property of the verdict.

    Attributes:
        name: which one, the verdict's field. status: ``unknown`` where it could not be measured.
        value: what was measured, with its bootstrap 95 % interval; None if unknown.
        threshold: what the value is held against. margin: how far on the right side it is (≥ 0
            when passed).
        certain: the whole interval is on the same side of the threshold as the value.
        evidence: a sentence with the numbers.
        details: further numbers, name → JSON value.
    """

    name: Name
    status: Status
    value: Interval | None
    threshold: float | None
    margin: float | None
    certain: bool
    evidence: str
    details: Mapping[str, Any]

    @property
    def title(self) -> str:
        """What it is called, for people."""
        return ABOUT[self.name].title

    @property
    def unit(self) -> Unit:
        """Of value, threshold and margin."""
        return ABOUT[self.name].unit

    @property
    def quantity(self) -> str:
        """What the value is; erasure may be judged by plain CAD."""
        return self.details.get("measure", ABOUT[self.name].quantity)

    @property
    def limit(self) -> str:
        """The threshold for people, with its side: ``≥ 60.0 points``; a dash where unknown."""
        if self.threshold is None:
            return numbers.NOTHING
        side = "≥" if ABOUT[self.name].at_least else "≤"
        return f"{side} {numbers.amount(self.threshold, self.unit).lstrip('+')}"

    def to_json(self) -> dict[str, Any]:
        about = {"title": self.title, "unit": self.unit}
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
        value = None if self.value is None else self.value.to_json()
        return {**about, **own, "value": value, "details": dict(self.details)}

    @classmethod
    def from_json(cls, name: Name, value: Any) -> Property:
        """Read what ``to_json`` made.

        Raises:
            DamagedError: something is missing, of another type, or not finite.
        """
        try:
            interval = None if value["value"] is None else Interval(*map(_finite, value["value"]))
            threshold, margin = (
                None if value[key] is None else _finite(value[key])
                for key in ("threshold", "margin")
            )
            status, certain, evidence = value["status"], value["certain"], value["evidence"]
            details = dict(value["details"])
            known = (interval is not None, threshold is not None, margin is not None)
            if (
                status not in get_args(Status)
                or set(known) != {status != "unknown"}
                or not isinstance(certain, bool)
                or not isinstance(evidence, str)
            ):
                raise ValueError("a value is not what it should be")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DamagedError(
                f"The verdict's {name!r} is damaged or of an older MANSU ({error!r:.80}): judge "
                "the edit again (mansu verdict)."
            ) from error
        return cls(name, status, interval, threshold, margin, certain, evidence, details)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return value


@dataclass(frozen=True, repr=False)
class Verdict(Shown):
    """The four properties together.

    Attributes:
        forgetting: full-precision forget accuracy fell by the task's margin.
        retention: nothing that is to be kept fell by more than the tolerance, in either format.
        gap: NF4 brings nothing back.
        erasure: the circuit no longer writes what it did, beyond what a suppressor changes.
    """

    forgetting: Property
    retention: Property
    gap: Property
    erasure: Property

    @property
    def properties(self) -> tuple[Property, ...]:
        """All four, in order."""
        return tuple(getattr(self, name) for name in ABOUT)

    @property
    def status(self) -> Status:
        """Passed only if all four are; failed if any failed; else unknown."""
        states = {p.status for p in self.properties}
        if "failed" in states:
            return "failed"
        return "unknown" if "unknown" in states else "passed"

    def table(self) -> Table:
        """A row a property: status, value, threshold, margin; the evidence below."""
        passed = sum(p.status == "passed" for p in self.properties)
        return Table(
            ("Property", "Status", "Value [95 %]", "Threshold", "Margin", "Certain"),
            [
                (
                    p.title,
                    p.status,
                    numbers.measured(p.value, p.unit),
                    p.limit,
                    numbers.amount(p.margin, p.unit),
                    "yes" if p.certain else "no",
                )
                for p in self.properties
            ],
            caption=f"{self.status}: {passed} of {len(ABOUT)} properties passed; all must",
            align="<<>>><",
            notes=[f"{p.title}: {p.evidence}" for p in self.properties],
        )

    def to_json(self) -> dict[str, Any]:
        return {"status": self.status, **{p.name: p.to_json() for p in self.properties}}

    @classmethod
    def from_json(cls, value: Any) -> Verdict:
        """Read what ``to_json`` made.

        Raises:
            DamagedError: it is something else, damaged, or of an older MANSU.
        """
        if not isinstance(value, Mapping) or not ABOUT.keys() <= value.keys():
            raise DamagedError(
                "This is no verdict, or one of an older MANSU: judge the edit again "
                "(mansu verdict)."
            )
        return cls(**{name: Property.from_json(name, value[name]) for name in ABOUT})

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Verdict:
        """Read what ``save`` wrote.

        Raises:
            NotMeasuredError: there is no such file. DamagedError: it is damaged.
        """
        with reading(Path(path)):
            return cls.from_json(read_json(Path(path)))


def judge(
    *,
    base: Measurement,
    edited: Measurement,
    base_nf4: Measurement | None,
    edited_nf4: Measurement | None,
    divergences: Divergences | None,
    thresholds: Thresholds,
) -> Verdict:
    """Judge an edit by what was measured before and after it, in full precision and in NF4.

    Args:
        divergences: CAD of the edit and of its controls; None if not measured.

    Raises:
        MismatchError: measurements that are compared are not of the same rows in the same order.
    """
    return Verdict(
        forgetting=_forgetting(base, edited, thresholds.margin),
        retention=_retention(base, edited, base_nf4, edited_nf4, thresholds.tolerance),
        gap=_gap(edited, edited_nf4, thresholds.gap),
        erasure=_erasure(divergences),
    )


def _unknown(name: Name, why: str) -> Property:
    return Property(name, "unknown", None, None, None, False, why, {})


def _property(
    name: Name, value: Interval, threshold: float, evidence: str, details: Mapping[str, Any]
) -> Property:
    at_least = ABOUT[name].at_least
    margin = value.value - threshold if at_least else threshold - value.value
    passed = margin >= -1e-9
    # The end of the interval that is nearest to the other side of the threshold.
    end = value.low if at_least == passed else value.high
    certain = (end - threshold if at_least else threshold - end) >= -1e-9
    certain = certain if passed else not certain
    status: Status = "passed" if passed else "failed"
    return Property(name, status, value, threshold, margin, certain, evidence, details)


def _forgetting(base: Measurement, edited: Measurement, margin: float) -> Property:
    if "forget" not in base.splits or "forget" not in edited.splits:
        return _unknown("forgetting", "Forget accuracy was not measured.")
    before, after = base.splits["forget"], edited.splits["forget"]
    drop = _paired(before, after, "correct")
    text = (
        f"Forget accuracy fell from {percent(before.accuracy)} to {percent(after.accuracy)} in "
        f"full precision; it had to fall by {percent(margin, 0)} of all rows or more."
    )
    details: dict[str, Any] = {"before": before.accuracy, "after": after.accuracy}
    if "paraphrase" in base.splits and "paraphrase" in edited.splits:
        details["paraphrase before"] = base.splits["paraphrase"].accuracy
        details["paraphrase after"] = edited.splits["paraphrase"].accuracy
        text += (
            f" Held-out rephrasings: {percent(details['paraphrase before'])} to "
            f"{percent(details['paraphrase after'])}."
        )
    return _property("forgetting", drop, margin, text, details)


def _retention(
    base: Measurement,
    edited: Measurement,
    base_nf4: Measurement | None,
    edited_nf4: Measurement | None,
    tolerance: float,
) -> Property:
    drops: dict[str, tuple[Interval, Interval]] = {}
    details: dict[str, Any] = {}
    for suffix, before, after in (("", base, edited), (" in NF4", base_nf4, edited_nf4)):
        if before is None or after is None:
            return _unknown("retention", "Retain accuracy in NF4 was not measured.")
        if lacking := kept_groups(after).keys() - kept_groups(before).keys():
            return _unknown(
                "retention", f"Accuracy on {min(lacking)} was not measured before the edit."
            )
        for name, old in kept_groups(before).items():
            new = kept_groups(after).get(name)
            if new is None:
                return _unknown("retention", f"Accuracy on {name} was not measured after the edit.")
            drop, nats = _paired(old, new, "correct"), _paired(old, new, "log_probability")
            drops[name + suffix] = drop, nats
            details[name + suffix] = {
                "before": old.accuracy,
                "after": new.accuracy,
                "fall": drop.to_json(),
                "fall in nats": nats.to_json(),
            }
    if not drops:
        return _unknown("retention", "The task has no retain or held-out rows.")
    worst = max(drops, key=lambda name: drops[name][0].value)
    # Accuracy is coarse: what is still the best of four answers may have become far less likely.
    most = max(drops, key=lambda name: drops[name][1].value)
    text = (
        f"The worst of {len(drops)}: {worst}, from {percent(details[worst]['before'])} to "
        f"{percent(details[worst]['after'])}; no retain or held-out set may fall by more than "
        f"{percent(tolerance, 0)} of its rows. The answers' log-probability falls most on {most}, "
        f"by {numbers.measured(drops[most][1], 'nats')}."
    )
    return _property("retention", drops[worst][0], tolerance, text, details)


def kept_groups(measurement: Measurement) -> dict[str, Scores]:
    """The retain set by group, and the held-out set: all that must be kept."""
    kept: dict[str, Scores] = {}
    for split in ("retain", "holdout"):
        scores = measurement.splits.get(split)
        if scores is not None:
            kept |= {group: scores.group(group) for group in dict.fromkeys(scores.groups)}
    return kept


def _gap(edited: Measurement, edited_nf4: Measurement | None, threshold: float) -> Property:
    if edited_nf4 is None or not ("forget" in edited.splits and "forget" in edited_nf4.splits):
        return _unknown("gap", "Forget accuracy in NF4 was not measured.")
    full, quantised = edited.splits["forget"], edited_nf4.splits["forget"]
    gap = _paired(quantised, full, "correct")
    nats = _paired(quantised, full, "log_probability")
    test = mcnemar(quantised.correct, full.correct)
    text = (
        f"Forget accuracy is {percent(full.accuracy)} in full precision and "
        f"{percent(quantised.accuracy)} in NF4: a gap of {numbers.amount(gap.value, 'share')} (NF4 "
        f"brings {test.first} rows back and loses {test.second}; McNemar's exact p = {test.p:.2g});"
        f" the answer's log-probability changes by {numbers.measured(nats, 'nats')}."
    )
    details = {
        "gap in nats": nats.to_json(),
        "full": full.accuracy,
        "nf4": quantised.accuracy,
        "mcnemar": test.to_json(),
    }
    return _property("gap", gap, threshold, text, details)


def _erasure(divergences: Divergences | None) -> Property:
    """CAD above the noise floor, and signal CAD above the suppressor's.

    Plain CAD does not tell a suppressor from an erasure (see ``mansu.evidence.cad``), so the
    comparison with the suppressor is made in signal CAD. ``details["measure"]`` says which one
    is reported.
    """
    if divergences is None:
        return _unknown("erasure", "CAD was not measured.")
    d = divergences
    if d.noise_floor is None:
        return _unknown(
            "erasure",
            f"CAD has no noise floor: the forget set has fewer than {FEWEST_GROUPS} clean–corrupt "
            "pairs, too few to halve.",
        )
    if d.signal is None or d.signal_suppressor is None:
        return _unknown("erasure", "CAD's control, the suppressor, was not measured.")
    # Signal CAD is what is judged, unless plain CAD is no more than noise.
    if d.edited.value > d.noise_floor.value:
        measure, value, threshold = "signal CAD", d.signal, d.signal_suppressor.value
    else:
        measure, value, threshold = "CAD", d.edited, d.noise_floor.value
    text = (
        f"CAD is {d.edited.value:.3f}, the noise floor {d.noise_floor.value:.3f}. Signal CAD is "
        f"{d.signal.value:.3f}; that of an output-layer suppressor at "
        f"{percent(d.suppressor_accuracy)} forget accuracy is {d.signal_suppressor.value:.3f}."
    )
    details = {"measure": measure, **d.to_json()}
    return _property("erasure", value, threshold, text, details)


def _paired(first: Scores, second: Scores, what: str) -> Interval:
    """Bootstrap of first − second over the same rows, rephrasings of one fact together.

    Raises:
        MismatchError: they are not the same rows in the same order.
    """
    first.refuse_other(second)
    difference = getattr(first, what).astype(float) - getattr(second, what).astype(float)
    return bootstrap(difference, clusters=first.clusters)
