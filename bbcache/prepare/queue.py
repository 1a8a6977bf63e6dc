"""The queue of prepares: from `submit` or `join` to `finish`, each request settled once.

To settle a request is to count it, log it and tell its callers. The queue does that for
requests that a worker has run and for those that have fallen out of the line.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from bbcache.errors import BbcacheError, safe_str
from bbcache.explanation import UnderWay
from bbcache.outcomes import PrepareResult, RequestState, SkipReason
from bbcache.prepare.fetch_line import MOST_WARMS
from bbcache.prepare.line import Line
from bbcache.prepare.request import CLOSED, Result
from bbcache.storage.index import split_key
from bbcache.waiters import Waiters

if TYPE_CHECKING:
    from bbcache.errors import ArgumentError
    from bbcache.history import History
    from bbcache.ids import Lsn
    from bbcache.metrics import Metrics
    from bbcache.prepare.request import Request
    from bbcache.work_counter import WorkCounter

WAIT_SLICE_S: Final = 0.2  # the longest wait for the LSN of one request
_LEAST_SLICE_S: Final = 0.01  # if many wait in turn; bounds the processor time of these waits
_GLANCE_S: Final = 0.001  # if another request can run, or nobody wants this one

# The documented logger of all outcomes: archives at INFO, skips at DEBUG (at WARNING if a limit
# is in the way), errors at ERROR.
log = logging.getLogger("bbcache.prepare.worker")


class PrepareQueue:
    """Prepares that wait, and those that run. Thread-safe.

    A KeyboardInterrupt may end a caller's step anywhere. So a step wakes the workers, which
    then wait for the lock, before it changes anything. A request that falls out stays in the
    line's list until it is settled, by this thread or by the next one that uses the queue.

    Metrics and log are called without the lock.

    Args:
        capacity: see `Line`.
        metrics: counts how requests end.
        history: records it.
        work_counter: is told when a request has ended.
    """

    def __init__(
        self, capacity: int, metrics: Metrics, history: History, work_counter: WorkCounter
    ) -> None:
        self._lock = threading.RLock()  # guards the line, and what changes of its requests
        self._line = Line(capacity)
        self._metrics = metrics
        self._history = history
        self._work_counter = work_counter
        self._workers = Waiters()
        self._is_closed = False
        metrics.prepare_queue_size.read_from(self._line.__len__)

    def __len__(self) -> int:
        """How many requests wait; takes no lock."""
        return len(self._line)

    def open(self, *, for_fills_only: bool = False) -> None:
        """Let workers take requests, which have only been collected so far.

        Args:
            for_fills_only: whether workers may take only requests that callers wait for.
        """
        with self._lock:
            self._line.is_open_for_fills = True
            self._line.is_open = not for_fills_only
            self._workers.wake_all()
            self._line.fetches.wake(len(self._line.fetches.requests))

    def submit(self, request: Request) -> None:
        """Queue a request that no caller waits for, or settle it if it is not needed."""
        with self._lock:
            self._workers.wake_all()
            if self._is_closed:
                self._line.fallen[request] = SkipReason.CLOSING
            else:
                self._line.add(request)
        self._settle_fallen()

    def reject(self, function: str, error: ArgumentError) -> None:
        """Count and log a call of a function of the cache with arguments of a wrong type."""
        self._metrics.prepare_failed()
        log.error("invalid call of %s: %s", function, error)

    def join(self, fill: Request) -> Request | None:
        """Join a request at the same LSN; if there is none, queue this one.

        Call `leave` in any case, also after an interrupt.

        Returns:
            The request that was joined; None once closed.
        """
        with self._lock:
            if self._is_closed:
                return None
            self._workers.wake_all()
            for other in self._line.find(fill.key, fill.lsn):
                fill.joined = other
                if other.join(fill):
                    self._line.adopt(other, fill)
                    return other
            fill.joined = fill
            fill.join(fill)
            if fill.fetch_timeout_s is None:
                self._line.line_up(fill)
            else:
                self._line.fetches.add(fill)
            return fill

    def warm(self, request: Request) -> None:
        """Queue a request of `send_warm`, or settle it if it is not needed."""
        with self._lock:
            if self._is_closed:
                self._line.fallen[request] = SkipReason.CLOSING
            elif others := self._line.find(request.key, request.lsn):
                for other in others:
                    other.is_sent |= request.is_sent
                self._line.fallen[request] = SkipReason.COALESCED
            elif not self._line.fetches.add(request):
                request.fetch_failure = BbcacheError(f"{MOST_WARMS} fetches wait already")
                self._line.fallen[request] = SkipReason.QUEUE_FULL
        self._settle_fallen()

    def take_fetch(self) -> Request | None:
        """Wait for a request to fetch; None once closed. Call `end_fetch` after it."""
        while True:
            with self._lock:
                if self._is_closed:
                    self._line.fetches.wake(1)  # the next thread
                    return None
                request = self._line.fetches.take() if self._line.is_open else None
            if request is not None:
                return request
            self._line.fetches.wait()

    def claim(self, request: Request) -> bool:
        """Take the slot of a timeline to publish what was fetched; see `Line.claim`."""
        with self._lock:
            return not self._is_closed and self._line.claim(request)

    def end_fetch(self, request: Request, result: Result | None, *, is_claimed: bool) -> None:
        """Settle a request that was fetched, or make it a build if `result` is None.

        Args:
            request: the request.
            result: how the fetch ended.
            is_claimed: whether `claim` has given it the slot of its timeline.
        """
        with self._lock:
            self._workers.wake_all()
            is_here = self._line.fetches.has(request)
            if result is None and is_claimed and not self._is_closed:
                self._line.unclaim(request)
            elif result is None and is_here:
                self._line.end_fetch(request)
        if result is None and is_claimed and self._is_closed:
            result = CLOSED
        if result is not None and (is_here or is_claimed):
            self.finish(request, result)
        elif result is not None and result.shared_file is not None:
            result.shared_file.close()  # it came too late: the request is a build, or has ended
        self._settle_fallen()
        self._work_counter.changed()

    def leave(self, fill: Request) -> None:
        """Leave the request that was joined; harmless twice."""
        request = fill.joined
        if request is None:
            return
        request.leave(fill)
        with self._lock:
            if not request.is_awaited:
                self._workers.wake_all()
                self._line.give_up(request)
        self._settle_fallen()

    def has(self, key: bytes, lsn: Lsn) -> bool:
        """Whether a request at exactly `lsn` waits or runs."""
        with self._lock:
            return bool(self._line.find(key, lsn))

    def under_way(self, key: bytes) -> tuple[UnderWay, ...]:
        """The requests of a timeline that wait or run, the running one first."""
        now_s = time.monotonic()
        with self._lock:
            return tuple(
                UnderWay(
                    request.lsn,
                    self._state_locked(request),
                    max(0.0, now_s - request.queued_at_s),
                    request.is_awaited,
                )
                for request in self._line.of(key)
            )

    def is_idle(self) -> bool:
        """Whether no request waits or runs, and each that has ended is settled."""
        self._settle_fallen()
        with self._lock:
            return self._line.is_empty

    def take(self) -> Request | None:
        """Wait for a request that a worker can look at, see `Line.take`; None once closed."""
        taken: list[Request] = []

        def is_over() -> bool:
            with self._lock:
                self._give_up_fetches_locked()
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

    def _give_up_fetches_locked(self) -> None:
        """Build what a tier has not given in its time, because it hangs or has no thread left."""
        fetches = self._line.fetches
        if fetches.requests:
            for request in fetches.overdue(time.monotonic()):
                self._line.end_fetch(request)

    def has_other(self, request: Request) -> bool:
        """Whether another request could run if this one, which is taken, went behind."""
        with self._lock:
            return self._line.has_other(request)

    def slice_s(self, request: Request) -> float:
        """How many seconds a worker may wait for the LSN of a request."""
        with self._lock:
            is_wanted = request.is_sent or request.is_awaited
            if self._line.has_other(request) or not is_wanted:
                return _GLANCE_S
            return max(_LEAST_SLICE_S, WAIT_SLICE_S / max(1, self._line.behind_count))

    def postpone(self, request: Request) -> None:
        """Put a taken request behind the line, and free the slot of its timeline."""
        with self._lock:
            if self._is_closed:
                self._line.fallen[request] = SkipReason.CLOSING
                self._line.release(request)
            else:
                self._workers.wake_all()
                self._line.postpone(request)
        self._settle_fallen()

    def start(self, request: Request) -> bool:
        """Begin the build of a taken request, see `Line.start`."""
        with self._lock:
            is_started = self._is_closed or self._line.start(request)
            if not is_started:
                self._workers.wake_all()
        self._settle_fallen()
        return is_started

    def finish(self, request: Request, result: Result) -> None:
        """Settle a request, unless that is done, and free its timeline for the next one."""
        try:
            self._count(request, result)
        finally:
            with self._lock:
                self._line.release(request)
                if len(self._line):  # else a worker would wake in vain
                    self._workers.wake_all()
            request.finish(result)
            self._work_counter.changed()

    def close(self) -> None:
        """Take no more requests, wake the workers and settle what waits.

        The callers of running requests are told too, since a worker may be stuck.
        """
        with self._lock:
            self._workers.wake_all()
            self._is_closed = True
            self._line.fetches.wake(1)
            self._line.clear(SkipReason.CLOSING)
            running = list(self._line.running.values())
        self._settle_fallen()
        for request in running:
            request.finish(CLOSED)

    def abandon_running(self) -> None:
        """Settle the requests of threads that a close leaves behind."""
        with self._lock:
            running = list(self._line.running.values())
        for request in running:
            self._count(request, CLOSED)
            request.finish(CLOSED)

    def _state_locked(self, request: Request) -> RequestState:
        if self._line.fetches.has(request):
            return RequestState.FETCHING
        if request.is_reached:
            return RequestState.BUILDING
        if request.waiting_since_s is not None:
            return RequestState.WAITING_LSN
        is_running = self._line.running.get(request.key) is request
        return RequestState.CHECKING if is_running else RequestState.QUEUED

    def _settle_fallen(self) -> None:
        """Settle every request that has fallen out of the line."""
        if not self._line.fallen:  # one read of memory
            return
        with self._lock:
            fallen = list(self._line.fallen.items())
        for request, reason in fallen:
            result = Result.skip(reason)._replace(why=request.fetch_failure)
            self._count(request, result)
            request.finish(result)
            with self._lock:
                self._line.fallen.pop(request, None)
            self._work_counter.changed()

    def _count(self, request: Request, result: Result) -> None:
        """Count, record and log an ended request, once.

        Builds and errors are logged by the worker.
        """
        with self._lock:
            is_first, request.is_counted = not request.is_counted, True
        if not is_first:
            return
        if result.reason is not None:
            self._metrics.skipped(result.reason)
            self._log_skip(request, result)
        elif result.published_bytes is not None:
            self._metrics.prepared(*result.published_bytes)
        else:
            self._metrics.prepare_failed()
        self._record(request, result)

    def _record(self, request: Request, result: Result) -> None:
        error, outcome = result.why or result.error, PrepareResult.ERROR
        detail = "" if error is None else safe_str(error)
        if result.published_bytes is not None:
            outcome, detail = PrepareResult.OK, f"{result.published_bytes[1]} bytes"
        elif result.is_built:
            detail = f"given to its callers alone{f', {detail}' if detail else ''}"
        self._history.add(request.key, request.lsn, result.reason or outcome, detail)

    def _log_skip(self, request: Request, result: Result) -> None:
        why = "" if result.why is None else f": {safe_str(result.why)}"
        if result.reason is SkipReason.QUEUE_FULL and not why:
            why = f": {len(self)} prepares wait already (prepare_channel_size)"
        log.log(
            logging.WARNING if why and result.reason is not SkipReason.DECLINED else logging.DEBUG,
            "basebackup of %s at %s %s (%s)%s",
            split_key(request.key),
            request.lsn,
            "not published" if result.is_built else "skipped",
            result.reason,
            why,
        )
