"""Profiles as tables of Markdown, and put into a page of the docs."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final

from bbcache.bench.bars import Sense
from bbcache.errors import ConfigError
from benchmarks.profiling.steps import GIL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bbcache.bench.latency import Distribution
    from benchmarks.profiling.accounts import Account
    from benchmarks.profiling.stage import Profile

_LEAST_SHARE: Final = 0.02
_MOST_CALLS: Final = 12
_MOST_FUNCTIONS: Final = 12
_LEAST_CALLS: Final = 0.5
_QUANTILES: Final = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999))
_MANY: Final = 100
_HARDLY_WAITING: Final = 0.95
_ROUNDED: Final = 0.005
_ONE: Final = 1.05  # threads, as far as samples can tell
_BLOCK: Final = "<!-- profile: {name} -->\n{body}<!-- end of profile -->\n"
_MARK: Final = re.compile(r"<!-- profile: (\S+) -->\n")


def lines(profile: Profile) -> Iterator[str]:
    """A profile as it stands in the docs."""
    ours, peers = profile.samples.ours, profile.samples.peers
    yield from _headline(profile)
    yield ""
    if ours.timed_count and not profile.latencies:
        yield from _costs(ours, peers, profile.cost_ratio)
    else:
        yield from _shares_and_rest(ours)
    if profile.latencies:
        yield ""
        yield from _quantiles(profile)
    if profile.samples.holders is not None:
        yield ""
        yield "| who holds the GIL, at what | share |"
        yield "| --- | --- |"
        shares = merged(profile.samples.holders.shares(), {})
        yield from (f"| {step} | {_percent(share)} |" for step, share, _ in shares)


def _headline(profile: Profile) -> Iterator[str]:
    bar, seen = profile.bar, profile.samples
    figure = profile.cost_ratio if bar.sense is Sense.AT_MOST else 1 / profile.cost_ratio
    word = "" if bar.sense is Sense.AT_MOST else " as fast"
    parts = [f"**`{bar.name}`**: {_times(figure)}{word} (*{bar.what}*, against *{bar.against}*)"]
    threads = seen.ours.threads()
    if threads > _ONE:
        parts.append(f"{threads:.1f} threads at work at once")
    parts.append(f"{seen.ours.total:,} samples")
    yield "; ".join(parts) + "."


def _costs(ours: Account, peers: Account | None, cost_ratio: float) -> Iterator[str]:
    """Shares of bbcache's time, and the same in times of all that the peer takes."""
    scale = cost_ratio * ours.threads()
    theirs = {} if peers is None else peers.shares()
    column = ["", " peer |"][peers is not None]
    yield f"| step | share | in times of the peer |{column}"
    yield "| --- | --- | --- |" + " --- |" * (peers is not None)
    rows = merged(ours.shares(), theirs)
    peer_scale = 1.0 if peers is None else peers.threads()
    for step, share, peer_share in rows:
        cell = f" {_cell(peer_share * peer_scale)} |" if peers is not None else ""
        yield f"| {step} | {_percent(share)} | {_cell(share * scale)} |{cell}"
    last = f" {_cell(peer_scale)} |" if peers is not None else ""
    name = "all" if ours.threads() < _ONE else "all threads"
    yield f"| {name} | 100% | {_cell(scale)} |{last}"


def merged(
    ours: Mapping[str, float], theirs: Mapping[str, float]
) -> list[tuple[str, float, float]]:
    """Steps with both sides' shares; those that are small on both are one row at the end.

    Args:
        ours: shares by step, in the order of the rows.
        theirs: the same of the peer.
    """
    names = [*ours, *(step for step in theirs if step not in ours)]
    rows = [(step, ours.get(step, 0.0), theirs.get(step, 0.0)) for step in names]
    shown = [row for row in rows if max(row[1], row[2]) >= _LEAST_SHARE]
    small = [row for row in rows if max(row[1], row[2]) < _LEAST_SHARE]
    if small:
        name = f"{len(small)} more, each below {_LEAST_SHARE:.0%}"
        shown.append((name, sum(row[1] for row in small), sum(row[2] for row in small)))
    return shown


