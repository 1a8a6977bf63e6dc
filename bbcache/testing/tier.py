"""A second tier in memory, which several caches of one test may share. Thread-safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from bbcache.ids import Lsn, TenantId, TimelineId
from bbcache.outcomes import FetchResult
from bbcache.second_tier import ArchiveSink
from bbcache.storage.index import EntryInfo

_Place = tuple[TenantId, TimelineId, Lsn]


class MemoryTier:
    """Keeps each archive that it is offered, at once, and gives it to each cache that asks.

    Attributes:
        objects: the archives, by tenant, timeline and LSN.
        offers: the archives that were offered, each with the LSN that it has replaced.
        on_fetch: if set, called with the place and the deadline before each fetch: it may block,
            raise, or return a result in place of the fetch.
        is_closed: whether a cache has closed it. It still works, for the next cache.
    """

    def __init__(self) -> None:
        self.objects: dict[_Place, bytes] = {}
        self.offers: list[tuple[EntryInfo, Lsn | None]] = []
        self.on_fetch: Callable[[_Place, float], FetchResult | None] | None = None
        self.is_closed = False
        self._lock = threading.Lock()  # guards objects and offers

    def offer(
        self, info: EntryInfo, open_file: Callable[[], BinaryIO], replaced_lsn: Lsn | None
    ) -> None:
        """Keep an archive, and forget the one that it has replaced."""
        with open_file() as file:
            data = file.read()
        place = (info.tenant_id, info.timeline_id)
        with self._lock:
            self.offers.append((info, replaced_lsn))
            self.objects[(*place, info.lsn)] = data
            if replaced_lsn is not None:
                self.objects.pop((*place, replaced_lsn), None)

    def fetch(
        self,
        tenant_id: TenantId,
        timeline_id: TimelineId,
        lsn: Lsn,
        writer: ArchiveSink,
        deadline_s: float,
    ) -> FetchResult:
        """Write an archive that was offered."""
        place = (tenant_id, timeline_id, lsn)
        if self.on_fetch is not None:
            result = self.on_fetch(place, deadline_s)
            if result is not None:
                return result
        with self._lock:
            data = self.objects.get(place)
        if data is None:
            return FetchResult.ABSENT
        if time.monotonic() > deadline_s:
            return FetchResult.TIMEOUT
        writer.write(data)
        writer.check()
        return FetchResult.HIT

    def close(self, timeout_s: float | None) -> None:  # noqa: ARG002 - nothing is waited for
        """Note that a cache has closed it."""
        self.is_closed = True
