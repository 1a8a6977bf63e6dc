"""Latencies of single calls: thousands of them, each timed by itself."""

from __future__ import annotations

import itertools
import math
import os
import time
from array import array
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from benchmarks.entries import LSN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from bbcache import BasebackupCache, TenantTimelineId

P50: Final = 0.5
P99: Final = 0.99
_CLOCK_CALLS: Final = 10_000
# The quantiles of the report.
SHOWN: Final = {"p50": P50, "p90": 0.9, "p99": P99, "p99.9": 0.999}


class Calls(NamedTuple):
    """How many calls one round times.

    Attributes:
        most: the number of calls.
        budget_s: fewer calls are timed where they would take more seconds.
    """

    most: int
    budget_s: float


class Latencies:
    """A round whose figure is a quantile of the latencies of many calls. For one thread.

    Args:
        take: returns the latencies of some calls, in nanoseconds.
        share: the quantile, from 0 to 1.
        beside: a context manager for each round: the work that runs beside the calls.
    """

    def __init__(
        self,
        take: Callable[[], array[int]],
        share: float,
        beside: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._take = take
        self._share = share
        self._beside = beside
        self._all: array[int] = array("q")

    def __call__(self) -> float:
        """Time some calls; return their quantile, in seconds."""
        with self._beside():
            taken = self._take()
        self._all.extend(taken)
        return quantile(sorted(taken), self._share) * 1e-9

    def quantiles(self) -> dict[str, float]:
        """Return quantiles of all calls so far, in seconds."""
        ordered = sorted(self._all)
        return {name: quantile(ordered, share) * 1e-9 for name, share in SHOWN.items()}


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile, linear between two values.

    Args:
        ordered: at least one value, in rising order.
        share: from 0 (the smallest) to 1 (the greatest).
    """
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def get_latencies(
    cache: BasebackupCache, ids: Sequence[TenantTimelineId], calls: Calls
) -> array[int]:
    """Time `get` and `close` of one archive after the other.

    Args:
        cache: it has an archive of each timeline at `LSN`.
        ids: the timelines, in a cycle.
        calls: how many.

    Returns:
        Nanoseconds, without the cost of the clock.

    Raises:
        LookupError: the cache lacks one of them.
    """
    get = cache.get

    def hit(each: TenantTimelineId) -> None:
        tenant_id, timeline_id = each
        file = get(tenant_id, timeline_id, LSN)
        if file is None:
            raise LookupError(f"the cache has no archive of {each}")
        file.close()

    return _latencies(hit, ids, calls)


def open_latencies(paths: Sequence[str], calls: Calls) -> array[int]:
    """Time `os.open` and `os.close` of one file after the other, as `get_latencies` does."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    return _latencies(lambda path: os.close(os.open(path, flags)), paths, calls)


def diskcache_latencies(peer: Any, keys: Sequence[bytes], calls: Calls) -> array[int]:
    """Time `get(read=True)` and `close` of diskcache, as `get_latencies` does."""
    get = peer.get
    return _latencies(lambda key: get(key, read=True).close(), keys, calls)


def _latencies(call: Callable[[Any], None], items: Iterable[object], calls: Calls) -> array[int]:
    clock, taken = time.perf_counter_ns, array("q")
    cost_ns = _cost_ns(lambda _: None)
    until_ns = clock() + int(calls.budget_s * 1e9)
    for item in itertools.islice(itertools.cycle(items), calls.most):
        started_ns = clock()
        call(item)
        ended_ns = clock()
        taken.append(max(0, ended_ns - started_ns - cost_ns))
        if ended_ns > until_ns:
            break
    return taken


def _cost_ns(nothing: Callable[[Any], None]) -> int:
    """Return what the clock and one call of Python add to a latency, in nanoseconds."""
    clock = time.perf_counter_ns
    taken = array("q")
    for _ in range(_CLOCK_CALLS):
        started_ns = clock()
        nothing(None)
        taken.append(clock() - started_ns)
    return sorted(taken)[len(taken) // 2]
