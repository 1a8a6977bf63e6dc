"""How many of each kind of timeline came back, at each age of their sleep."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise, product
from struct import Struct
from typing import Final

VISIT_LEVELS: Final = 4
REGULARITY_LEVELS: Final = 5
CLOCK_LEVELS: Final = 4
LENGTH_LEVELS: Final = 2
_BRIEF_S: Final = 1800.0  # typical sleeps up to here are of the first level
_FAMILY: Final = CLOCK_LEVELS * LENGTH_LEVELS  # rows of the same visits and regularity
HALF_LIFE_S: Final = 7 * 86400.0
REFRESH_S: Final = 3600.0
_TRUST: Final = 8.0  # returns that the estimate of the parent counts for
_STEEPNESS: Final = (12.0, 5.0, 2.2, 1.3, 0.9)  # of the prior, by regularity
_NEW_STEEPNESS: Final = 0.7  # for a timeline that has not started yet
_MOST_HALF_LIVES: Final = 20.0


def _edges() -> tuple[float, ...]:
    growth, edges, edge = 1.36, [0.0], 0.02
    while edge < 0.79:  # noqa: PLR2004 - up to the fine bins around the typical sleep
        edges.append(edge)
        edge *= growth
    edges += [0.8, 0.86, 0.92, 0.96, 1.0, 1.04, 1.08, 1.16, 1.3, 1.5]
    edge = 1.5 * growth
    while edge < 3000:  # noqa: PLR2004 - typical sleeps
        edges.append(edge)
        edge *= growth
    return (*edges, 4 * edge)


EDGES: Final = _edges()  # of the bins of an age, in typical sleeps
WIDTHS: Final = tuple(high - low for low, high in pairwise(EDGES))
BINS: Final = len(WIDTHS)
LAST_BIN: Final = BINS - 1
_ENDS: Final = (*EDGES[1:-1], math.inf)  # the last bin has none
LEVELS: Final = 32  # for each power of two: scores are compared with 2 % of tolerance
_NEARLY: Final = 0.99
_NOTABLE_LEVELS: Final = 6.0
_LEAST_GAIN: Final = 1e-300
_SAVED: Final = Struct(f"<{2 * BINS}f")


def bin_of(age: float) -> int:
    """The bin of an age in typical sleeps."""
    return min(bisect_right(EDGES, age) - 1, LAST_BIN)


def _prior(steepness: float) -> tuple[float, ...]:
    """Returns per typical sleep in each bin, before any were counted (log-logistic)."""
    middles = [EDGES[1] / 2, *(sum(pair) / 2 for pair in pairwise(EDGES[1:]))]
    powers = [middle**steepness for middle in middles]
    pairs = zip(middles, powers, strict=True)
    return tuple(steepness / middle * power / (1 + power) for middle, power in pairs)


_PRIORS: Final = tuple(map(_prior, _STEEPNESS))
_NEW_PRIOR: Final = _prior(_NEW_STEEPNESS)


class Row:
    """One kind of timeline.

    Attributes:
        returned: weighted returns in each bin.
        exposed: weighted typical sleeps that sleepers have spent in each bin.
        log_gain: returns that an archive of a sleeper in each bin earns per typical sleep of
            keeping it, up to the best horizon; `LEVELS` times their binary logarithm.
        share: the share that returns before that horizon.
        horizon: where that is, in typical sleeps since the stop.
        next_look: for each bin, the next one that differs from it by an eighth in gain.
        is_stale_at_s: when the last four have to be computed again.
        number: of the row in the table.
        prior: returns per typical sleep in each bin, before any were counted.
    """

    __slots__ = (
        *("exposed", "horizon", "is_stale_at_s", "log_gain"),
        *("next_look", "number", "prior", "returned", "share"),
    )

    def __init__(self, number: int, prior: tuple[float, ...]) -> None:
        self.number = number
        self.prior = prior
        self.returned = [0.0] * BINS
        self.exposed = [0.0] * BINS
        self.log_gain = [0.0] * BINS
        self.share = [0.0] * BINS
        self.horizon = [0.0] * BINS
        self.next_look = [BINS] * BINS
        self.is_stale_at_s = -math.inf


class Table:
    """The rows of all kinds. Not thread-safe.

    Counts lose half of their weight in 7 days: a new one weighs more instead of every old one
    less. A row is computed when it is used, at most once an hour, so no moment computes all.

    Attributes:
        weight: what one return or one typical sleep counts now.
        next_weight_s: when `advance` has to be called again.
    """

    def __init__(self) -> None:
        self.weight = 1.0
        self._begin_s: float | None = None  # when the weight was 1
        self.next_weight_s = -math.inf
        self._rows = [
            Row(number, _PRIORS[regularity] if visits else _NEW_PRIOR)
            for number, (visits, regularity, _) in enumerate(
                product(range(VISIT_LEVELS), range(REGULARITY_LEVELS), range(_FAMILY))
            )
        ]

    def row_of(self, visits: int, regularity: int, clock: int, typical_s: float) -> Row:
        """The row of a kind; `typical_s` is its typical sleep in seconds."""
        number = (visits * REGULARITY_LEVELS + regularity) * CLOCK_LEVELS + clock
        return self._rows[number * LENGTH_LEVELS + (typical_s >= _BRIEF_S)]

    def returned(self, row: Row, bin_: int, age: float) -> None:
        """Count a return at an age in typical sleeps; the sleep was counted up to a bin."""
        row.returned[self.left(row, bin_, age)] += self.weight

    def left(self, row: Row, bin_: int, age: float) -> int:
        """Count the sleep of a sleeper that is forgotten; returns the bin of its age."""
        bin_ = self.passed(row, bin_, age)
        row.exposed[bin_] += self.weight * max(0.0, age - EDGES[bin_])
        return bin_

    def passed(self, row: Row, bin_: int, age: float) -> int:
        """Count a sleeper in the bins that it has slept through; returns the bin of its age."""
        while _ENDS[bin_] <= age:
            row.exposed[bin_] += self.weight * WIDTHS[bin_]
            bin_ += 1
        return bin_

    def fresh(self, row: Row, now_s: float) -> Row:
        """The same row, computed within the last hour."""
        if now_s >= row.is_stale_at_s:
            self._compute(row)
            row.is_stale_at_s = now_s + REFRESH_S
        return row

    def advance(self, now_s: float) -> None:
        """Set the weight of new counts."""
        if self._begin_s is None:
            self._begin_s = now_s
        half_lives = (now_s - self._begin_s) / HALF_LIFE_S
        if half_lives > _MOST_HALF_LIVES:
            self._multiply(2.0**-half_lives)
            self._begin_s, half_lives = now_s, 0.0
        self.weight = 2.0**half_lives
        self.next_weight_s = now_s + REFRESH_S

    def save(self) -> bytes:
        """The counts as bytes, in the weight of this moment."""
        scale = 1 / self.weight
        return b"".join(
            _SAVED.pack(*[scale * each for each in row.returned + row.exposed])
            for row in self._rows
        )

    def load(self, data: bytes, now_s: float, saved_s: float) -> None:
        """Take the counts that `save` has returned, in the weight of now."""
        for row, values in zip(self._rows, _SAVED.iter_unpack(data), strict=True):
            row.returned, row.exposed = list(values[:BINS]), list(values[BINS:])
        self._begin_s, self.next_weight_s = now_s, -math.inf
        self._multiply(2.0 ** -(max(0.0, now_s - saved_s) / HALF_LIFE_S))
        self.advance(now_s)

    def _multiply(self, factor: float) -> None:
        for row in self._rows:
            row.returned = [factor * each for each in row.returned]
            row.exposed = [factor * each for each in row.exposed]
            row.is_stale_at_s = -math.inf

    def _compute(self, row: Row) -> None:
        """Compute what a row's sleepers earn.

        It is estimated by its own counts, and where they are few by those of all lengths, of all
        clocks as well, and by the prior.
        """
        first = row.number - row.number % _FAMILY
        family = self._rows[first : first + _FAMILY]
        first = row.number - row.number % LENGTH_LEVELS
        lengths = self._rows[first : first + LENGTH_LEVELS]
        scale = 1 / self.weight
        stay: list[float] = []
        spend: list[float] = []
        for bin_ in range(BINS):
            rate = row.prior[bin_]
            for rows in (family, lengths, (row,)):
                returned = exposed = 0.0
                for each in rows:  # not `sum`, which rounds otherwise from Python 3.12 on
                    returned += each.returned[bin_]
                    exposed += each.exposed[bin_]
                rate = (scale * returned + _TRUST) / (scale * exposed + _TRUST / rate)
            through = math.exp(-rate * WIDTHS[bin_])
            stay.append(through)
            spend.append(-math.expm1(-rate * WIDTHS[bin_]) / rate)
        for bin_ in range(BINS):
            gain, row.share[bin_], row.horizon[bin_] = _best(stay, spend, bin_)
            row.log_gain[bin_] = LEVELS * math.log2(max(gain, _LEAST_GAIN))
        row.next_look = [_next_look(row.log_gain, bin_) for bin_ in range(BINS)]


def _next_look(log_gain: list[float], bin_: int) -> int:
    at = bin_ + 1
    while at < BINS and abs(log_gain[at] - log_gain[bin_]) < _NOTABLE_LEVELS:
        at += 1
    return at


def _best(stay: list[float], spend: list[float], first: int) -> tuple[float, float, float]:
    """The best horizon from the beginning of a bin.

    Args:
        stay: the share of sleepers that sleeps through each bin.
        spend: the time that a sleeper spends in each bin on average.
        first: the bin.

    Returns:
        Returns per time kept, the share that returns, and the end of the horizon.
    """
    asleep, spent = 1.0, 0.0
    gains, shares = [], []
    for bin_ in range(first, BINS):
        spent += asleep * spend[bin_]
        asleep *= stay[bin_]
        shares.append(1.0 - asleep)
        gains.append((1.0 - asleep) / spent)
    best = max(gains)
    # To wait for the last few would change little: the first horizon that is nearly as good.
    at = next(at for at, gain in enumerate(gains) if gain >= _NEARLY * best)
    return best, shares[at], EDGES[first + at + 1]
