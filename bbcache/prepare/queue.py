"""The queue of prepares: what can run, what is behind that, one build of a timeline at a time.

A request comes in the *line*. Its worker finds out whether its LSN is reached. If not, the
request goes *behind*: workers look at it when nothing else can run, or after a run. So an
LSN that is never reached costs short looks, and no worker nor the build of another LSN.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Final

from bbcache.outcomes import SkipReason
from bbcache.prepare.request import most_likely
from bbcache.storage.index import make_place
from bbcache.waiters import Waiters

if TYPE_CHECKING:
    from bbcache.ids import Lsn
    from bbcache.prepare.request import Request

WAIT_SLICE_S: Final = 0.2  # the longest look at a request whose LSN is not reached
_LEAST_SLICE_S: Final = 0.01  # where many are looked at in turn: it bounds what that costs
_GLANCE_S: Final = 0.001  # while something else can run, or where nobody waits
_MOST_LSNS: Final = 16  # of one timeline in the line


class PrepareQueue:
    """Prepares that wait, and those that run. Thread-safe.

    A KeyboardInterrupt may end a step of a caller anywhere. So it wakes the workers, which
    then wait for the lock, before it changes anything, and adds a request before it removes
    it elsewhere: an interrupt between the two leaves no request that no worker sees. What
    falls out of the queue is kept until it is settled, by whichever thread comes next.

    Args:
        capacity: how many timelines may have requests in the line that no caller waits for;
            and how many requests may be behind it that `send_prepare` has asked for, or that
            their callers have given up.
    """

    def __init__(self, capacity: int) -> None:
        self._lock = threading.RLock()  # guards all that follows
        self._workers = Waiters()
        self._fills: dict[bytes, Request] = {}  # the line of what callers wait for, by place
        self._waiting: dict[bytes, dict[Lsn, Request]] = {}  # the line after it, by timeline
        self._later: dict[bytes, Request] = {}  # what is behind the line, by place
        self._polled: set[Request] = set()  # of these, what workers look at
        self._running: dict[bytes, Request] = {}  # what has the slot of its timeline
        self._fallen: dict[Request, SkipReason] = {}  # what is out, but not settled
        self._owes_look = False  # whether what is behind has the next turn
        self._lowest_next: set[bytes] = set()  # timelines in line whose lowest LSN has its turn
        self._capacity = capacity
        self._is_open = self._is_open_for_fills = False
        self._is_closed = False

    def __len__(self) -> int:
        """How many wait; safe without the lock, since a list is copied in one step."""
        in_line = sum(map(len, list(self._waiting.values())))
        return in_line + len(self._fills) + len(self._later)

    def open(self, *, for_fills_only: bool = False) -> None:
        """Let workers take requests: until now they have only gathered.

        Args:
            for_fills_only: whether requests that nobody waits for gather on.
        """
        with self._lock:
            self._is_open_for_fills = True
            self._is_open = not for_fills_only
            self._workers.wake_all()

    def put(self, request: Request) -> None:
        """Queue a request that no caller waits for; once closed, it falls out.

        A newer LSN makes an older one superfluous when it is known to be reached, no sooner.
        """
        with self._lock:
            lsns = self._waiting.get(request.key)
            if self._is_closed:
                self._fallen[request] = SkipReason.CLOSING
            elif self._is_covered_locked(request):
                self._fallen[request] = SkipReason.COALESCED
            elif lsns is None and self._unawaited_count_locked() >= self._capacity:
                self._fallen[request] = SkipReason.QUEUE_FULL
            else:
                replaced = None if lsns is None else lsns.get(request.lsn)
                if replaced is not None:  # a rebuild
                    self._fallen[replaced] = SkipReason.COALESCED
                self._line_up_locked(request)
                if lsns is not None and len(lsns) > _MOST_LSNS:
                    # Not the newest one, and not the first one that will be reached.
                    lsn = sorted(lsns)[len(lsns) // 2]
                    self._fallen[lsns[lsn]] = SkipReason.COALESCED
                    del lsns[lsn]

    def join(self, fill: Request) -> Request | None:
        """Join the call of a request at the same LSN; where there is none, queue this one.

        What callers wait for is taken first. Call `leave` in any case, interrupted or not.

        Returns:
            The request whose call was joined; None once closed.
        """
        with self._lock:
            if self._is_closed:
                return None
            for other in self._at_locked(fill.key, fill.lsn):
                fill.joined = other
                if other.call.join(fill):
                    self._adopt_locked(other, fill)
                    return other
            fill.joined = fill
            fill.call.join(fill)
            self._line_up_locked(fill)
            return fill

    def leave(self, fill: Request) -> None:
        """Leave the call that was joined; harmless twice.

        What nobody wants any more goes behind what can run, and does not wait for its LSN.
        """
        request = fill.joined
        if request is None:
            return
        request.call.leave(fill)
        with self._lock:
            if request.call.is_awaited or request.is_sent:
                return
            if self._fills.get(request.place) is request:
                self._workers.wake_all()
                self._later[request.place] = request
                del self._fills[request.place]
                self._overflow_locked(request)
            elif request.is_seen and request in self._idle_locked():
                self._fallen[request] = SkipReason.CANCELLED
                del self._later[request.place]

    def fallen(self) -> list[tuple[Request, SkipReason]]:
        """The requests that have fallen out of the queue, and why, until they are forgotten."""
        if not self._fallen:  # one read of memory
            return []
        with self._lock:
            return list(self._fallen.items())

    def forget(self, request: Request) -> None:
        """A request that has fallen out is settled; harmless twice."""
        with self._lock:
            self._fallen.pop(request, None)

    def is_idle(self) -> bool:
        """Whether no request waits, runs or is to be settled."""
        with self._lock:
            waiting = self._waiting or self._fills or self._later
            return not (waiting or self._running or self._fallen)

    def has(self, key: bytes, lsn: Lsn) -> bool:
        """Whether a request at exactly `lsn` waits or runs."""
        with self._lock:
            return bool(self._at_locked(key, lsn))

    def take(self) -> Request | None:
        """Wait for a request that a worker can look at; None once closed.

        One from the line has the slot of its timeline, one from behind has not.
        """
        taken: list[Request] = []

        def is_over() -> bool:
            with self._lock:
                request = None if self._is_closed else self._next_locked()
                if request is not None:
                    request.is_seen = True
                    taken.append(request)
                    if len(self._later) > len(self._polled):
                        self._workers.wake_all()
                return self._is_closed or bool(taken)

        self._workers.wait_for(is_over, None)
        return taken[0] if taken else None

    def has_other(self, request: Request) -> bool:
        """Whether another request can run if this one, which is taken, goes behind."""
        with self._lock:
            return self._first_in_line_locked(request) is not None

    def slice_s(self, request: Request) -> float:
        """How long a worker may wait for the LSN of a request before it looks at another."""
        with self._lock:
            if self.has_other(request) or not (request.is_sent or request.call.is_awaited):
                return _GLANCE_S
            return max(_LEAST_SLICE_S, WAIT_SLICE_S / max(1, len(self._later)))

    def postpone(self, request: Request) -> None:
        """Put a taken request behind what can run, and free the slot of its timeline."""
        with self._lock:
            request.is_behind = True
            if self._is_closed:
                self._fallen[request] = SkipReason.CLOSING
                self.done(request)
            elif request in self._polled:
                self._polled.discard(request)
            else:
                if not self._later:
                    self._owes_look = False  # this one was just looked at
                del self._running[request.key]
                self._later[request.place] = request
                self._workers.wake_all()
                self._overflow_locked(request)

    def start(self, request: Request) -> bool:
        """Take the timeline's slot for the build of a taken request whose LSN is reached.

        Requests at older LSNs that no caller waits for fall out.

        Returns:
            False where another request has the slot: then this one is in the line again.
        """
        with self._lock:
            if self._is_closed:
                return True
            if request in self._polled:
                self._polled.discard(request)
                if request.key in self._running:
                    self._line_up_locked(request)
                    return False
                del self._later[request.place]
                self._running[request.key] = request
            request.is_reached = True
            waiting = [*self._waiting.get(request.key, {}).values(), *self._idle_locked()]
            outgrown = [r for r in waiting if r.key == request.key and r.lsn < request.lsn]
            for each in outgrown:
                self._fallen[each] = SkipReason.COALESCED
                self._withdraw_locked(each)
            return True

    def done(self, request: Request) -> None:
        """A taken request has ended: its timeline is free for the next."""
        with self._lock:
            if self._running.get(request.key) is request:
                del self._running[request.key]
            elif request in self._polled:
                self._polled.discard(request)
                self._withdraw_locked(request)
            if self._waiting or self._fills or self._later:  # else a worker would wake in vain
                self._workers.wake_all()

    def claim(self, request: Request) -> bool:
        """Whether the caller is the first to settle the request, so that it counts once."""
        with self._lock:
            is_first, request.is_claimed = not request.is_claimed, True
            return is_first

    def close(self) -> None:
        """Take no more requests and wake the workers; what waits falls out."""
        with self._lock:
            self._workers.wake_all()
            self._is_closed = True
            waiting = [each for lsns in self._waiting.values() for each in lsns.values()]
            for each in (*waiting, *self._fills.values(), *self._later.values()):
                self._fallen[each] = SkipReason.CLOSING
            self._waiting.clear()
            self._fills.clear()
            self._later.clear()

    def running(self) -> list[Request]:
        """The requests that have the slots of their timelines."""
        with self._lock:
            return list(self._running.values())

    def _at_locked(self, key: bytes, lsn: Lsn) -> list[Request]:
        """What runs or waits at exactly `lsn`."""
        place, lsns = make_place(key, lsn), self._waiting.get(key, {})
        found = [self._running.get(key), lsns.get(lsn)]
        found += [requests.get(place) for requests in (self._fills, self._later)]
        return [each for each in found if each is not None and each.lsn == lsn]

    def _is_covered_locked(self, request: Request) -> bool:
        """Whether another request makes superfluous one that is to be put."""
        running = self._running.get(request.key)
        # A running prepare may have seen, and relied on, the very archive that has been found
        # bad since: it does not cover a rebuild. And a rebuild may end where a prepare does not.
        if running is not None and running.is_reached and running.lsn > request.lsn:
            return not request.is_rebuild
        for other in self._at_locked(request.key, request.lsn):
            if other is not running if request.is_rebuild else not other.is_rebuild:
                other.is_sent = True
                if self._later.get(other.place) is other and not other.is_seen:
                    self._line_up_locked(other)
                return True
        return False

    def _adopt_locked(self, request: Request, fill: Request) -> None:
        """Make a request that a fill has joined do what the fill would."""
        if not request.is_seen and self._fills.get(request.place) is not request:
            self._line_up_locked(request)
        request.must_build |= fill.must_build
        request.disk_failure = request.disk_failure or fill.disk_failure
        if request.is_rebuild:  # it need not find the shard, nor insist on the tip
            request.tenant_shard_id = fill.tenant_shard_id

    def _line_up_locked(self, request: Request) -> None:
        """Put a request in the part of the line where it belongs now."""
        self._workers.wake_all()
        if request.call.is_awaited:
            self._fills[request.place] = request
            self._drop_waiting_locked(request)
        elif request.key in self._waiting:
            self._waiting[request.key][request.lsn] = request
        else:
            self._waiting[request.key] = {request.lsn: request}
        if self._later.get(request.place) is request:
            del self._later[request.place]

    def _withdraw_locked(self, request: Request) -> None:
        """Take out a request that waits."""
        for requests in (self._fills, self._later):
            if requests.get(request.place) is request:
                del requests[request.place]
        self._drop_waiting_locked(request)

    def _drop_waiting_locked(self, request: Request) -> None:
        lsns = self._waiting.get(request.key, {})
        if lsns.get(request.lsn) is request:
            if len(lsns) > 1:
                del lsns[request.lsn]
            else:
                del self._waiting[request.key]

    def _next_locked(self) -> Request | None:
        """Take the first of the line; but every other time one whose LSN was not reached."""
        if not self._is_open_for_fills:
            return None
        is_turn, self._owes_look = self._owes_look, False
        behind = self._first_behind_locked(is_ahead=True) if is_turn else None
        request = None if behind is not None else self._first_in_line_locked()
        if request is not None:
            self._owes_look = True
            self._withdraw_locked(request)
            self._running[request.key] = request
            if request.key in self._waiting:  # the rest of it goes behind other timelines
                self._waiting[request.key] = self._waiting.pop(request.key)
                self._lowest_next ^= {request.key}
            else:
                self._lowest_next.discard(request.key)
            return request
        behind = behind or self._first_behind_locked()
        if behind is not None:
            self._polled.add(behind)
            self._later[behind.place] = self._later.pop(behind.place)  # the last one now
        return behind

    def _first_in_line_locked(self, freed: Request | None = None) -> Request | None:
        """The first request that can run where `freed` has no slot."""
        for request in self._fills.values():
            if self._running.get(request.key) in (None, freed):
                return request
        for key, lsns in self._waiting.items() if self._is_open else ():
            if self._running.get(key) in (None, freed):
                behind = (each for each in self._later.values() if each.key == key)
                return most_likely(lsns.values(), behind, is_lowest_next=key in self._lowest_next)
        return None

    def _first_behind_locked(self, *, is_ahead: bool = False) -> Request | None:
        """The first request behind the line that a worker can look at.

        Args:
            is_ahead: whether it must be the next to be reached of its timeline.
        """
        ahead = [r for r in self._later.values() if is_ahead and r.waiting_since_s is not None]
        lowest = {r.key: r for r in sorted(ahead, key=lambda r: r.lsn, reverse=True)}
        for request in ahead if is_ahead else self._later.values():
            is_free = request not in self._polled and request.key not in self._running
            if is_free and lowest.get(request.key, request) is request:
                return request
        return None

    def _idle_locked(self) -> list[Request]:
        """What is behind the line, and neither a caller waits for it nor a worker looks at it."""
        behind = self._later.values()
        return [r for r in behind if not (r.call.is_awaited or r in self._polled)]

    def _unawaited_count_locked(self) -> int:
        left = sum(not each.call.is_awaited for each in self._fills.values())
        return len(self._waiting) + left

    def _overflow_locked(self, added: Request) -> None:
        """Of too many behind the line, the highest LSN of the timeline with the most falls out.

        What `send_prepare` has asked for, and what callers have given up, are counted apart.
        """
        idle = [each for each in self._idle_locked() if each.is_sent == added.is_sent]
        if len(idle) <= self._capacity:
            return
        counts = Counter(each.key for each in idle)
        least_likely = max(idle, key=lambda each: (counts[each.key], each.lsn))
        self._fallen[least_likely] = SkipReason.QUEUE_FULL
        del self._later[least_likely.place]
