"""The kinds of timelines: their parameters, how long they run, and how long they sleep.

Published are: Azure's trace of 2019 (45 % of apps at most hourly, 81 % at most once a minute;
timers are 16 % of the functions), Neon's documents (5 minutes to suspend) and its pull requests
12230 (an entry is usually used once) and 12343 (pageservers at 1,000 entries of about 25 kB).
Office hours, the mix of timers, medians, deaths, sizes and the cost of a miss are invented.

The order of random draws is a part of each definition: another order is another fleet.
"""

# ruff: noqa: D102, ARG002 - `run` and `sleep` are those of `Kind`
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

HOUR_S, DAY_S = 3600.0, 86400.0
NEVER_S: Final = 1e18
_SUSPEND_S: Final = 300.0  # of a compute node without connections
_MOST_REDRAWS: Final = 12
_MOST_WEEKEND_SHIFTS: Final = 3
_FIRST_SATURDAY: Final = 5
_FIRST_FRIDAY: Final = 4


def log_normal(rng: Generator, median: Floats, sigma: float) -> Floats:
    """Draw from log-normal laws of these medians."""
    return median * np.exp(sigma * rng.standard_normal(np.shape(median)))


class Kind:
    """One kind of timeline: its parameters, how long it runs, and its law of sleeping.

    Args:
        rng: draws the parameters.
        count: timelines.
        span_s: the time of the simulation.

    Attributes:
        births_s: when each is created.
        mean_deletion_s: the mean time from the last stop to the deletion; None without one.
    """

    life_s: float | None = None  # the mean life of one that is deleted

    def __init__(self, rng: Generator, count: int, span_s: float) -> None:
        self.births_s = rng.uniform(0, 1, count) * np.minimum(span_s, 2 * DAY_S)
        self.mean_deletion_s: float | None = None

    def run(self, rng: Generator, of: Ints) -> Floats:
        """Draw how long each runs until it stops."""
        return rng.exponential(300, len(of)) + 20 + _SUSPEND_S

    def sleep(self, rng: Generator, of: Ints, now_s: Floats) -> Floats:
        """Draw how long each sleeps that stops at `now_s`; `NEVER_S` if it never starts."""
        raise NotImplementedError


class LogNormal(Kind):
    """Sleeps of about three hours at the median, of any length."""

    def __init__(self, rng: Generator, count: int, span_s: float) -> None:
        super().__init__(rng, count, span_s)
        self.medians_s = log_normal(rng, np.full(count, 3 * HOUR_S), 1.8)
        self.births_s = rng.uniform(0, 1, count) * np.minimum(span_s, self.medians_s)

    def sleep(self, rng: Generator, of: Ints, now_s: Floats) -> Floats:
        return log_normal(rng, self.medians_s[of], 1.0)


class Office(Kind):
    """Used in working hours of one of four time zones, with short gaps."""

    gap_sigma = 1.0

    def __init__(self, rng: Generator, count: int, span_s: float) -> None:
        super().__init__(rng, count, span_s)
        zones_s = [0.0, -6 * HOUR_S, HOUR_S, 8 * HOUR_S]
        self.zones_s = rng.choice(zones_s, count, p=[0.2, 0.4, 0.2, 0.2])
        self.mornings_s = rng.normal(9, 0.8, count) * HOUR_S
        self.evenings_s = rng.normal(17.7, 1.2, count) * HOUR_S
        self.gaps_s = log_normal(rng, np.full(count, 30 * 60.0), 0.9)
        self.weekend_shares = rng.choice([0.05, 0.5], count, p=[0.85, 0.15])

    def run(self, rng: Generator, of: Ints) -> Floats:
        return rng.exponential(900, len(of)) + 300

    def sleep(self, rng: Generator, of: Ints, now_s: Floats) -> Floats:
        zones_s, mornings_s = self.zones_s[of], self.mornings_s[of]
        weekend_shares, count = self.weekend_shares[of], len(of)
        again_s = now_s + log_normal(rng, self.gaps_s[of], self.gap_sigma) + 30
        local_s = again_s + zones_s
        day = np.floor(local_s / DAY_S)
        in_day_s = local_s - day * DAY_S
        is_late = in_day_s > self.evenings_s[of] + rng.normal(0, 0.5 * HOUR_S, count)
        is_early = in_day_s < mornings_s - HOUR_S
        is_weekend = (day % 7 >= _FIRST_SATURDAY) & (rng.random(count) > weekend_shares)
        is_moved = is_late | is_early | is_weekend
        next_day = day + is_late
        for _ in range(_MOST_WEEKEND_SHIFTS):
            is_off = (next_day % 7 >= _FIRST_SATURDAY) & (rng.random(count) > weekend_shares)
            next_day = next_day + np.where(is_off & is_moved, 1, 0)
        is_skipped = is_moved & (rng.random(count) < 0.05) & (next_day % 7 < _FIRST_FRIDAY)
        next_day = next_day + is_skipped
        morning_s = next_day * DAY_S + mornings_s + rng.normal(0, 0.4 * HOUR_S, count) - zones_s
        return np.where(is_moved, np.maximum(morning_s, now_s + 30), again_s) - now_s


