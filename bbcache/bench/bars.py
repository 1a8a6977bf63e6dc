"""A bar: what is measured, against what, and how good the ratio has to be."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from bbcache.bench.samples import ratios, summarize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Sense(StrEnum):
    """How a bar is meant."""

    AT_MOST = "at most"  # so many times what the other one costs
    AT_LEAST = "at least"  # so many times better than the other one


class Verdict(StrEnum):
    """What came of a bar."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    MISSING = "peer missing"
    ERROR = "error"


class Bar(NamedTuple):
    """One line of the table.

    Attributes:
        name: what the line is called on the command line and in files.
        what: what is measured, by the name it has in the measurements.
        against: what it is compared with; empty where the figure stands for itself.
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
        return value <= wanted if self.sense is Sense.AT_MOST else value >= wanted


class Outcome(NamedTuple):
    """What was measured for a bar.

    Attributes:
        bar: the bar.
        group: what it was measured together with.
        verdict: what came of it.
        value: the median of all rounds, in the bar's unit; None where there is none.
        spread: half the distance between the quartiles, as a share of `value`.
        values: one a round.
        what_samples: what was measured, one a round: in seconds, or in `bar.unit`.
        against_samples: the same of what it is compared with.
        reason: why there is no figure, with a hint; empty where there is one.
    """

    bar: Bar
    group: str
    verdict: Verdict
    value: float | None = None
    spread: float | None = None
    values: Sequence[float] = ()
    what_samples: Sequence[float] = ()
    against_samples: Sequence[float] = ()
    reason: str = ""


def judge(
    bar: Bar,
    group: str,
    samples: Mapping[str, Sequence[float]],
    missing: Mapping[str, str],
    failed: Mapping[str, str],
) -> Outcome:
    """Hold a bar against what was measured.

    Args:
        bar: the bar.
        group: what it was measured together with.
        samples: by the name of what was measured, one sample a round.
        missing: by name, which peer is not here, and how to get it.
        failed: by name, what went wrong.
    """
    wanted = [name for name in (bar.what, bar.against) if name]
    for name in wanted:
        if name in missing:
            return Outcome(bar, group, Verdict.MISSING, reason=missing[name])
        if name in failed:
            return Outcome(bar, group, Verdict.ERROR, reason=failed[name])
    what = samples[bar.what]
    against = samples[bar.against] if bar.against else ()
    values = _values(bar, what, against)
    value, spread, _ = summarize(values)
    verdict = Verdict.PASS if bar.is_met_by(value) else Verdict.FAIL
    rows = (tuple(values), tuple(what), tuple(against))
    return Outcome(bar, group, verdict, value, spread, *rows)


def _values(bar: Bar, what: Sequence[float], against: Sequence[float]) -> Sequence[float]:
    if not bar.against:
        return what
    return ratios(what, against) if bar.sense is Sense.AT_MOST else ratios(against, what)
