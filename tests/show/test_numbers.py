"""A number is written the same everywhere."""

from __future__ import annotations

import pytest

from mansu.show.numbers import amount, between, mark, measured, minus, number, percent, written
from mansu.statistics import Interval


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (0.119, 1, "11.9\u00a0%"),
        (1.0, 0, "100\u00a0%"),
        (0.0, 1, "0.0\u00a0%"),
        (0.00201, 3, "0.201\u00a0%"),
        (0.00003, 1, "0.003\u00a0%"),  # two digits of what would be 0.0 %
        (-0.00003, 1, "−0.003\u00a0%"),
        (None, 1, "–"),
    ],
)
def test_percent(share: float | None, digits: int, text: str) -> None:
    assert percent(share, digits) == text


@pytest.mark.parametrize(
    ("value", "text"), [(828.4, "828"), (12345.6, "12,346"), (0.8382, "0.838"), (None, "–")]
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_change_is_written_in_its_unit() -> None:
    value = Interval(0.031, -0.0105, 0.072)
    assert measured(value, "share") == "+3.1 [−1.1, +7.2] points"
    assert measured(value, "nats") == "+0.031 [−0.011, +0.072] nats"
    assert measured(value, "CAD", behind=False) == "0.031 [−0.011, 0.072]"
    assert amount(-0.05, "share") == "−5.0 points"
    assert between(Interval(0.119, 0.07, 0.17)) == "11.9\u00a0% [7, 17]"
    assert written(-2.5, "+.1f") == "−2.5" and number(-1.5e-7) == "−1.5e−07"
    assert minus("log-probability -1.2") == "log-probability −1.2"
    assert measured(None, "share") == amount(None, "nats") == between(None) == "–"


def test_marks() -> None:
    assert [mark("passed"), mark("failed", False), mark("unknown", False)] == ["✓", "✗~", "?"]
