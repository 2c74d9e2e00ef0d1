"""Intervals over examples, and tests of two models on the same rows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from mansu.memory import Memory

CONFIDENCE = 0.95
SHARE, CHANGE = (0.0, 1.0), (-1.0, 1.0)
"""What a share can be, as of right answers, and by how much it can change."""

SLACK = 1e-9
"""Numbers no farther apart count as equal: 1 - 19 / 20 is more than 0.05 by rounding alone."""


def at_most(value: float, limit: float) -> bool:
    """Whether a value is no more than a limit, in which rounding decides nothing (``SLACK``)."""
    return value <= limit + SLACK


@dataclass(frozen=True)
class Interval:
    """A point estimate with its bootstrap interval.

    Attributes:
        alone: it is of one cluster (one fact, however often it is asked), of which nobody knows how
            far another would be: there is no interval, ``low`` and ``high`` are the value, and
            nothing can be decided by them.
    """

    value: float
    low: float
    high: float
    alone: bool = field(default=False, kw_only=True)

    def __neg__(self) -> Interval:
        """The same the other way round: of first − second, that of second − first."""
        return Interval(-self.value, -self.high, -self.low, alone=self.alone)

    def above(self, limit: float) -> bool:
        """Whether it is above a limit as a whole; not where there is no interval."""
        return not self.alone and not at_most(self.low, limit)

    def below(self, limit: float) -> bool:
        """Whether it is below a limit as a whole; not where there is no interval."""
        return (-self).above(-limit)

    def to_json(self) -> list[float]:
        """Value and bounds; the value only where there is no interval."""
        return [self.value] if self.alone else [self.value, self.low, self.high]

    def stretched(self, n: int, within: tuple[float, float] | None = None) -> Interval:
        """A percentile bootstrap interval over ``n`` clusters, as wide as so few of them ask for.

        Resampled variance is (n − 1) / n of the unbiased one, and a percentile knows no Student's t
        (Hesterberg 2015, "What teachers should know about the bootstrap"): both bounds go
        √(n / (n − 1)) · t / z as far from the value, by a tenth for 20 clusters and by more than a
        quarter for 8.

        Args:
            within: the least and the most that there can be.
        """
        if n < 2:
            return Interval(self.value, self.value, self.value, alone=True)
        by = _wider(n)
        least, most = within or (-math.inf, math.inf)
        value = self.value
        low = value - by * max(value - self.low, 0)
        high = value + by * max(self.high - value, 0)
        return Interval(value, max(low, least), min(high, most))

    @classmethod
    def from_json(cls, found: Sequence[float]) -> Interval:
        """Read what ``to_json`` made; raises TypeError or ValueError where it is something else."""
        value, *bounds = found
        return cls(value, *bounds) if bounds else cls(value, value, value, alone=True)


@cache
def _wider(n: int) -> float:
    """By what the bounds of a percentile bootstrap over ``n`` > 1 clusters are to be farther from
    the value."""
    from scipy.special import ndtri, stdtrit  # takes longer to import than all else here

    tail = (1 - CONFIDENCE) / 2
    return math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, tail) / ndtri(tail))


def fewest(change: float) -> int:
    """How many clusters it takes to tell that a share changed by less: ``bootstrap`` of as many
    that all agree has a bound no farther away."""
    if not 0 < change < 1:
        return 1
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-change) - SLACK)


def bootstrap(
    values: np.ndarray,
    *,
    resamples: int = 2000,
    seed: int = 0,
    clusters: np.ndarray | None = None,
    of: Callable[[np.ndarray], np.ndarray] | None = None,
    within: tuple[float, float] | None = None,
) -> Interval:
    """Mean of ``values`` ``[N]`` with its bootstrap interval at 95 % (``Interval.stretched``).

    For a paired comparison pass the differences. With ``clusters`` ``[N]`` (e.g. the fact that
    several templates ask for) whole clusters are resampled, so that rephrasings of one fact do not
    count as independent evidence. Of one cluster there is no interval (``Interval.alone``).

    It is a pure function, and pages ask for the same intervals again and again: what was found is
    kept.

    Args:
        values: or ``[N, 2]``, whose rows are drawn together: the first column's mean less the
            second's.
        of: what each mean ``[…]`` is turned into before, ``[…]``; itself by default.
        within: of shares, the least and the most that there can be: (0, 1) of an accuracy, (−1, 1)
            of its fall. Where all of n clusters agree, as where nothing fell, nothing is there to
            draw from; the bounds are then where so much agreement has a probability of 5 %: 1 −
            0.05^(1 / n) away, five points for 59 facts and 17 for 16.
    """
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    values = np.asarray(values, dtype=float).reshape(len(values), -1)
    clusters = np.arange(len(values)) if clusters is None else np.asarray(clusters)
    of = of or _itself

    def make() -> Interval:
        return _bootstrap(values, clusters, resamples, seed, of, within)

    if clusters.dtype.hasobject:  # whose bytes do not say what they are
        return make()
    drawn = hashlib.sha256(values.tobytes() + clusters.tobytes()).digest()
    return _FOUND.get((drawn, values.shape, clusters.dtype.str, resamples, seed, of, within), make)


_FOUND: Memory[Interval] = Memory(1 << 14)

FEW = 10
"""Fewer clusters that changed have an exact bound beside the bootstrap's (``change``)."""


