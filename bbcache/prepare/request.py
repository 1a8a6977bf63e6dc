"""One prepare, from when it is asked for to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bbcache.prepare.singleflight import Call
from bbcache.storage.index import make_place

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from bbcache.errors import StoreError
    from bbcache.ids import Lsn, TenantShardId


class Request:
    """One prepare. Compared by identity; the queue's lock guards what changes.

    Attributes:
        key: tenant and timeline ids, 32 bytes.
        lsn: the position wanted.
        place: the timeline at this very LSN, as bytes.
        tenant_shard_id: shard zero of the tenant; None for the rebuild of a bad
            archive, whose worker finds it out.
        queued_at_s: when it was asked for, by the clock of the cache.
        is_sent: whether `send_prepare` or a rebuild has asked for it. Where False, only
            callers of `get_or_prepare` have, and without them it does not wait for its LSN.
        must_build: whether an entry that is held at the LSN will not do.
        disk_failure: what the disk of the cache has done to the archive that a caller was
            handed before; the next one is built elsewhere. None where nothing.
        is_seen: whether a worker has taken it.
        is_behind: whether a worker has put it behind what can run.
        is_reached: whether its LSN is known to be reached, and its build runs.
        is_first: whether it went before what no caller waits for.
        is_counted: whether its end is counted.
        waiting_since_s: when the wait for its LSN began; None before and after the wait.
        call: the callers that wait for it.
        joined: the request that a caller's own one has joined, maybe itself; None before.
    """

    __slots__ = (
        *("disk_failure", "call", "is_behind", "is_counted", "is_first", "is_reached", "is_seen"),
        *("is_sent", "joined", "key", "lsn", "must_build", "place", "queued_at_s"),
        *("tenant_shard_id", "waiting_since_s"),
    )

    def __init__(
        self,
        key: bytes,
        lsn: Lsn,
        tenant_shard_id: TenantShardId | None,
        queued_at_s: float,
        *,
        is_sent: bool = True,
        must_build: bool = False,
        disk_failure: StoreError | None = None,
    ) -> None:
        self.key = key
        self.lsn = lsn
        self.place = make_place(key, lsn)
        self.tenant_shard_id = tenant_shard_id
        self.queued_at_s = queued_at_s
        self.waiting_since_s: float | None = None
        self.is_sent = is_sent
        self.must_build = must_build
        self.disk_failure = disk_failure
        self.is_seen = self.is_first = self.is_behind = self.is_reached = self.is_counted = False
        self.call = Call()
        self.joined: Request | None = None

    @property
    def is_rebuild(self) -> bool:
        """Whether it replaces a bad archive, if the tip still stands there."""
        return self.tenant_shard_id is None


def most_likely(
    waiting: Collection[Request], behind: Iterable[Request], *, is_lowest_next: bool = False
) -> Request:
    """Of the requests of one timeline, the newest one whose LSN may be reached.

    An LSN above one that was not reached comes last, the lowest of these first. So a flood
    of LSNs that are not reached does not keep a true one from its look, rising or, where
    the lowest one has every second turn, falling.

    Args:
        waiting: those that no worker has looked at, at least one.
        behind: those whose LSN was not reached, and those that have given way to others.
        is_lowest_next: whether it is the turn of the lowest one, where one was not reached.
    """
    unreached = [each.lsn for each in behind if each.waiting_since_s is not None]
    bound = min(unreached, default=None)
    below = [each for each in waiting if bound is None or each.lsn < bound]
    if below and not (is_lowest_next and unreached):
        return max(below, key=lambda each: each.lsn)
    return min(waiting, key=lambda each: each.lsn)
