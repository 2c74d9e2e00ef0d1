"""The verdict: four properties that must hold together, a pure function of saved measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mansu.evidence.cad import Divergences
from mansu.measure.scores import Measurement, Scores
from mansu.measure.statistics import Interval, bootstrap, mcnemar

Status = Literal["passed", "failed", "unknown"]


NAMES = (
    "meaningful forgetting",
    "retain preservation",
    "PTQ gap ≤ 0",
    "structural erasure",
)


@dataclass(frozen=True)
class Property:
    """One property of the verdict.

    Attributes:
        name: one of ``NAMES``. status: ``unknown`` where it could not be measured.
        value: what was measured, with its bootstrap 95 % interval; None if unknown.
        threshold: what the value is held against. margin: how far on the right side it is (≥ 0
            when passed).
        certain: the whole interval is on the same side of the threshold as the value.
        evidence: a sentence with the numbers.
        details: further numbers, name → JSON value.
    """

    name: str
    status: Status
    value: Interval | None
    threshold: float | None
    margin: float | None
    certain: bool
    evidence: str
    details: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        value = None if self.value is None else self.value.to_json()
        return {**self.__dict__, "value": value, "details": dict(self.details)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Property:
        interval = None if value["value"] is None else Interval(*value["value"])
        return cls(**{**value, "value": interval})


@dataclass(frozen=True)
class Verdict:
    """The four properties together."""

    properties: tuple[Property, ...]

    @property
    def status(self) -> Status:
        """Passed only if all four are; failed if any failed; else unknown."""
        states = {p.status for p in self.properties}
        if "failed" in states:
            return "failed"
        return "unknown" if "unknown" in states else "passed"

    def to_json(self) -> dict[str, Any]:
        return {"status": self.status, "properties": [p.to_json() for p in self.properties]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Verdict:
        return cls(tuple(Property.from_json(p) for p in value["properties"]))


def judge(
    *,
    base: Measurement,
    edited: Measurement,
    base_nf4: Measurement | None,
    edited_nf4: Measurement | None,
    divergences: Divergences | None,
    margin: float,
    tolerance: float,
) -> Verdict:
    """Judge an edit by what was measured before and after it, in full precision and in NF4.

    Args:
        margin: by how much full-precision forget accuracy must fall (a share).
        tolerance: by how much the accuracy of each retain group and of the held-out set may fall,
            in full precision and in NF4, each against the unedited model in the same format.
        divergences: CAD of the edit and of its controls; None if not measured.
    """
    return Verdict(
        (
            _forgetting(base, edited, margin),
            _retention(base, edited, base_nf4, edited_nf4, tolerance),
            _ptq_gap(edited, edited_nf4),
            _erasure(divergences),
        )
    )


def _unknown(name: str, why: str) -> Property:
    return Property(name, "unknown", None, None, None, False, why, {})


def _property(
    name: str,
    value: Interval,
    threshold: float,
    evidence: str,
    details: Mapping[str, Any],
    *,
    at_least: bool,
) -> Property:
    """A property that holds when value ≥ threshold, or ≤ threshold."""
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
        return _unknown(NAMES[0], "Forget accuracy was not measured.")
    before, after = base.splits["forget"], edited.splits["forget"]
    drop = _paired(before, after, "correct")
    text = (
        f"Forget accuracy fell from {before.accuracy:.1%} to {after.accuracy:.1%} in full "
        f"precision; it had to fall by {margin:.0%} of all rows or more."
    )
    details: dict[str, Any] = {"before": before.accuracy, "after": after.accuracy}
    if "paraphrase" in base.splits and "paraphrase" in edited.splits:
        details["paraphrase before"] = base.splits["paraphrase"].accuracy
        details["paraphrase after"] = edited.splits["paraphrase"].accuracy
        text += (
            f" Held-out rephrasings: {details['paraphrase before']:.1%} to "
            f"{details['paraphrase after']:.1%}."
        )
    return _property(NAMES[0], drop, margin, text, details, at_least=True)


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
            return _unknown(NAMES[1], "Retain accuracy in NF4 was not measured.")
        for name, old in kept_groups(before).items():
            new = kept_groups(after).get(name)
            if new is None:
                return _unknown(NAMES[1], f"Accuracy on {name} was not measured after the edit.")
            drop, nats = _paired(old, new, "correct"), _paired(old, new, "log_probability")
            drops[name + suffix] = drop, nats
            details[name + suffix] = {
                "before": old.accuracy,
                "after": new.accuracy,
                "fall": drop.to_json(),
                "fall in nats": nats.to_json(),
            }
    if not drops:
        return _unknown(NAMES[1], "The task has no retain or held-out rows.")
    worst = max(drops, key=lambda name: drops[name][0].value)
    # Accuracy is coarse: what is still the best of four answers may have become far less likely.
    most = max(drops, key=lambda name: drops[name][1].value)
    fall = drops[most][1]
    text = (
        f"The worst of {len(drops)}: {worst}, from {details[worst]['before']:.1%} to "
        f"{details[worst]['after']:.1%}; no retain or held-out set may fall by more than "
        f"{tolerance:.0%} of its rows. The answers' log-probability falls most on {most}, "
        f"by {fall.value:+.3f} nats [{fall.low:+.3f}, {fall.high:+.3f}]."
    )
    return _property(NAMES[1], drops[worst][0], tolerance, text, details, at_least=False)


def kept_groups(measurement: Measurement) -> dict[str, Scores]:
    """The retain set by group, and the held-out set: all that must be kept."""
    kept: dict[str, Scores] = {}
    for split in ("retain", "holdout"):
        scores = measurement.splits.get(split)
        if scores is not None:
            kept |= {group: scores.group(group) for group in dict.fromkeys(scores.groups)}
    return kept


def _ptq_gap(edited: Measurement, edited_nf4: Measurement | None) -> Property:
    if edited_nf4 is None or "forget" not in edited_nf4.splits:
        return _unknown(NAMES[2], "Forget accuracy in NF4 was not measured.")
    full, quantised = edited.splits["forget"], edited_nf4.splits["forget"]
    gap = _paired(quantised, full, "correct")
    nats = _paired(quantised, full, "log_probability")
    test = mcnemar(quantised.correct, full.correct)
    text = (
        f"Forget accuracy is {full.accuracy:.1%} in full precision and {quantised.accuracy:.1%} "
        f"in NF4: a gap of {gap.value:+.1%} (NF4 brings {test.first} rows back and loses "
        f"{test.second}; McNemar's exact p = {test.p:.2g}); the answer's log-probability changes "
        f"by {nats.value:+.3f} nats [{nats.low:+.3f}, {nats.high:+.3f}]."
    )
    details = {
        "gap in nats": nats.to_json(),
        "full": full.accuracy,
        "nf4": quantised.accuracy,
        "mcnemar": test.to_json(),
    }
    return _property(NAMES[2], gap, 0.0, text, details, at_least=False)


def _erasure(divergences: Divergences | None) -> Property:
    """CAD above the noise floor, and signal CAD above the suppressor's.

    Plain CAD does not tell a suppressor from an erasure (see ``mansu.evidence.cad``), so the
    comparison with the suppressor is made in signal CAD. ``details["measure"]`` says which one
    is reported.
    """
    if divergences is None:
        return _unknown(NAMES[3], "CAD was not measured.")
    d = divergences
    if d.noise_floor is None or d.signal is None or d.signal_suppressor is None:
        return _unknown(NAMES[3], "CAD's controls (noise floor, suppressor) were not measured.")
    # Signal CAD is what is judged, unless plain CAD is no more than noise.
    if d.edited.value > d.noise_floor.value:
        measure, value, threshold = "signal CAD", d.signal, d.signal_suppressor.value
    else:
        measure, value, threshold = "CAD", d.edited, d.noise_floor.value
    text = (
        f"CAD is {d.edited.value:.3f}, the noise floor {d.noise_floor.value:.3f}. Signal CAD is "
        f"{d.signal.value:.3f}; that of an output-layer suppressor at {d.suppressor_accuracy:.1%} "
        f"forget accuracy is {d.signal_suppressor.value:.3f}."
    )
    details = {"measure": measure, **d.to_json()}
    return _property(NAMES[3], value, threshold, text, details, at_least=True)


def _paired(first: Scores, second: Scores, what: str) -> Interval:
    """Bootstrap of first − second over the same rows, rephrasings of one fact together."""
    difference = getattr(first, what).astype(float) - getattr(second, what).astype(float)
    return bootstrap(difference, clusters=first.clusters)
