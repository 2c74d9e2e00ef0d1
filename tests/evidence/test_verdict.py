"""The verdict is a pure function of measurements; what was not measured is unknown."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mansu.errors import DamagedError
from mansu.evidence.cad import Divergences
from mansu.evidence.verdict import ABOUT, Thresholds, Verdict, judge
from mansu.measure.scores import Measurement, Scores
from mansu.measure.statistics import Interval


def scores(right: int, of: int = 40, group: str = "g", shift: float = 0.0) -> Scores:
    correct = np.arange(of) < right
    return Scores(
        correct,
        correct,
        np.full(of, -1.0 + shift),
        np.where(correct, 1.0, -1.0),
        np.arange(of),
        (group,) * of,
        tuple(range(of)),
    )


def measured(forget: int, kept: int = 40, held: int = 40, shift: float = 0.0) -> Measurement:
    return Measurement(
        {
            "forget": scores(forget, group="forget", shift=shift),
            "retain": scores(kept, group="capitals"),
            "holdout": scores(held, group="antonyms"),
        },
        3.0,
    )


def at(value: float) -> Interval:
    return Interval(value, value - 0.01, value + 0.01)


GOOD = Divergences(
    at(0.3),
    noise_floor=at(0.1),
    signal=at(0.2),
    signal_suppressor=at(0.05),
    suppressor_accuracy=0.3,
)


def verdict(**changes: object) -> Verdict:
    arguments: dict[str, object] = {
        "base": measured(40),
        "edited": measured(12),
        "base_nf4": measured(40),
        "edited_nf4": measured(12),
        "divergences": GOOD,
        "thresholds": Thresholds(margin=0.6, tolerance=0.05),
    }
    return judge(**{**arguments, **changes})  # type: ignore[arg-type]


def status(found: Verdict) -> dict[str, str]:
    return {p.name: p.status for p in found.properties}


def test_all_four_hold() -> None:
    found = verdict()
    assert found.status == "passed"
    assert status(found) == dict.fromkeys(ABOUT, "passed")
    assert all(p.margin is not None and p.margin >= -1e-9 for p in found.properties)


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"edited": measured(20), "edited_nf4": measured(20)}, "forgetting"),
        ({"edited": measured(12, kept=37)}, "retention"),
        ({"edited": measured(12, held=37)}, "retention"),
        ({"edited_nf4": measured(12, held=37)}, "retention"),
        ({"edited_nf4": measured(13)}, "gap"),
        (
            {
                "divergences": Divergences(
                    at(0.09),
                    noise_floor=at(0.1),
                    signal=at(0.2),
                    signal_suppressor=at(0.05),
                    suppressor_accuracy=0.3,
                )
            },
            "erasure",
        ),
        (
            {
                "divergences": Divergences(
                    at(0.3),
                    noise_floor=at(0.1),
                    signal=at(0.04),
                    signal_suppressor=at(0.05),
                    suppressor_accuracy=0.3,
                )
            },
            "erasure",
        ),
    ],
)
def test_each_property_fails_alone(changes: dict[str, object], failed: str) -> None:
    found = verdict(**changes)
    assert found.status == "failed"
    assert [name for name, s in status(found).items() if s == "failed"] == [failed]


@pytest.mark.parametrize(
    ("changes", "unknown"),
    [
        ({"edited_nf4": None}, {"retention", "gap"}),
        ({"base_nf4": None}, {"retention"}),
        ({"divergences": None}, {"erasure"}),
        ({"divergences": Divergences(at(0.3))}, {"erasure"}),
    ],
)
def test_what_was_not_measured_is_unknown(changes: dict[str, object], unknown: set[str]) -> None:
    found = verdict(**changes)
    assert found.status == "unknown"
    assert {name for name, s in status(found).items() if s == "unknown"} == unknown


def test_the_retain_loss_in_nf4_is_against_nf4() -> None:
    found = verdict(base_nf4=measured(40, kept=30), edited_nf4=measured(12, kept=30))
    assert status(found)["retention"] == "passed"


def test_what_is_still_right_but_less_likely_is_told() -> None:
    nf4 = measured(12)
    rarer = {"holdout": scores(40, group="antonyms", shift=-0.7)}
    kept = verdict(edited_nf4=Measurement({**nf4.splits, **rarer}, 3.0)).retention
    assert kept.status == "passed"
    assert kept.details["antonyms in NF4"]["fall in nats"] == pytest.approx([0.7] * 3)
    assert kept.details["antonyms"]["fall in nats"] == pytest.approx([0.0] * 3)
    assert "falls most on antonyms in NF4, by +0.700 [+0.700, +0.700] nats" in kept.evidence


def test_certainty_is_about_the_interval() -> None:
    clear, close = verdict().forgetting, verdict(edited=measured(16)).forgetting
    assert clear.status == close.status == "passed"
    assert not close.certain  # 60 % ± sampling
    far = verdict(edited=measured(0), edited_nf4=measured(0)).forgetting
    assert far.certain
    lost = verdict(edited=measured(40)).forgetting
    assert lost.status == "failed" and lost.certain


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_forgetting_passes_exactly_at_its_margin(before: int, after: int, nf4: int) -> None:
    found = verdict(base=measured(before), edited=measured(after), edited_nf4=measured(nf4))
    assert (found.forgetting.status == "passed") == (before - after >= 24)
    assert (found.gap.status == "passed") == (nf4 <= after)


def test_the_gap_is_tested_by_its_discordant_rows() -> None:
    gap = verdict(edited_nf4=measured(20)).gap
    assert gap.details["mcnemar"] == {"first": 8, "second": 0, "p": 2 / 2**8}
    assert "brings 8 rows back and loses 0" in gap.evidence and "p = 0.0078" in gap.evidence


def test_it_is_saved_whole() -> None:
    for found in (verdict(), verdict(edited_nf4=None, divergences=None)):
        assert Verdict.from_json(json.loads(json.dumps(found.to_json()))) == found
    value = measured(12)
    again = Measurement.from_json(json.loads(json.dumps(value.to_json())))
    assert json.dumps(again.to_json()) == json.dumps(value.to_json())


@pytest.mark.parametrize(
    "change",
    [
        {"status": "fine"},
        {"status": "unknown"},  # with a value
        {"value": [0.7, 0.6]},
        {"value": [float("nan")] * 3},
        {"threshold": None},
        {"margin": "0.1"},
        {"certain": 1},
        {"details": 3},
    ],
)
def test_a_damaged_verdict_is_refused(change: dict[str, object]) -> None:
    saved = verdict().to_json()
    with pytest.raises(DamagedError, match="'gap' is damaged"):
        Verdict.from_json({**saved, "gap": {**saved["gap"], **change}})


@pytest.mark.parametrize("saved", [None, [], {}, {"status": "passed", "properties": []}])
def test_what_is_no_verdict_is_refused(saved: object) -> None:
    with pytest.raises(DamagedError, match="judge the edit again"):
        Verdict.from_json(saved)


def test_it_is_shown_in_its_units() -> None:
    text = str(verdict())
    assert "passed: 4 of 4" in text
    assert "+70.0 [" in text and "≥ 60.0 points" in text  # forgetting, a share
    assert "0.200 [0.190, 0.210]" in text and "≥ 0.050" in text  # signal CAD
    unknown = str(verdict(divergences=None))
    assert "unknown: 3 of 4" in unknown and "CAD was not measured." in unknown
    assert repr(verdict()) == "Verdict(passed: 4 of 4 properties passed; all must)"
