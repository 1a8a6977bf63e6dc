"""One prepare, from the request to its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bbcache.prepare.singleflight import Call
from bbcache.storage.index import make_place

if TYPE_CHECKING:
    from bbcache.errors import StoreError
    from bbcache.ids import Lsn, TenantShardId


@dataclass(slots=True, eq=False)
class Request:
    """One prepare. Compared by identity; the queue's lock guards what changes.

    Attributes:
        key: tenant and timeline ids, 32 bytes.
        lsn: the LSN of the basebackup.
        tenant_shard_id: shard zero of the tenant; None for the rebuild of a bad archive.
        queued_at_s: time of the request, by `time.monotonic`.
        is_sent: whether `send_prepare` or a rebuild asked for it. A request of callers of
            `get_or_prepare` alone stops waiting for its LSN when they leave.
        must_build: whether an entry at the LSN is no substitute, because it cannot be read.
        disk_failure: why a caller could not read the last archive; the next one is built in
            `unpublished_dir`. None if that has not happened.
        place: key and LSN as bytes.
        call: the callers that wait.
        joined: the request that this one, of a caller, has joined; it may be itself.
        waiting_since_s: when the wait for the LSN began; None before and after it.
        is_seen: whether a worker has taken it.
        is_behind: whether a worker has put it behind the line.
        is_reached: whether the LSN is reached and the build runs.
        is_first: whether it was taken before requests that no caller waits for.
        is_counted: whether its end is counted.
    """

    key: bytes
    lsn: Lsn
    tenant_shard_id: TenantShardId | None
    queued_at_s: float
    is_sent: bool = field(default=True, kw_only=True)
    must_build: bool = field(init=False, default=False)
    disk_failure: StoreError | None = field(init=False, default=None)
    place: bytes = field(init=False)
    call: Call = field(init=False, default_factory=Call)
    joined: Request | None = field(init=False, default=None)
    waiting_since_s: float | None = field(init=False, default=None)
    is_seen: bool = field(init=False, default=False)
    is_behind: bool = field(init=False, default=False)
    is_reached: bool = field(init=False, default=False)
    is_first: bool = field(init=False, default=False)
    is_counted: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.place = make_place(self.key, self.lsn)

    @property
    def is_rebuild(self) -> bool:
        """Whether it replaces a bad archive, provided that the tip is still at its LSN."""
        return self.tenant_shard_id is None
