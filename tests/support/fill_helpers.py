"""What the tests of `get_or_prepare` share."""

from __future__ import annotations

import functools
import gzip
from typing import TYPE_CHECKING, Final, TypeVar

from support.cache_helpers import DEADLINE_S, LSN_A, Worker
from support.helpers import wait_until
from support.threads import waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from support.cache_helpers import Harness

    from bbcache import BasebackupFile, Lsn
    from bbcache.testing import MemoryTimeline

_T = TypeVar("_T")
_CALL: Final = "get_or_prepare"
_BATCH: Final = 50


def fill(
    harness: Harness,
    timeline: MemoryTimeline,
    lsn: Lsn = LSN_A,
    timeout_s: float | None = DEADLINE_S,
) -> BasebackupFile:
    """What `get_or_prepare` returns."""
    shard_id = harness.shard_of(timeline)
    return harness.cache.get_or_prepare(shard_id, timeline.timeline_id, lsn, timeout_s)


def filled(
    harness: Harness,
    timeline: MemoryTimeline,
    lsn: Lsn = LSN_A,
    timeout_s: float | None = DEADLINE_S,
) -> tuple[str, bytes]:
    """Where the archive came from, and the tarball in it."""
    with fill(harness, timeline, lsn, timeout_s) as file:
        archive = file.read()
        assert len(archive) == file.size_bytes
        assert file.lsn == lsn
        return str(file.source), gzip.decompress(archive)


def fillers(
    harness: Harness,
    timeline: MemoryTimeline,
    count: int,
    lsn: Lsn = LSN_A,
    timeout_s: float | None = None,
) -> list[Worker]:
    """Start threads that all wait for the one call."""
    ask = functools.partial(filled, harness, timeline, lsn, timeout_s)
    return all_waiting([functools.partial(Worker, ask)] * count)


def all_waiting(starts: Iterable[Callable[[], _T]]) -> list[_T]:
    """Call each of `starts`, wait until as many builds are waited for, and return the results.

    They are called in batches, since `support.threads` sees only the hundred newest threads.
    """
    seen = {*waiting(_CALL)}
    before = len(seen)
    started: list[_T] = []

    def all_wait() -> bool:
        seen.update(waiting(_CALL))
        return len(seen) == before + len(started)

    for start in starts:
        started.append(start())
        if len(started) % _BATCH == 0:
            wait_until(all_wait)
    wait_until(all_wait)
    return started


def waiting_callers() -> int:
    """How many threads of this process wait for a build."""
    return len(waiting(_CALL))


def fills(harness: Harness) -> dict[str, int]:
    """How many calls ended how."""
    return harness.counts("bbcache_fills_total")


def unpublished_bytes(harness: Harness) -> float:
    """What the gauge says."""
    return harness.value("bbcache_unpublished_bytes")
