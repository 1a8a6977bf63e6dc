"""The interface of a host, which a cache asks about tenants and timelines.

The host is the pageserver (or a prototype, or a test harness) that embeds bbcache. Callbacks
come from the cache's own threads, several at once, so an implementation must be thread-safe. A
callback may raise anything: that is counted and logged, and ends no thread of the cache. A
callback that never returns blocks its worker and the exit of the interpreter. If a callback
forks, the child process exits when the callback returns.

The names follow Neon's tenant manager, tenant shard and timeline (``pageserver/src/tenant``).
Import them by name: ``from bbcache import *`` would shadow a host's own classes called
``Tenant`` and ``Timeline``.
"""

from __future__ import annotations

import collections.abc
import time
from collections.abc import Collection, Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from bbcache.ids import Lsn, TenantShardId, TimelineId

if TYPE_CHECKING:
    from typing_extensions import Buffer as Buffer  # noqa: PLC0414 - other modules import it from here
else:  # for typing.get_type_hints; the class itself is new in Python 3.12
    Buffer = getattr(collections.abc, "Buffer", bytes | bytearray | memoryview)


class TenantState(Enum):
    """The state of a tenant on its host; only an ACTIVE one knows its timelines."""

    ATTACHING = "attaching"
    ACTIVATING = "activating"
    ACTIVE = "active"
    STOPPING = "stopping"
    BROKEN = "broken"


class TarballWriter(Protocol):
    """Takes a basebackup's tar from the host, in pieces of any size."""

    def write(self, data: Buffer, /) -> int:
        """Copy the bytes; the caller may reuse its buffer.

        Returns:
            The number of bytes taken: all of them.

        Raises:
            LimitError: a size limit has no room for the archive.
            ClosingError: the cache is closing.
            StoreError: the bytes could not be written.
            ValueError: the callback that was given this writer has returned.

        Any of these fails the build, even if the host catches it.
        """
        ...


@runtime_checkable
class Timeline(Protocol):
    """One timeline of an attached tenant."""

    @property
    def timeline_id(self) -> TimelineId:
        """The timeline's id."""
        ...

    def get_last_record_lsn(self) -> Lsn:
        """The end of the last WAL record that the host has received: the tip."""
        ...

    def wait_lsn(self, lsn: Lsn, timeout: float) -> None:
        """Return once the tip has reached `lsn`.

        Args:
            lsn: the position to wait for.
            timeout: seconds to wait at most. The cache calls again, so that it can close
                promptly.

        Raises:
            TimeoutError: the tip has not reached `lsn` in that time.
        """
        ...

    def send_basebackup_tarball(self, writer: TarballWriter, lsn: Lsn) -> None:
        """Write the basebackup at `lsn` as an uncompressed tar.

        Let the writer's exceptions through: they end the build.
        """
        ...


@runtime_checkable
class Tenant(Protocol):
    """One attached tenant (its shard zero)."""

    def current_state(self) -> TenantState:
        """The tenant's state."""
        ...

    def basebackup_cache_enabled(self) -> bool:
        """The tenant's switch. While it is off, nothing is published; old entries are removed."""
        ...

    def get_timeline(self, timeline_id: TimelineId) -> Timeline:
        """The timeline; raises any exception if the tenant does not know it."""
        ...

    def list_timelines(self) -> Iterable[Timeline]:
        """All timelines of the tenant; complete whenever it is ACTIVE."""
        ...


@runtime_checkable
class PinningTenant(Tenant, Protocol):
    """A tenant some of whose entries are never evicted. A host need not implement it."""

    def pinned_timelines(self) -> Collection[TimelineId]:
        """The timelines whose entries are kept; asked at each clean-up, also if not ACTIVE.

        If it raises, the last answer stands. Pins beyond half of a limit are refused.
        """
        ...


@runtime_checkable
class TenantManager(Protocol):
    """All tenants of a host."""

    def list(self) -> Iterable[tuple[TenantShardId, Tenant | None]]:
        """All tenant shards known here; None for one that is not attached.

        Raises:
            NotReadyError: the tenants are not known yet. Clean-up then keeps every entry.
        """
        ...

    def get_attached_tenant_shard(self, tenant_shard_id: TenantShardId) -> Tenant:
        """The attached shard; raises any exception if it is not attached."""
        ...


def wait_for_lsn(timeline: Timeline, lsn: Lsn, slice_s: float) -> bool:
    """Wait until a timeline reaches an LSN; raises what its `wait_lsn` raises.

    Args:
        timeline: the timeline.
        lsn: the position to wait for.
        slice_s: seconds to wait, also if the host gives up sooner, so that a loop around this
            call does not spin.

    Returns:
        False if it was not reached in that time.
    """
    end_s = time.monotonic() + slice_s
    try:
        timeline.wait_lsn(lsn, slice_s)
    except TimeoutError:
        time.sleep(max(0.0, end_s - time.monotonic()))
        return False
    return True


def attached_shards_zero(tenants: TenantManager) -> Iterator[tuple[TenantShardId, Tenant]]:
    """The attached shards zero of a host; raises what its `list` raises."""
    return (
        (shard_id, tenant)
        for shard_id, tenant in tenants.list()
        if shard_id.is_shard_zero and tenant is not None
    )
