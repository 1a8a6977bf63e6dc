"""The table of ratios in pytest's summary."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Final

from benchmarks.bars import Verdict
from benchmarks.units import format_figure, format_spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benchmarks.bars import Outcome

_MARKS: Final = {
    Verdict.PASS: "pass",
    Verdict.FAIL: "FAIL",
    Verdict.MISSING: "----",
    Verdict.ERROR: "ERR!",
}


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of the table: two for each bar."""
    width = max((len(outcome.name) for outcome in outcomes), default=0)
    for group, members in groupby(outcomes, key=lambda outcome: outcome.group):
        yield group
        for outcome in members:
            yield f"  {_MARKS[outcome.verdict]}  {outcome.name:<{width}}  {_figures(outcome)}"
            against = f"  vs  {outcome.against}" * bool(outcome.against)
            yield f"        {outcome.what}{against}"
            yield from (f"        {line}" for line in outcome.reason.split("\n") if line)
    yield summary(outcomes)


def _figures(outcome: Outcome) -> str:
    if outcome.value is None:
        return f"{outcome.verdict:<18}  {outcome.limit_text()}"
    figure = format_figure(outcome.value, outcome.unit)
    rounds = f"{len(outcome.values)} round{'s' if len(outcome.values) != 1 else ''}"
    return f"{figure:>10} {format_spread(outcome.spread):>6}  {outcome.limit_text():<22} {rounds}"


def summary(outcomes: Iterable[Outcome]) -> str:
    """Return one line: how many bars are met, and how many are not."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    parts = [f"{counts[Verdict.PASS]} of {counts.total()} bars met"]
    parts += [f"{counts[Verdict.FAIL]} not met"] * bool(counts[Verdict.FAIL])
    parts += [f"{counts[Verdict.MISSING]} without their peer"] * bool(counts[Verdict.MISSING])
    parts += [f"{counts[Verdict.ERROR]} could not be measured"] * bool(counts[Verdict.ERROR])
    return ", ".join(parts)
