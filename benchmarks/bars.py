"""A bar: two contenders of a case, and the ratio that is wanted."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import pytest

from benchmarks.latency import quantile
from benchmarks.units import format_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.rounds import Rounds


class Sense(StrEnum):
    """The direction of a bar."""

    AT_MOST = "at most"  # this many times the cost of the peer
    AT_LEAST = "at least"  # this many times faster than the peer


class Verdict(StrEnum):
    """The result of a bar."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    MISSING = "peer missing"
    ERROR = "error"


@dataclass(frozen=True)
class Bar:
    """One line of the table of ratios.

    Attributes:
        name: its name, which ``pytest -k`` takes.
        what: the contender that is measured.
        against: the contender that it is compared with; empty where the figure is absolute.
        sense: whether the figure is to be small or great.
        limit: the bar.
        unit: of figure and limit: ``x`` for a ratio, else ``bytes`` or ``MiB``.
    """

    name: str
    what: str
    against: str
    sense: Sense
    limit: float
    unit: str = "x"

    def is_met_by(self, value: float, limit: float | None = None) -> bool:
        """Whether a figure is as good as the bar, or as another limit."""
        wanted = self.limit if limit is None else limit
        return value <= wanted if self.sense == Sense.AT_MOST else value >= wanted

    def limit_text(self) -> str:
        """Return the bar itself: ``at most 1.2x``."""
        figure = format_figure(self.limit, self.unit)
        word = " faster" if self.limit > 1 else " as fast"
        return f"{self.sense} {figure}" + (word if self.sense == Sense.AT_LEAST else "")


@dataclass(frozen=True)
class Outcome(Bar):
    """A bar and its figures.

    Attributes:
        group: the group of its case.
        verdict: the result.
        value: the median of all rounds, in the bar's unit; None where there is none.
        spread: half the distance between the quartiles, as a share of `value`; None where
            there is only one round.
        values: one a round.
        what_samples: the measured figures, one a round: in seconds, or in `unit`.
        against_samples: the same of the peer.
        reason: why there is no figure, with a hint; empty where there is one.
    """

    group: str = ""
    verdict: Verdict = Verdict.ERROR
    value: float | None = None
    spread: float | None = None
    values: Sequence[float] = ()
    what_samples: Sequence[float] = ()
    against_samples: Sequence[float] = ()
    reason: str = ""


def case(group: str, *bars: Bar) -> pytest.MarkDecorator:
    """Mark a test as a case: it adds contenders to the fixture `rounds` and runs them.

    Args:
        group: the name of its table.
        bars: the ratios of its contenders, each with its limit.
    """
    return pytest.mark.case(group, bars)


def judge(bar: Bar, group: str, rounds: Rounds) -> Outcome:
    """Hold a bar against the rounds of its case."""
    for name in filter(None, (bar.what, bar.against)):
        if name in rounds.missing:
            return without_figure(bar, group, Verdict.MISSING, rounds.missing[name])
        if name in rounds.failed:
            return without_figure(bar, group, Verdict.ERROR, rounds.failed[name])
    what = rounds.samples[bar.what]
    against = rounds.samples[bar.against] if bar.against else ()
    values = _values(bar, what, against)
    value = statistics.median(values)
    return Outcome(
        **asdict(bar),
        group=group,
        verdict=Verdict.PASS if bar.is_met_by(value) else Verdict.FAIL,
        value=value,
        spread=spread_of(values),
        values=values,
        what_samples=what,
        against_samples=against,
    )


def without_figure(bar: Bar, group: str, verdict: Verdict, reason: str) -> Outcome:
    """Return the outcome of a bar that was not measured."""
    return Outcome(**asdict(bar), group=group, verdict=verdict, reason=reason)


def spread_of(values: Sequence[float]) -> float | None:
    """Return half the distance between the quartiles as a share of the median.

    None where there is only one value, or the median is 0.
    """
    median, ordered = statistics.median(values), sorted(values)
    if len(values) == 1 or median == 0:
        return None
    return (quantile(ordered, 0.75) - quantile(ordered, 0.25)) / 2 / abs(median)


def _values(bar: Bar, what: Sequence[float], against: Sequence[float]) -> Sequence[float]:
    """Return the ratio of each round, or the figures of a bar without a peer."""
    if not bar.against:
        return what
    above, below = (what, against) if bar.sense == Sense.AT_MOST else (against, what)
    if any(value <= 0 for value in below):
        raise ValueError(f"{bar.name}: a figure of 0 has no ratio")
    return [one / other for one, other in zip(above, below, strict=True)]