def change(values: np.ndarray, clusters: np.ndarray) -> Interval:
    """Mean change of shares, ``[N]`` values from −1 to 1, with its interval at 95 %.

    ``bootstrap`` draws only from what it saw: where one fact of 64 changed, it takes another such
    fact for as rare as that one. Where fewer than ``FEW`` clusters changed, but some did, the
    interval is the wider of the bootstrap's and an exact one: the share of clusters that rose has
    its bound by Clopper and Pearson (1934), times how much one of them rose; that some rise by all
    of 1, though none did, is as likely as where none rose at all. Those that fell count alike, and
    the bounds of both are put together as of independent parts (Zou and Donner 2008, MOVER).

    Args:
        clusters: which values are of one fact, ``[N]``.
    """
    found = bootstrap(values, clusters=clusters, within=CHANGE)
    _, ids = np.unique(clusters, return_inverse=True)
    totals, n = np.bincount(ids, weights=values), len(np.unique(ids))
    if found.alone or not 0 < np.count_nonzero(abs(totals) > SLACK) < FEW:
        return found
    up, down = (_bounds(side[side > SLACK], n, len(values)) for side in (totals, -totals))
    low = found.value - math.hypot(up[0], down[1])
    high = found.value + math.hypot(up[1], down[0])
    least, most = CHANGE
    return Interval(found.value, max(min(low, found.low), least), min(max(high, found.high), most))


def _bounds(totals: np.ndarray, n: int, rows: int) -> tuple[float, float]:
    """How far below and above their mean the exact bounds of a rise are.

    Args:
        totals: of the clusters that rose, by how many rows each.
        n, rows: how many clusters and rows there are, with those that did not.
    """
    from scipy.special import betaincinv  # takes longer to import than all else here

    k, tail, unseen = len(totals), (1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) ** (1 / n)
    if not k:
        return 0.0, unseen
    size = min(float(totals.sum()) / rows * n / k, 1.0)  # of one, of clusters of like size
    lowest = float(betaincinv(k, n - k + 1, tail))
    highest = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    more = math.hypot(size * (highest - k / n), (1 - size) * unseen)
    return size * (k / n - lowest), max(more, unseen - size * k / n)  # no less than of none


SKEWED = 0.0025
"""The tail of t that ``of_skewed`` takes: a tenth of what would be enough if the resamples of few
skewed values held as many large ones as the values that might have been."""


