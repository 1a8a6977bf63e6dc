"""The interface of a second tier: a store of archives that outlives the directory of a cache.

`bbcache.tier` implements it in object storage; a test harness may implement it as well
(`bbcache.testing.MemoryTier`). The core imports no implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, Protocol, runtime_checkable

from bbcache.host import Buffer
from bbcache.ids import Lsn, TenantId, TimelineId
from bbcache.outcomes import FetchResult
from bbcache.storage.index import EntryInfo

__all__ = ["ArchiveSink", "FetchResult", "Tier"]


class ArchiveSink(Protocol):
    """Takes the bytes of one archive from a tier, in pieces of any size and in order."""

    def write(self, data: Buffer, /) -> int:
        """Copy the bytes; the caller may reuse its buffer.

        Returns:
            The number of bytes taken: all of them.

        Raises:
            LimitError: a size limit has no room for the archive.
            ClosingError: the cache is closing.
            StoreError: the bytes could not be written.
        """
        ...

    def check(self) -> None:
        """Compare the bytes with their seal, after the last one.

        The cache does this in any case. A tier calls it to learn of a bad object.

        Raises:
            ArchiveError: the bytes are not the archive that was asked for.
        """
        ...


@runtime_checkable
class Tier(Protocol):
    """A second tier. The cache calls it from its own threads, several at once."""

    def offer(
        self, info: EntryInfo, open_file: Callable[[], BinaryIO], replaced_lsn: Lsn | None
    ) -> None:
        """Take note of a published archive. Must not wait: it delays the next build.

        Args:
            info: its ids, LSN and size.
            open_file: opens it for reading, later and in any thread; raises `OSError` if the
                cache has removed it meanwhile.
            replaced_lsn: the lower LSN of the same timeline whose entry it has replaced; None
                if it has replaced none.
        """
        ...

    def fetch(
        self,
        tenant_id: TenantId,
        timeline_id: TimelineId,
        lsn: Lsn,
        writer: ArchiveSink,
        deadline_s: float,
    ) -> FetchResult:
        """Write the archive at exactly `lsn` to the writer.

        Let the writer's exceptions through. Whatever else is raised, and every result but a
        hit, makes the cache build the archive.

        Args:
            tenant_id: the tenant.
            timeline_id: its timeline.
            lsn: the LSN.
            writer: takes the archive. Its bytes count only with a hit.
            deadline_s: the time to return by, as `time.monotonic` gives it.
        """
        ...

    def close(self, timeout_s: float | None) -> None:
        """Stop, and drop the work that waits.

        Args:
            timeout_s: how many seconds the cache waits at most; None if it has no limit.
        """
        ...
