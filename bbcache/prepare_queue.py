"""The queue of prepares: coalescing, bounded, one running prepare a timeline."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from bbcache.metrics import SkipReason

if TYPE_CHECKING:
    from bbcache.ids import Lsn, TenantShardId


class Request:
    """One prepare that was asked for. Compared by identity.

    Attributes:
        key: tenant and timeline ids, 32 bytes.
        lsn: the position wanted.
        tenant_shard_id: shard zero of the tenant; None for the rebuild of a bad
            archive, whose worker finds it out.
        queued_at_s: when it was asked for, by the clock of the cache.
    """

    __slots__ = ("is_claimed", "key", "lsn", "queued_at_s", "tenant_shard_id")

    def __init__(
        self, key: bytes, lsn: Lsn, tenant_shard_id: TenantShardId | None, queued_at_s: float
    ) -> None:
        self.key = key
        self.lsn = lsn
        self.tenant_shard_id = tenant_shard_id
        self.queued_at_s = queued_at_s
        self.is_claimed = False  # guarded by the queue's lock

    @property
    def is_rebuild(self) -> bool:
        """Whether it makes a bad archive anew, if the tip still stands there."""
        return self.tenant_shard_id is None

    def is_covered_by(self, other: Request) -> bool:
        """Whether `other`, for the same timeline, makes this one superfluous."""
        return (other.lsn, not other.is_rebuild) >= (self.lsn, not self.is_rebuild)


class PrepareQueue:
    """Prepares that wait, and those that run. Thread-safe and re-entrant.

    Args:
        capacity: how many may wait.
    """

    def __init__(self, capacity: int) -> None:
        self._changed = threading.Condition(threading.RLock())  # guards all that follows
        self._waiting: dict[bytes, Request] = {}  # by timeline, oldest first
        self._running: dict[bytes, Request] = {}
        self._capacity = capacity
        self._is_open = False
        self._is_closed = False

    def __len__(self) -> int:
        """How many wait; one read of memory, safe without the lock."""
        return len(self._waiting)

    def open(self) -> None:
        """Let workers take requests: until now they have only gathered."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def put(self, request: Request) -> tuple[Request, SkipReason] | None:
        """Queue a request; of several for one timeline the newest LSN stays.

        Returns:
            The request that falls out, this one or an older one, and why; None where
            none does. Once closed, every request falls out.
        """
        with self._changed:
            if self._is_closed:
                return request, SkipReason.CLOSING
            running, waiting = self._running.get(request.key), self._waiting.get(request.key)
            # A running prepare may have seen, and relied on, the very archive that has been
            # found bad since: it does not cover a rebuild.
            for other in (None if request.is_rebuild else running, waiting):
                if other is not None and request.is_covered_by(other):
                    return request, SkipReason.COALESCED
            if waiting is None and len(self._waiting) >= self._capacity:
                return request, SkipReason.QUEUE_FULL
            self._waiting[request.key] = request  # in the place of an older one in the row
            self._changed.notify()
            return None if waiting is None else (waiting, SkipReason.COALESCED)

    def take(self) -> Request | None:
        """Wait for a request whose timeline has none running; None once closed."""
        with self._changed:
            while not self._is_closed:
                request = self._first_runnable_locked()
                if request is not None:
                    del self._waiting[request.key]
                    self._running[request.key] = request
                    return request
                self._changed.wait()
            return None

    def done(self, request: Request) -> None:
        """A taken request has run: its timeline is free for the next."""
        with self._changed:
            self._running.pop(request.key, None)
            self._changed.notify()

    def claim(self, request: Request) -> bool:
        """Whether the caller is the first to settle the request, so that it counts once."""
        with self._changed:
            is_first, request.is_claimed = not request.is_claimed, True
            return is_first

    def close(self) -> list[Request]:
        """Take no more requests and wake the workers; returns those that waited."""
        with self._changed:
            self._is_closed = True
            cancelled = list(self._waiting.values())
            self._waiting.clear()
            self._changed.notify_all()
            return cancelled

    def running(self) -> list[Request]:
        """The requests being run."""
        with self._changed:
            return list(self._running.values())

    def _first_runnable_locked(self) -> Request | None:
        if not self._is_open:
            return None
        # At most as many are passed over as there are workers.
        return next((r for r in self._waiting.values() if r.key not in self._running), None)
