"""Numbers for people: shares in percent, falls in points, the rest in significant digits.

Terminal, pages, cards and README write a number as this module does. It knows nothing of MANSU::

    percent(0.119)                               # 11.9 %
    measured(Interval(0.88, 0.83, 0.92), "share")  # +88.0 [+83.0, +92.0] points
"""

from __future__ import annotations

import re
from typing import Literal, Protocol

NOTHING = "–"
"""What stands where there is no number."""

ALONE = "(one fact alone)"
"""What stands where there is no interval."""

Unit = Literal["share", "nats", "CAD"]
"""Of a measured change: a share (of rows), nats (log-probability), or CAD (0 to 1)."""

_SCALE: dict[str, tuple[float, str, str]] = {  # factor, format, what is written behind
    "share": (100.0, "+.1f", " points"),
    "nats": (1.0, "+.3f", " nats"),
    "CAD": (1.0, ".3f", ""),
}

_MARKS = {"passed": "✓", "failed": "✗", "undecided": "~", "vacuous": "∅"}


class Estimate(Protocol):
    """A value with its interval, such as ``mansu.statistics.Interval``."""

    @property
    def value(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...

    @property
    def alone(self) -> bool: ...


def written(value: float, form: str) -> str:
    """A number in a Python format such as ``+.3f``, with a minus as wide as its plus.

    What a machine reads (files, command lines, the address) has Python's hyphen.
    """
    return minus(f"{value:{form}}")


def minus(text: str) -> str:
    """Text with a minus for the hyphen that Python writes before the digits of a number."""
    return re.sub(r"-(?=\d)", "−", text)


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent; a dash for None. Small shares keep two significant digits.

    Number and sign stay on one line: the space between them is a no-break space.
    """
    if share is None:
        return NOTHING
    if 0 < abs(share) < 0.5 * 10 ** -(2 + digits):
        return f"{written(100 * share, '.2g')}\u00a0%"
    return f"{written(100 * share, f'.{digits}f')}\u00a0%"


def number(value: float | None) -> str:
    """Three significant digits, thousands separated; a dash for None."""
    if value is None:
        return NOTHING
    return written(value, ",.0f" if abs(value) >= 100 else ".3g")


def many(n: int, one: str, more: str = "") -> str:
    """A count with its noun, and with its verb: ``1 row comes back``, ``2 rows come back``.

    Args:
        one: what is said of one. more: of any other number; by default ``one`` with an s.
    """
    return f"{n:,} {one if n == 1 else more or f'{one}s'}"


def duration(seconds: float | None) -> str:
    """A time for people, no finer than it can be foretold; a dash for None."""
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.0f} s"
    if seconds < 55:
        return f"{10 * round(seconds / 10)} s"
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def between(share: Estimate | None) -> str:
    """A share with its interval, in percent; a dash for None."""
    if share is None:
        return NOTHING
    if share.alone:
        return f"{percent(share.value)} {ALONE}"
    return f"{percent(share.value)} [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def amount(value: float | None, unit: Unit) -> str:
    """A change in its unit, with its sign; a dash for None."""
    if value is None:
        return NOTHING
    factor, form, behind = _SCALE[unit]
    return f"{written(factor * value, form)}{behind}"


def measured(value: Estimate | None, unit: Unit, *, behind: bool = True) -> str:
    """A change with its interval, in its unit; a dash for None.

    Args:
        behind: write the unit; a table's head may say it instead.
    """
    if value is None:
        return NOTHING
    factor, form, name = _SCALE[unit]
    name = name if behind else ""
    if value.alone:
        return f"{written(factor * value.value, form)}{name} {ALONE}"
    middle, low, high = (written(factor * x, form) for x in (value.value, value.low, value.high))
    return f"{middle} [{low}, {high}]{name}"


def mark(status: str, certain: bool = True) -> str:
    """A status as one sign: ✓, ✗, ~ (undecided), ∅ (vacuous) or ? (unknown).

    Args:
        certain: not, where a status of an older verdict was the value's alone.
    """
    sign = _MARKS.get(status, "?")
    return sign if certain or sign not in "✓✗" else f"{sign}~"
