"""The queue of prepares: from `submit` or `join` to `finish`, each request settled once.

A request that ends is settled: it is counted, logged, and its callers are told. The queue
does all of it, whether a worker has run the request or it has fallen out of the line.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from bbcache.outcomes import SkipReason
from bbcache.prepare.ending import CLOSED, Ending
from bbcache.waiters import Waiters

if TYPE_CHECKING:
    from bbcache.ids import Lsn
    from bbcache.metrics import Metrics
    from bbcache.prepare.line import Line
    from bbcache.prepare.request import Request
    from bbcache.work_counter import WorkCounter

WAIT_SLICE_S: Final = 0.2  # the longest look at a request whose LSN is not reached
_LEAST_SLICE_S: Final = 0.01  # where many are looked at in turn: it bounds what that costs
_GLANCE_S: Final = 0.001  # while something else can run, or where nobody waits


class PrepareQueue:
    """Prepares that wait, and those that run. Thread-safe.

    A KeyboardInterrupt may end a step of a caller anywhere. So a step wakes the workers,
    which then wait for the lock, before it changes anything. A request that falls out stays
    in the line's list until it is settled, by whichever thread comes next.

    The metrics and the log are called without the lock.

    Args:
        line: the order of the requests.
        metrics: counts how requests end.
        work_counter: is told when a request has ended.
    """

    def __init__(self, line: Line, metrics: Metrics, work_counter: WorkCounter) -> None:
        self._lock = threading.RLock()  # guards the line, and what changes of its requests
        self._line = line
        self._metrics = metrics
        self._work_counter = work_counter
        self._workers = Waiters()
        self._is_closed = False

    def __len__(self) -> int:
        """How many requests wait; takes no lock."""
        return len(self._line)

    def open(self, *, for_fills_only: bool = False) -> None:
        """Let workers take requests: until now they have only gathered.

        Args:
            for_fills_only: whether requests that nobody waits for gather on.
        """
        with self._lock:
            self._line.is_open_for_fills = True
            self._line.is_open = not for_fills_only
            self._workers.wake_all()

    def submit(self, request: Request) -> None:
        """Queue a request that no caller waits for, or settle it: superfluous, or too many."""
        with self._lock:
            self._workers.wake_all()
            if self._is_closed:
                self._line.fallen[request] = SkipReason.CLOSING
            else:
                self._line.add(request)
        self._settle_fallen()

    def join(self, fill: Request) -> Request | None:
        """Join the call of a request at the same LSN; where there is none, queue this one.

        What callers wait for is taken first. Call `leave` in any case, interrupted or not.

        Returns:
            The request whose call was joined; None once closed.
        """
        with self._lock:
            if self._is_closed:
                return None
            self._workers.wake_all()
            for other in self._line.find(fill.key, fill.lsn):
                fill.joined = other
                if other.call.join(fill):
                    self._line.adopt(other, fill)
                    return other
            fill.joined = fill
            fill.call.join(fill)
            self._line.line_up(fill)
            return fill

    def leave(self, fill: Request) -> None:
        """Leave the call that was joined; harmless twice."""
        request = fill.joined
        if request is None:
            return
        request.call.leave(fill)
        with self._lock:
            if self._line.may_give_up(request):
                self._workers.wake_all()
                self._line.give_up(request)
        self._settle_fallen()

    def has(self, key: bytes, lsn: Lsn) -> bool:
        """Whether a request at exactly `lsn` waits or runs."""
        with self._lock:
            return bool(self._line.find(key, lsn))

    def is_idle(self) -> bool:
        """Whether no request waits or runs, and each that has ended is settled."""
        self._settle_fallen()
        with self._lock:
            return self._line.is_empty

    def take(self) -> Request | None:
        """Wait for a request that a worker can look at; None once closed.

        One from the line has the slot of its timeline, one from behind has not.
        """
        taken: list[Request] = []

        def is_over() -> bool:
            with self._lock:
                request = None if self._is_closed else self._line.take()
                if request is not None:
                    taken.append(request)
                    if self._line.has_unpolled:
                        self._workers.wake_all()
                return self._is_closed or bool(taken)

        self._workers.wait_for(is_over, None)
        if not taken:
            self._settle_fallen()  # what an interrupted close has left
        return taken[0] if taken else None

    def has_other(self, request: Request) -> bool:
        """Whether another request can run if this one, which is taken, goes behind."""
        with self._lock:
            return self._line.has_other(request)

    def slice_s(self, request: Request) -> float:
        """How long a worker may wait for the LSN of a request before it looks at another."""
        with self._lock:
            is_wanted = request.is_sent or request.call.is_awaited
            if self._line.has_other(request) or not is_wanted:
                return _GLANCE_S
            return max(_LEAST_SLICE_S, WAIT_SLICE_S / max(1, self._line.behind_count))

    def postpone(self, request: Request) -> None:
        """Put a taken request behind what can run, and free the slot of its timeline."""
        with self._lock:
            if self._is_closed:
                self._line.fallen[request] = SkipReason.CLOSING
                self._line.release(request)
            else:
                self._workers.wake_all()
                self._line.postpone(request)
        self._settle_fallen()

    def start(self, request: Request) -> bool:
        """Begin the build of a taken request, as `Line.start`; what it outgrows is settled."""
        with self._lock:
            is_started = self._is_closed or self._line.start(request)
            if not is_started:
                self._workers.wake_all()
        self._settle_fallen()
        return is_started

    def finish(self, request: Request, ending: Ending) -> None:
        """Settle a taken request, unless that was done, and free its timeline for the next."""
        try:
            self._count(request, ending)
        finally:
            with self._lock:
                self._line.release(request)
                if len(self._line):  # else a worker would wake in vain
                    self._workers.wake_all()
            request.call.finish(ending.result)
            self._work_counter.changed()

    def close(self) -> None:
        """Take no more requests and wake the workers; what waits is settled.

        The callers of what runs are told too: its worker may be stuck.
        """
        with self._lock:
            self._workers.wake_all()
            self._is_closed = True
            self._line.clear(SkipReason.CLOSING)
            running = list(self._line.running.values())
        self._settle_fallen()
        for request in running:
            request.call.finish(CLOSED)

    def abandon_running(self) -> None:
        """Settle what threads run that a close leaves behind."""
        with self._lock:
            running = list(self._line.running.values())
        for request in running:
            self._count(request, Ending.skip(SkipReason.CLOSING))
            request.call.finish(CLOSED)

    def _settle_fallen(self) -> None:
        """Settle what has fallen out of the line, whichever thread has made it fall."""
        if not self._line.fallen:  # one read of memory
            return
        with self._lock:
            fallen = list(self._line.fallen.items())
        for request, reason in fallen:
            ending = Ending.skip(reason)
            self._count(request, ending)
            request.call.finish(ending.result)
            with self._lock:
                self._line.fallen.pop(request, None)
            self._work_counter.changed()

    def _count(self, request: Request, ending: Ending) -> None:
        """Count and log an ended request, once."""
        with self._lock:
            is_first, request.is_counted = not request.is_counted, True
        if is_first:
            ending.count_in(self._metrics)
            ending.log(request, len(self._line))
