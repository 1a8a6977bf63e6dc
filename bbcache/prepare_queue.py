"""The queue of prepares: coalescing, bounded, one running prepare a timeline."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from bbcache.flight import Flight
from bbcache.index import make_place
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
        is_fill: whether somebody has asked who waits for it. It is neither coalesced with
            other LSNs, since its caller wants this one, nor bounded while he waits.
        must_build: whether an entry that is held at the LSN will not do.
        flight: those who wait for it, whoever asked.
    """

    __slots__ = (
        *("flight", "is_claimed", "is_fill", "key", "lsn", "must_build", "queued_at_s"),
        "tenant_shard_id",
    )

    def __init__(
        self,
        key: bytes,
        lsn: Lsn,
        tenant_shard_id: TenantShardId | None,
        queued_at_s: float,
        *,
        is_fill: bool = False,
        must_build: bool = False,
    ) -> None:
        self.key = key
        self.lsn = lsn
        self.tenant_shard_id = tenant_shard_id
        self.queued_at_s = queued_at_s
        self.is_fill = is_fill
        self.must_build = must_build  # guarded, like the next, by the queue's lock
        self.is_claimed = False
        self.flight = Flight()

    @property
    def place(self) -> bytes:
        """What stands for the timeline at this very LSN."""
        return make_place(self.key, self.lsn)

    @property
    def is_rebuild(self) -> bool:
        """Whether it makes a bad archive anew, if the tip still stands there."""
        return self.tenant_shard_id is None

    def is_covered_by(self, other: Request) -> bool:
        """Whether `other`, for the same timeline, makes this one superfluous.

        A fill covers its own LSN alone: it is a client that has named it.
        """
        if other.is_fill and other.lsn != self.lsn:
            return False
        return (other.lsn, not other.is_rebuild) >= (self.lsn, not self.is_rebuild)


class PrepareQueue:
    """Prepares that wait, and those that run. Thread-safe.

    The lock is taken itself, not by its condition: a KeyboardInterrupt that comes while a
    condition is entered would leave it locked. A caller notifies before it changes
    anything, so that an interrupt between the two leaves no request that no worker sees.

    Args:
        capacity: how many may wait.
    """

    def __init__(self, capacity: int) -> None:
        self._lock = threading.RLock()  # guards all that follows
        self._changed = threading.Condition(self._lock)  # only workers wait
        self._waiting: dict[bytes, Request] = {}  # by timeline, oldest first
        self._fills: dict[bytes, Request] = {}  # what somebody waits for, by timeline and LSN
        self._running: dict[bytes, Request] = {}
        self._capacity = capacity
        self._is_open = False
        self._is_closed = False

    def __len__(self) -> int:
        """How many wait; one read of memory, safe without the lock."""
        return len(self._waiting) + len(self._fills)

    def open(self) -> None:
        """Let workers take requests: until now they have only gathered."""
        with self._lock:
            self._is_open = True
            self._changed.notify_all()

    def put(self, request: Request) -> tuple[Request, SkipReason] | None:
        """Queue a request that nobody waits for; of several for one timeline the newest LSN stays.

        Returns:
            The request that falls out, this one or an older one, and why; None where
            none does. Once closed, every request falls out.
        """
        with self._lock:
            if self._is_closed:
                return request, SkipReason.CLOSING
            running, waiting = self._running.get(request.key), self._waiting.get(request.key)
            fill = self._fills.get(request.place)
            # A running prepare may have seen, and relied on, the very archive that has been
            # found bad since: it does not cover a rebuild.
            for other in (None if request.is_rebuild else running, waiting, fill):
                if other is not None and request.is_covered_by(other):
                    return request, SkipReason.COALESCED
            if waiting is None and self._unawaited_count_locked() >= self._capacity:
                return request, SkipReason.QUEUE_FULL
            self._changed.notify()
            self._waiting[request.key] = request  # in the place of the older one in the row
            return None if waiting is None else (waiting, SkipReason.COALESCED)

    def join(self, fill: Request) -> Request | None:
        """Board the flight of a request at the same LSN; where there is none, queue this one.

        What is waited for is taken first, and is not replaced by a newer LSN any more.

        Returns:
            The request whose flight was boarded; None once closed.
        """
        with self._lock:
            if self._is_closed:
                return None
            for other in self._at_locked(fill.key, fill.lsn):
                if other.flight.board():
                    self._adopt_locked(other, fill)
                    return other
            fill.flight.board()
            self._changed.notify()
            self._fills[fill.place] = fill
            return fill

    def leave(self, request: Request) -> Request | None:
        """Get off a request's flight.

        Returns:
            The request, where nobody waits for it any more and it has no place in the queue.
        """
        request.flight.leave()
        place = request.place
        with self._lock:
            is_given_up = self._fills.get(place) is request and not request.flight.is_awaited
            if is_given_up and self._unawaited_count_locked() > self._capacity:
                return self._fills.pop(place)
            return None

    def has(self, key: bytes, lsn: Lsn) -> bool:
        """Whether a request at exactly `lsn` waits or runs."""
        with self._lock:
            return bool(self._at_locked(key, lsn))

    def take(self) -> Request | None:
        """Wait for a request whose timeline has none running; None once closed."""
        with self._lock:
            while not self._is_closed:
                request = self._first_runnable_locked()
                if request is not None:
                    if self._fills.pop(request.place, None) is None:
                        del self._waiting[request.key]
                    self._running[request.key] = request
                    return request
                self._changed.wait()
            return None

    def done(self, request: Request) -> None:
        """A taken request has run: its timeline is free for the next."""
        with self._lock:
            self._running.pop(request.key, None)
            if self._waiting or self._fills:  # else a worker would wake for nothing
                self._changed.notify()

    def claim(self, request: Request) -> bool:
        """Whether the caller is the first to settle the request, so that it counts once."""
        with self._lock:
            is_first, request.is_claimed = not request.is_claimed, True
            return is_first

    def close(self) -> list[Request]:
        """Take no more requests and wake the workers; returns those that waited."""
        with self._lock:
            self._changed.notify_all()
            self._is_closed = True
            cancelled = [*self._waiting.values(), *self._fills.values()]
            self._waiting.clear()
            self._fills.clear()
            return cancelled

    def running(self) -> list[Request]:
        """The requests being run."""
        with self._lock:
            return list(self._running.values())

    def _at_locked(self, key: bytes, lsn: Lsn) -> list[Request]:
        """What runs or waits at exactly `lsn`."""
        place = make_place(key, lsn)
        found = (self._running.get(key), self._waiting.get(key), self._fills.get(place))
        return [each for each in found if each is not None and each.lsn == lsn]

    def _first_runnable_locked(self) -> Request | None:
        if not self._is_open:
            return None
        # At most as many timelines are passed over as there are workers.
        for requests in (self._fills, self._waiting):
            for request in requests.values():
                if request.key not in self._running:
                    return request
        return None

    def _adopt_locked(self, request: Request, fill: Request) -> None:
        """Make a request that a fill has joined do what the fill would."""
        if self._waiting.get(request.key) is request:
            del self._waiting[request.key]
            self._fills[request.place] = request
        request.must_build |= fill.must_build
        if request.is_rebuild:  # it need not find the shard, nor insist on the tip
            request.tenant_shard_id = fill.tenant_shard_id

    def _unawaited_count_locked(self) -> int:
        given_up = sum(not each.flight.is_awaited for each in self._fills.values())
        return len(self._waiting) + given_up