def _shares_and_rest(found: Account) -> Iterator[str]:
    """Shares of all of the time, and of what is left when nobody waits for the GIL."""
    shares = found.shares()
    work = 1.0 - shares.get(GIL, 0.0)
    if work > _HARDLY_WAITING:
        yield "| step | share |"
        yield "| --- | --- |"
        yield from (f"| {step} | {_percent(share)} |" for step, share, _ in merged(shares, {}))
        return
    of_work = {step: share / work for step, share in shares.items() if step != GIL}
    yield "| step | share | share of the rest |"
    yield "| --- | --- | --- |"
    for step, share, rest in merged(shares, of_work):
        yield f"| {step} | {_percent(share)} | {'' if step == GIL else _percent(rest)} |"


def _percent(share: float) -> str:
    if share >= _ROUNDED:
        return f"{share:.0%}"
    return "below 1%" if share else ""


def _quantiles(profile: Profile) -> Iterator[str]:
    """Latencies of both sides, in times of the peer's p50."""
    bar, latencies = profile.bar, profile.latencies
    ours, theirs = latencies[bar.what], latencies[bar.against]
    unit_s = quantile_of(theirs, 0.5)
    yield "| latency, in times of the peer's p50 | bbcache | peer |"
    yield "| --- | --- | --- |"
    for name, share in _QUANTILES:
        mine, other = (quantile_of(each, share) / unit_s for each in (ours, theirs))
        yield f"| {name} | {_times(mine)} | {_times(other)} |"


def quantile_of(distribution: Distribution, share: float) -> float:
    """The latency that this share of the calls has not exceeded, in seconds.

    Of the shares that the distribution has, the first that is not below it counts.
    """
    pairs = zip(distribution.shares, distribution.seconds, strict=True)
    found = (seconds for each, seconds in pairs if each >= share - 1e-9)
    return next(found, distribution.seconds[-1])


def function_lines(shares: Mapping[str, float]) -> Iterator[str]:
    """The functions that have taken most, given in that order."""
    for name, share in itertools.islice(shares.items(), _MOST_FUNCTIONS):
        if share >= _LEAST_SHARE:
            yield f"{share:>6.0%}  {name}"


def call_lines(calls: Mapping[str, float]) -> Iterator[str]:
    """The system calls of a round, the most frequent first."""
    ordered = sorted(calls.items(), key=lambda item: -item[1])
    for name, count in ordered[:_MOST_CALLS]:
        if count >= _LEAST_CALLS:
            yield f"{count:>12,.1f}  {name}"


def _cell(times: float) -> str:
    return _times(times) if times >= 0.005 else ""


def _times(value: float) -> str:
    return f"{value:,.0f}x" if value >= _MANY else f"{value:.2f}x"


def marked_bars(page: str) -> list[str]:
    """The bars whose profiles a page of the docs has."""
    return _MARK.findall(page)


def picture_in(page: str, name: str) -> str | None:
    """The picture of a bar's profile that a page shows, as the page names it."""
    found = re.search(rf"\]\(([^)\s]*\bprofile-{re.escape(name)}\.svg)\)", page)
    return found[1] if found else None


def put_into(page: str, name: str, table: str) -> str:
    """A page with a new profile in the place of the old one.

    Args:
        page: its text, with ``<!-- profile: NAME -->`` and ``<!-- end of profile -->``.
        name: the bar.
        table: the profile, in whole lines.

    Raises:
        ConfigError: the page has no place for it.
    """
    start = re.escape(f"<!-- profile: {name} -->\n")
    block = _BLOCK.format(name=name, body=table)
    found = re.compile(rf"{start}.*?<!-- end of profile -->\n", re.DOTALL)
    text, count = found.subn(lambda _: block, page, count=1)
    if count == 0:
        raise ConfigError(
            f"the page has no place for the profile of {name}\n"
            f"hint: Put `<!-- profile: {name} -->` and `<!-- end of profile -->` where it shall be."
        )
    return text
