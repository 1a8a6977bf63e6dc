"""Latencies of single calls: thousands of them, each timed by itself."""

from __future__ import annotations

import itertools
import os
import time
from array import array
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bbcache.bench.entries import LSN
from bbcache.bench.samples import quantile_of_sorted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bbcache import BasebackupCache, TenantTimelineId

P50: Final = 0.5
P99: Final = 0.99
_CLOCK_CALLS: Final = 10_000
_FIRST_NINE: Final = 1 / 20  # steps of the logarithm in which a distribution is kept
_STEPS: Final = 80  # to the fourth nine


class Distribution(NamedTuple):
    """The latencies of all rounds together.

    Attributes:
        shares: from 0 to 1, ever closer together.
        seconds: the latency that so many calls have not exceeded.
        call_count: how many calls there were.
    """

    shares: Sequence[float]
    seconds: Sequence[float]
    call_count: int


class Latencies:
    """Latencies that are collected round by round. For one thread.

    Args:
        take: returns the latencies of some calls, in nanoseconds.
        share: which quantile is the figure of a round.
    """

    def __init__(self, take: Callable[[], array[int]], share: float) -> None:
        self._take = take
        self._share = share
        self._all: array[int] = array("q")

    def round(self) -> float:
        """Take some; returns their quantile, in seconds."""
        taken = self._take()
        self._all.extend(taken)
        return quantile_of_sorted(sorted(taken), self._share) * 1e-9

    @property
    def count(self) -> int:
        """How many calls were timed so far."""
        return len(self._all)

    def quantile(self, share: float) -> float:
        """A quantile of everything taken so far, in seconds."""
        return quantile_of_sorted(sorted(self._all), share) * 1e-9

    def distribution(self) -> Distribution:
        """Of everything taken so far."""
        ordered = sorted(self._all)
        shares = [1 - 10 ** (-step * _FIRST_NINE) for step in range(_STEPS + 1)]
        shown = [share for share in shares if (1 - share) * len(ordered) >= 1]
        seconds = [quantile_of_sorted(ordered, share) * 1e-9 for share in shown]
        return Distribution(shown, seconds, len(ordered))


def clock_cost_ns() -> int:
    """What reading the clock adds to the latency of a call, in nanoseconds."""
    clock = time.perf_counter_ns
    taken = sorted(-clock() + clock() for _ in range(_CLOCK_CALLS))
    return taken[len(taken) // 2]


def get_latencies(
    cache: BasebackupCache, places: Sequence[TenantTimelineId], count: int, budget_s: float
) -> array[int]:
    """`get` and `close`, of one archive after the other.

    Args:
        cache: it has them all, at `LSN`.
        places: the timelines, which are gone through again and again.
        count: so many calls.
        budget_s: fewer calls where they would take more seconds.

    Returns:
        Nanoseconds, without the cost of the clock.

    Raises:
        LookupError: the cache does not have one of them.
    """
    get, clock, taken = cache.get, time.perf_counter_ns, array("q")
    cost_ns, until_ns = clock_cost_ns(), clock() + int(budget_s * 1e9)
    for tenant_id, timeline_id in itertools.islice(itertools.cycle(places), count):
        started_ns = clock()
        file = get(tenant_id, timeline_id, LSN)
        if file is None:
            raise LookupError(f"the cache has no archive of {tenant_id}/{timeline_id}")
        file.close()
        ended_ns = clock()
        taken.append(max(0, ended_ns - started_ns - cost_ns))
        if ended_ns > until_ns:
            break
    return taken


def open_latencies(paths: Sequence[str], count: int, budget_s: float) -> array[int]:
    """`os.open` and `os.close`, of one file after the other; otherwise as `get_latencies`."""
    clock, taken, flags = time.perf_counter_ns, array("q"), os.O_RDONLY | os.O_CLOEXEC
    cost_ns, until_ns = clock_cost_ns(), clock() + int(budget_s * 1e9)
    for path in itertools.islice(itertools.cycle(paths), count):
        started_ns = clock()
        os.close(os.open(path, flags))
        ended_ns = clock()
        taken.append(max(0, ended_ns - started_ns - cost_ns))
        if ended_ns > until_ns:
            break
    return taken


def diskcache_latencies(
    peer: Any, keys: Sequence[bytes], count: int, budget_s: float
) -> array[int]:
    """What `get(read=True)` and `close` of diskcache take; otherwise as `get_latencies`."""
    get, clock, taken = peer.get, time.perf_counter_ns, array("q")
    cost_ns, until_ns = clock_cost_ns(), clock() + int(budget_s * 1e9)
    for key in itertools.islice(itertools.cycle(keys), count):
        started_ns = clock()
        get(key, read=True).close()
        ended_ns = clock()
        taken.append(max(0, ended_ns - started_ns - cost_ns))
        if ended_ns > until_ns:
            break
    return taken