class Cron(Kind):
    """Started by a timer, with a few visits of people between."""

    def __init__(self, rng: Generator, count: int, span_s: float) -> None:
        super().__init__(rng, count, span_s)
        periods_s = [900.0, 1800.0, 3600.0, 6 * HOUR_S, 24 * HOUR_S]
        self.periods_s = rng.choice(periods_s, count, p=[0.12, 0.15, 0.33, 0.12, 0.28])
        self.phases_s = np.floor(rng.uniform(0, 1440, count)) * 60

    def run(self, rng: Generator, of: Ints) -> Floats:
        return rng.exponential(30, len(of)) + _SUSPEND_S

    def sleep(self, rng: Generator, of: Ints, now_s: Floats) -> Floats:
        periods_s, phases_s = self.periods_s[of], self.phases_s[of]
        turns = np.ceil((now_s + 20 - phases_s) / periods_s)
        due_s = turns * periods_s + phases_s + rng.exponential(4, len(of))
        is_by_hand = rng.random(len(of)) < 0.03
        parts: Floats = np.where(is_by_hand, rng.random(len(of)), 1.0)
        sleeps_s: Floats = parts * (due_s - now_s)
        return sleeps_s


class Developer(Kind):
    """Sessions of short gaps, and days between them."""

    def __init__(self, rng: Generator, count: int, span_s: float) -> None:
        super().__init__(rng, count, span_s)
        self.stay_shares = rng.beta(8, 2, count)
        self.short_s = log_normal(rng, np.full(count, 20 * 60.0), 0.6)
        self.long_s = log_normal(rng, np.full(count, 2.5 * DAY_S), 0.6)

    def sleep(self, rng: Generator, of: Ints, now_s: Floats) -> Floats:
        stays = rng.random(len(of)) < self.stay_shares[of]
        short_s = log_normal(rng, self.short_s[of], 0.8)
        return np.where(stays, short_s, log_normal(rng, self.long_s[of], 1.0))


class Agent(Kind):
    """A branch for an AI agent: minutes apart, and soon gone."""

    life_s = 3.9 * DAY_S

    def __init__(self, rng: Generator, count: int, span_s: float) -> None:
        super().__init__(rng, count, span_s)
        self.births_s = rng.uniform(-3 * DAY_S, span_s, count)
        self.gaps_s = log_normal(rng, np.full(count, 8 * 60.0), 0.8)
        self.mean_deletion_s = 3 * DAY_S

    def run(self, rng: Generator, of: Ints) -> Floats:
        return rng.exponential(15, len(of)) + 60

    def sleep(self, rng: Generator, of: Ints, now_s: Floats) -> Floats:
        dice = rng.random(len(of))
        sleeps_s = log_normal(rng, self.gaps_s[of], 0.9)
        pauses_s = log_normal(rng, np.full(len(of), DAY_S), 0.8)
        sleeps_s = np.where(dice < 0.12 * 0.3, pauses_s, sleeps_s)
        return np.where(dice > 1 - 0.12 * 0.7, NEVER_S, sleeps_s)


class ContinuousIntegration(Kind):
    """A branch for a run of tests: usually started once."""

    life_s = 1.1 * DAY_S

    def __init__(self, rng: Generator, count: int, span_s: float) -> None:
        super().__init__(rng, count, span_s)
        self.births_s = rng.uniform(-2 * DAY_S, span_s, count)
        self.mean_deletion_s = DAY_S

    def run(self, rng: Generator, of: Ints) -> Floats:
        return rng.exponential(240, len(of)) + _SUSPEND_S

    def sleep(self, rng: Generator, of: Ints, now_s: Floats) -> Floats:
        is_again = rng.random(len(of)) < 0.2
        return np.where(is_again, log_normal(rng, np.full(len(of), 900.0), 1.0), NEVER_S)


