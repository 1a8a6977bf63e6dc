"""The table on the terminal, and old ratios beside new ones."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Final

from bbcache.bench.bars import Sense, Verdict
from bbcache.bench.units import format_figure, format_spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bbcache.bench.bars import Bar, Outcome
    from bbcache.bench.contest import Contest
    from bbcache.bench.report import Report

_MARKS: Final = {
    Verdict.PASS: "pass",
    Verdict.FAIL: "FAIL",
    Verdict.MISSING: "----",
    Verdict.ERROR: "ERR!",
}
_SHOWN: Final = ("CPU", "file system", "Python")
# A change that is small beside this, or beside the spreads, is none.
_NOISE: Final = 0.03


def table(report: Report) -> Iterator[str]:
    """The lines of the table: where it was measured, then for each bar two."""
    machine = ", ".join(report.machine[name] for name in _SHOWN if name in report.machine)
    yield f"bbcache {report.versions.get('bbcache', '')}, {report.counts['name']} counts: {machine}"
    yield ""
    width = max((len(outcome.bar.name) for outcome in report.outcomes), default=0)
    for group, outcomes in groupby(report.outcomes, key=lambda outcome: outcome.group):
        yield f"{group}"
        for outcome in outcomes:
            yield f"  {_MARKS[outcome.verdict]}  {outcome.bar.name:<{width}}  {_figures(outcome)}"
            yield f"        {describe(outcome.bar)}"
            yield from (f"        {line}" for line in outcome.reason.split("\n") if line)
        yield ""
    yield from report.figures.notes
    yield summary(report.outcomes)


def describe(bar: Bar) -> str:
    """What is measured, and against what."""
    return f"{bar.what}  vs  {bar.against}" if bar.against else bar.what


def limit_text(bar: Bar) -> str:
    """The bar itself: ``at most 1.2x``."""
    what = format_figure(bar.limit, bar.unit)
    word = " faster" if bar.limit > 1 else " as fast"
    return f"{bar.sense} {what}" + (word if bar.sense is Sense.AT_LEAST else "")


def _figures(outcome: Outcome) -> str:
    bar = outcome.bar
    if outcome.value is None:
        return f"{outcome.verdict:<18}  {limit_text(bar)}"
    figure = format_figure(outcome.value, bar.unit)
    rounds = f"{len(outcome.values)} round{'s' if len(outcome.values) != 1 else ''}"
    return f"{figure:>10} {format_spread(outcome.spread):>6}  {limit_text(bar):<22} {rounds}"


def summary(outcomes: Iterable[Outcome]) -> str:
    """One line: how many bars are met, and how many are not."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    parts = [f"{counts[Verdict.PASS]} of {counts.total()} bars met"]
    parts += [f"{counts[Verdict.FAIL]} not met"] * bool(counts[Verdict.FAIL])
    parts += [f"{counts[Verdict.MISSING]} without their peer"] * bool(counts[Verdict.MISSING])
    parts += [f"{counts[Verdict.ERROR]} could not be measured"] * bool(counts[Verdict.ERROR])
    return ", ".join(parts)


def comparison(old: Report, new: Report) -> Iterator[str]:
    """The lines of a table of old and new ratios, of the bars that both runs have."""
    before = {outcome.bar.name: outcome for outcome in old.outcomes}
    yield f"then: {old.started_at}, {old.counts['name']} counts"
    width = max((len(outcome.bar.name) for outcome in new.outcomes), default=0)
    for outcome in new.outcomes:
        was = before.get(outcome.bar.name)
        line = f"  {outcome.bar.name:<{width}}  {_figure(was):>10} -> {_figure(outcome):>10}"
        yield f"{line}  {_change(was, outcome)}".rstrip()


def _figure(outcome: Outcome | None) -> str:
    if outcome is None or outcome.value is None:
        return "-"
    return format_figure(outcome.value, outcome.bar.unit)


def _change(was: Outcome | None, now: Outcome) -> str:
    if was is None or not was.value or not now.value:
        return ""
    share = now.value / was.value - 1
    noise = max(_NOISE, was.spread or 0, now.spread or 0)
    if abs(share) <= noise:
        return "about the same"
    is_better = (share < 0) is (now.bar.sense is Sense.AT_MOST)
    return f"{'better' if is_better else 'worse'} by {abs(share):.0%}"


def listing(contests: Iterable[Contest]) -> Iterator[str]:
    """The lines that name every bar and group."""
    for contest in contests:
        yield contest.group
        for bar in contest.bars:
            yield f"  {bar.name}: {limit_text(bar)}"
            yield f"        {describe(bar)}"
        if not contest.bars:
            yield "  for the plots of --html alone"