def of_skewed(
    values: np.ndarray,
    *,
    clusters: Sequence[object] | np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of values ``[N]`` of which a few may be far above the rest, as divergences by text and
    falls by fact are.

    ``bootstrap``'s, but the upper bound is at least the bootstrap-t's (Efron and Tibshirani 1993,
    ch. 12.5) with a tail of ``SKEWED``, and at most the largest value: a sample without its share
    of large values has too small a mean and too small a spread. Of 16 lognormal values with a
    standard deviation of the log of 0.5, 1 and 1.5 the truth is above the bound 1, 2 and 4 times in
    a hundred, above ``bootstrap``'s 6, 12 and 24 times; of 60 with 1 and 1.5 above it 1 and 4
    times, above ``bootstrap``'s 8 and 16. Of 8 values it is above it more often. A bound made for
    lognormal values is many times the largest value where there are two kinds of texts, of which
    one hardly moves.

    Args:
        clusters: ``[N]``, which values are drawn together, as rephrasings of one fact are; the
            largest value is then the largest mean of one.
    """
    values = np.asarray(values, dtype=float)
    groups = np.arange(len(values)) if clusters is None else np.asarray(clusters)
    found = bootstrap(values, clusters=groups, resamples=resamples, seed=seed)
    _, ids = np.unique(groups, return_inverse=True)
    totals, counts = np.bincount(ids, weights=values), np.bincount(ids)
    n, means = len(counts), totals / counts
    if n < 2 or np.ptp(means) == 0:
        return found

    def spread(totals: np.ndarray, counts: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Of a ratio of means, by its residuals."""
        off = totals - mean[..., None] * counts
        return np.sqrt(np.square(off).mean(-1)) / counts.mean(-1)

    drawn = np.random.default_rng(seed).integers(0, n, size=(resamples, n))
    mean = totals[drawn].sum(1) / counts[drawn].sum(1)
    wide = spread(totals[drawn], counts[drawn], mean)
    off = mean - found.value
    t = np.copysign(math.inf, off)  # of one value again and again, which has no spread
    np.divide(off, wide, out=t, where=np.ptp(means[drawn], 1) > 0)
    least = float(np.percentile(t, 100 * SKEWED, method="lower"))
    by = float(spread(totals, counts, np.array(found.value)))
    return replace(found, high=max(found.high, min(found.value - least * by, float(means.max()))))


def _itself(mean: np.ndarray) -> np.ndarray:
    return mean


def _bootstrap(
    values: np.ndarray,
    clusters: np.ndarray,
    resamples: int,
    seed: int,
    of: Callable[[np.ndarray], np.ndarray],
    within: tuple[float, float] | None,
) -> Interval:
    def statistic(means: np.ndarray) -> np.ndarray:
        found = of(means[..., 0])
        return found - of(means[..., 1]) if means.shape[-1] == 2 else found

    _, ids = np.unique(clusters, return_inverse=True)
    totals = np.stack([np.bincount(ids, weights=column) for column in values.T], 1)
    counts = np.bincount(ids)
    value, n = float(statistic(values.mean(0))), len(counts)
    if within and n > 1 and (totals / counts[:, None] == totals[0] / counts[0]).all():
        least, most = within
        by = 1 - (1 - CONFIDENCE) ** (1 / n)
        return Interval(value, max(value - by, least), min(value + by, most))
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(totals), size=(resamples, len(totals)))
    found = statistic(totals[picks].sum(1) / counts[picks].sum(1)[:, None])
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return Interval(value, float(low), float(high)).stretched(n, within)


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of two models on the same rows.

    Attributes:
        first, second: rows that only the first, only the second model has right.
        p: two-sided probability of so uneven a split, or a more uneven one, if both were equal.
    """

    first: int
    second: int
    p: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Compare two models right or wrong on the same rows (``[N]`` each).

    Shares of ties may be given; only a whole 1 counts as right.

    The binomial test on the discordant rows (McNemar 1947): p = min(1, 2 P(X ≤ min(b, c))) with
    X ~ Binomial(b + c, ½). It counts rephrasings of one fact as independent, which the bootstrap
    by answer does not, so where they agree p is too small.

    Raises:
        ValueError: the arrays differ in shape.
    """
    first, second = np.asarray(first) == 1, np.asarray(second) == 1
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} rows cannot be paired with {second.shape}.")
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    return McNemar(b, c, min(1.0, 2 * tail / 2 ** (b + c)))
