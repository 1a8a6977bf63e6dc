"""What the tests of `get_or_prepare` share."""

from __future__ import annotations

import functools
import gzip
from typing import TYPE_CHECKING

from cache_helpers import DEADLINE_S, LSN_A, Worker
from helpers import wait_until

if TYPE_CHECKING:
    from cache_helpers import Rig

    from bbcache import BasebackupFile, Lsn
    from bbcache.testing import MemoryTimeline


def fill(
    rig: Rig,
    timeline: MemoryTimeline,
    lsn: Lsn = LSN_A,
    timeout_s: float | None = DEADLINE_S,
) -> BasebackupFile:
    """What `get_or_prepare` returns."""
    shard_id = rig.shard_of(timeline)
    return rig.cache.get_or_prepare(shard_id, timeline.timeline_id, lsn, timeout_s)


def filled(
    rig: Rig,
    timeline: MemoryTimeline,
    lsn: Lsn = LSN_A,
    timeout_s: float | None = DEADLINE_S,
) -> tuple[str, bytes]:
    """Where the archive came from, and the tarball in it."""
    with fill(rig, timeline, lsn, timeout_s) as file:
        archive = file.read()
        assert len(archive) == file.size_bytes
        assert file.lsn == lsn
        return str(file.source), gzip.decompress(archive)


def fillers(
    rig: Rig,
    timeline: MemoryTimeline,
    count: int,
    lsn: Lsn = LSN_A,
    timeout_s: float | None = None,
) -> list[Worker]:
    """So many threads that ask, all of them aboard the one flight."""
    before = aboard(rig)
    ask = functools.partial(filled, rig, timeline, lsn, timeout_s)
    workers = [Worker(ask) for _ in range(count)]
    wait_until(lambda: aboard(rig) == before + count)
    return workers


def aboard(rig: Rig) -> int:
    """How many wait for a build."""
    queue = rig.engine._queue
    with queue._lock:
        waiting = {each for lsns in queue._waiting.values() for each in lsns.values()}
        behind, running = queue._later.values(), queue._running.values()
        requests = {*waiting, *queue._fills.values(), *behind, *running}
    return sum(len(request.flight._seats) for request in requests)


def fills(rig: Rig) -> dict[str, int]:
    """How many calls ended how."""
    return rig.counts("bbcache_fills_total")


def unpublished_bytes(rig: Rig) -> float:
    """What the gauge says."""
    return rig.value("bbcache_unpublished_bytes")
