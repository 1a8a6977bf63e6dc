"""The threads that serve connections: one for each that is busy, and none for the others."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

IDLE_TIMEOUT_S: Final = 10.0
_WARN_PAUSE_S: Final = 1.0

_C = TypeVar("_C")
log = logging.getLogger(__name__)


class Workers(Generic[_C]):
    """A pool that grows to `most` threads, and shrinks to one when they are idle. Thread-safe.

    The one stays, so that a connection is served also when the system begins no more threads.

    A free thread calls `take` before it waits. So one thread serves one short turn after the
    other, without a switch of threads between them.

    Where there are fewer threads than busy connections, the next free thread serves the
    group that has the fewest threads, so that no group keeps the others waiting.

    Args:
        most: threads at once.
        serve: called with each connection, in a thread of the pool.
        name: of the threads.
        group_of: names the group of a connection, such as its tenant.
        take: returns a connection that is to be served, or None; may wait for a moment.
        idle_timeout_s: how long a thread waits for a connection before it ends.
    """

    def __init__(
        self,
        most: int,
        serve: Callable[[_C], None],
        *,
        name: str,
        group_of: Callable[[_C], Hashable] = lambda _: None,
        take: Callable[[], _C | None] = lambda: None,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        self._most = most
        self._serve = serve
        self._name = name
        self._group_of = group_of
        self._take = take
        self._idle_timeout_s = idle_timeout_s
        self._changed = threading.Condition(threading.Lock())  # guards all that follows
        self._queue: deque[_C] = deque()
        self._threads: set[threading.Thread] = set()
        self._served: dict[int, Hashable] = {}  # the group that each busy thread serves
        self._yield_count = 0  # threads that were told to make room
        self._can_grow = True
        self._is_closing = False
        self._warned_s = -math.inf

    @property
    def is_short(self) -> bool:
        """Whether connections wait and no thread can be started; reads memory only."""
        count = len(self._threads)
        may_begin = count == 0 or (self._can_grow and count < self._most)
        return bool(self._queue) and len(self._served) == count and not may_begin

    def start(self) -> None:
        """Begin the first thread."""
        with self._changed:
            thread = self._new_thread_locked()
        self._begin(thread)

    def add(self, connection: _C) -> None:
        """Serve a connection as soon as there is a thread for it."""
        with self._changed:
            self._queue.append(connection)
            self._changed.notify()
            count = len(self._threads)
            if len(self._queue) <= count - len(self._served) or count >= self._most:
                return
            thread = self._new_thread_locked()
        self._begin(thread)

    def must_yield(self, *, to_own_group: bool) -> bool:
        """Whether the calling thread should end its work for a connection that has no thread.

        Each waiting connection counts once, so that no more threads give way than there are
        connections that wait.

        Args:
            to_own_group: whether it gives way to its own group, too. Otherwise it does only
                to a group that has fewer threads.
        """
        if not self.is_short:
            return False
        with self._changed:
            if self._yield_count >= len(self._queue):
                return False
            counts = Counter(self._served.values())
            fewest = min(counts[self._group_of(each)] for each in self._queue)
            own_count = counts[self._served.get(threading.get_ident())]
            if not to_own_group and fewest + 1 >= own_count:
                return False
            self._yield_count += 1
            return True

    def close(self, timeout_s: float | None) -> bool:
        """End the threads, each after its turn; False if that took longer."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in list(self._threads):
            thread.join(None if deadline_s is None else max(0.0, deadline_s - time.monotonic()))
        return not self._threads

    def _new_thread_locked(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._threads.add(thread)
        return thread

    def _begin(self, thread: threading.Thread) -> None:
        try:
            thread.start()
        except RuntimeError as error:  # what waits is served when another thread is free
            with self._changed:
                self._threads.discard(thread)
            self._can_grow = False
            now_s = time.monotonic()
            if now_s >= self._warned_s + _WARN_PAUSE_S:
                self._warned_s = now_s
                log.warning("cannot start a thread to serve clients: %s", error)
        else:
            self._can_grow = True

    def _run(self) -> None:
        connection = self._next()
        while connection is not None:
            try:
                self._serve(connection)
            except BaseException:  # SystemExit of a host ends no thread
                log.exception("a connection could not be served")
            connection = None  # which must not be kept while this thread waits
            connection = self._take_one() or self._next()

    def _take_one(self) -> _C | None:
        """Take a connection, unless one waits for a thread."""
        connection = None if self._queue or self._is_closing else self._take()
        if connection is not None:
            with self._changed:
                self._served[threading.get_ident()] = self._group_of(connection)
        return connection

    def _next(self) -> _C | None:
        """Wait for a connection; None if this thread is to end."""
        with self._changed:
            self._served.pop(threading.get_ident(), None)
            is_idle = False
            while not self._queue:
                if self._is_closing or (is_idle and len(self._threads) > 1):
                    self._threads.discard(threading.current_thread())
                    return None
                is_idle = not self._changed.wait(self._idle_timeout_s)
            connection = self._pick_locked()
            self._served[threading.get_ident()] = self._group_of(connection)
            self._yield_count = max(0, self._yield_count - 1)
            return connection

    def _pick_locked(self) -> _C:
        connection = self._queue[0]
        if len(self._queue) > 1:
            counts = Counter(self._served.values())
            connection = min(self._queue, key=lambda each: counts[self._group_of(each)])
        self._queue.remove(connection)
        return connection