class Preview(Office):
    """A branch for a change under review: working hours, for some days."""

    life_s = 5 * DAY_S

    def __init__(self, rng: Generator, count: int, span_s: float) -> None:
        super().__init__(rng, count, span_s)
        self.births_s = rng.uniform(-5 * DAY_S, span_s, count)
        self.gaps_s = log_normal(rng, np.full(count, 1.5 * HOUR_S), 0.7)
        self.mean_deletion_s = DAY_S

    def sleep(self, rng: Generator, of: Ints, now_s: Floats) -> Floats:
        sleeps_s = super().sleep(rng, of, now_s)
        return np.where(sleeps_s > rng.exponential(4 * DAY_S, len(of)), NEVER_S, sleeps_s)


class AlwaysOn(Kind):
    """Restarted once a week."""

    def run(self, rng: Generator, of: Ints) -> Floats:
        return 7 * DAY_S + rng.uniform(-HOUR_S, HOUR_S, len(of))

    def sleep(self, rng: Generator, of: Ints, now_s: Floats) -> Floats:
        return rng.uniform(5, 60, len(of))


class Dormant(Kind):
    """Started every few days."""

    def __init__(self, rng: Generator, count: int, span_s: float) -> None:
        super().__init__(rng, count, span_s)
        self.births_s = rng.uniform(0, span_s / 2, count)

    def run(self, rng: Generator, of: Ints) -> Floats:
        return np.full(len(of), 310.0)

    def sleep(self, rng: Generator, of: Ints, now_s: Floats) -> Floats:
        return log_normal(rng, np.full(len(of), 5 * DAY_S), 0.7)


class AzureLike(Kind):
    """Mean gaps by the published quantiles, in three shapes: timers, Poisson and bursts."""

    def __init__(self, rng: Generator, count: int, span_s: float) -> None:
        gaps_s = DAY_S / 10 ** rng.normal(1.603, 1.772, 6 * count)
        gaps_s = gaps_s[(gaps_s > 60) & (gaps_s < 30 * DAY_S)][:count]
        super().__init__(rng, count, span_s)
        self.gaps_s = gaps_s
        self.shapes = rng.choice([0, 1, 2], count, p=[0.2, 0.3, 0.5])
        self.births_s = rng.uniform(0, 1, count) * np.minimum(span_s / 2, gaps_s)

    def run(self, rng: Generator, of: Ints) -> Floats:
        return _SUSPEND_S + rng.exponential(300, len(of))

    def sleep(self, rng: Generator, of: Ints, now_s: Floats) -> Floats:
        gaps_s, shapes = self.gaps_s[of], self.shapes[of]
        gaps_s = np.where(shapes == 0, np.maximum(gaps_s, 400), gaps_s)
        arrivals_s = self._gap(rng, gaps_s, shapes)
        for _ in range(_MOST_REDRAWS):
            is_awake = arrivals_s <= _SUSPEND_S  # the compute node still runs
            if not is_awake.any():
                break
            arrivals_s[is_awake] = self._gap(rng, gaps_s[is_awake], shapes[is_awake])
        return np.maximum(arrivals_s - _SUSPEND_S, 5.0)

    @staticmethod
    def _gap(rng: Generator, gaps_s: Floats, shapes: Ints) -> Floats:
        timer_s = gaps_s * (1 + 0.02 * rng.standard_normal(len(gaps_s)))
        poisson_s = rng.exponential(gaps_s)
        burst_s = log_normal(rng, gaps_s * math.exp(-(1.5**2) / 2), 1.5)
        return np.where(shapes == 0, timer_s, np.where(shapes == 1, poisson_s, burst_s))


class Inverse(Kind):
    """The longer the last sleep, the shorter the next one: habits turned upside down.

    Not for draws of the true law, which depends on the last sleep.
    """

    def __init__(self, rng: Generator, count: int, span_s: float) -> None:
        super().__init__(rng, count, span_s)
        self.last_s = log_normal(rng, np.full(count, 3 * HOUR_S), 2.2)

    def sleep(self, rng: Generator, of: Ints, now_s: Floats) -> Floats:
        wanted_s = log_normal(rng, (3 * HOUR_S) ** 2 / self.last_s[of], 0.1)
        self.last_s[of] = np.clip(wanted_s, 300.0, 4 * DAY_S)
        sleeps_s: Floats = self.last_s[of]
        return sleeps_s
