"""What the tests of `get_or_prepare` share."""

from __future__ import annotations

import functools
import gzip
from typing import TYPE_CHECKING

from support.cache_helpers import DEADLINE_S, LSN_A, Worker
from support.helpers import wait_until
from support.threads import waiting

if TYPE_CHECKING:
    from support.cache_helpers import Rig

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
    before = aboard()
    ask = functools.partial(filled, rig, timeline, lsn, timeout_s)
    workers = [Worker(ask) for _ in range(count)]
    wait_until(lambda: aboard() == before + count)
    return workers


def aboard() -> int:
    """How many threads of this process wait for a build."""
    return len(waiting("get_or_prepare"))


def fills(rig: Rig) -> dict[str, int]:
    """How many calls ended how."""
    return rig.counts("bbcache_fills_total")


def unpublished_bytes(rig: Rig) -> float:
    """What the gauge says."""
    return rig.value("bbcache_unpublished_bytes")
