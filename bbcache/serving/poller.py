"""One thread that watches every connection which waits for input of its client.

It does no client's work: a connection with input goes to `on_ready`, and whatever serves it
gives it back with `Poller.watch`. So a client that sends slowly, or nothing, holds no thread.

Two threads that both run Python hand the GIL to each other at every system call, which costs
more than the calls. So one worker that has nothing to do takes the next connection itself, with
`Poller.take`, and the thread of the poller leaves the connections to it as long as it takes one
after the other.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Final, Generic, Protocol, TypeVar

from bbcache.serving.listening import Address

_EVENTS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT
_MAPPED: Final = "::ffff:"  # before an address of IPv4, on a socket for both families
_MOST_ACCEPTS: Final = 64  # of one turn, so that a flood of clients does not hide the others
_ACCEPT_PAUSE_S: Final = 0.05  # after an accept that failed, such as for want of descriptors
_WARN_PAUSE_S: Final = 1.0
_MOST_WAIT_S: Final = 1e6  # epoll takes milliseconds in an int of C
_TURN_S: Final = 0.002  # a worker that takes connections loses the right after twice this time
REST_S: Final = 0.001  # one resting connection goes on in this time


class Watched(Protocol):
    """A connection that waits for input.

    Attributes:
        deadline_s: when it is ready even without input, by `time.monotonic`.
    """

    deadline_s: float

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        ...


_W = TypeVar("_W", bound=Watched)
log = logging.getLogger(__name__)


class Poller(Generic[_W]):
    """Watches connections and accepts new ones. Thread-safe.

    Args:
        on_ready: called with each connection that has input or is past its deadline.
        on_accept: called with each new socket and its peer. Both are called in the thread of
            the poller, so they must not wait; an exception of `on_accept` closes the socket.
        name: of the thread.
    """

    def __init__(
        self,
        on_ready: Callable[[_W], None],
        on_accept: Callable[[socket.socket, str], None],
        name: str,
    ) -> None:
        self._on_ready = on_ready
        self._on_accept = on_accept
        self._lock = threading.Lock()  # guards the eight below
        self._bell = -1  # a descriptor, while there is one
        self._watched: dict[int, _W] = {}  # by descriptor
        self._resting: deque[_W] = deque()
        self._check_at_s = math.inf  # no watched connection has an earlier deadline
        self._is_closing = False
        self._taker: int | None = None  # the worker that looks for input in this thread's place
        self._is_taking = False  # it looks, rather than serving what it has taken
        self._taken_count = 0
        self._listeners: dict[int, socket.socket] = {}  # set by start, closed by this thread
        self._accept_at_s = -math.inf
        self._rest_until_s = -math.inf
        self._warned_s = -math.inf
        self._is_accepting = True
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, listeners: Iterable[socket.socket]) -> None:
        """Accept from `listeners`, which belong to the poller now, and watch.

        Raises:
            OSError: there is no descriptor for it.
            RuntimeError: there is no thread for it.
        """
        with ExitStack() as opened:
            self._listeners = {opened.enter_context(each).fileno(): each for each in listeners}
            self._epoll = opened.enter_context(select.epoll())  # the listeners and the bell
            self._inputs = opened.enter_context(select.epoll())  # the connections
            self._both = opened.enter_context(select.epoll())
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            opened.callback(self._close_bell)
            for fd in (self._bell, *self._listeners):
                self._epoll.register(fd, select.EPOLLIN)
            for each in (self._epoll, self._inputs):
                self._both.register(each.fileno(), select.EPOLLIN)
            self._thread.start()
            opened.pop_all()

    @property
    def is_accepting(self) -> bool:
        """Whether clients can connect."""
        return self._is_accepting and self._thread.is_alive()

    def watch(self, connection: _W) -> None:
        """Call `on_ready` once, when the connection has input or its deadline is over.

        Raises:
            OSError: the descriptor cannot be watched.
        """
        fd = connection.fileno()
        with self._lock:
            self._watched[fd] = connection
            is_earliest = connection.deadline_s < self._check_at_s
            if is_earliest:
                self._check_at_s = connection.deadline_s
        try:
            try:
                self._inputs.modify(fd, _EVENTS)
            except FileNotFoundError:
                self._inputs.register(fd, _EVENTS)
        except OSError:
            with self._lock:
                self._watched.pop(fd, None)
            raise
        except ValueError as error:  # the poller was closed meanwhile
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from error
        if is_earliest:
            self._ring()

    def rest(self, connection: _W) -> None:
        """Call `on_ready` after a pause: the client has sent more than its turn takes.

        One resting connection goes on each millisecond, however many there are, so that they
        leave the processor to the others.
        """
        with self._lock:
            self._resting.append(connection)
        self._ring()

    def take(self, timeout_s: float) -> _W | None:
        """Return the next connection that has input or reaches its end.

        `on_ready` is not called for it. One thread at a time takes connections. Where it does
        not call again within some milliseconds, the thread of the poller looks for input again,
        so that a thread that waits holds up nobody.

        Args:
            timeout_s: how long to wait for input.

        Returns:
            None without input, or where another thread takes connections.
        """
        thread_id = threading.get_ident()
        with self._lock:
            if self._is_closing or self._taker not in (None, thread_id):
                return None
            self._taker, self._is_taking = thread_id, True
        try:
            events = self._inputs.poll(timeout_s, 1)
        except (OSError, ValueError):  # the poller was closed meanwhile
            events = []
        with self._lock:
            self._is_taking = False
            self._taken_count += 1
            connection = self._watched.pop(events[0][0], None) if events else None
            if connection is None:
                self._taker = None
        if connection is None:
            self._ring()
        return connection

    def stop_accepting(self) -> None:
        """Close the listening sockets soon; waits for nothing."""
        self._is_accepting = False
        self._ring()

    def close(self, timeout_s: float | None) -> None:
        """End the thread; may be called twice. The watched connections stay open."""
        self._is_accepting = False
        with self._lock:
            was_closing, self._is_closing = self._is_closing, True
        if self._bell < 0 or was_closing:
            return
        self._ring()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._close_epolls()
            self._close_bell()

    def close_inherited(self) -> None:
        """See `bbcache.lifecycle.ThreadOwner`."""
        if self._bell >= 0:
            self._close_epolls()
            os.close(self._bell)
            for listener in self._listeners.values():
                listener.close()

    def _ring(self) -> None:
        with self._lock:  # so that the descriptor is not another file's by now
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def _close_epolls(self) -> None:
        for each in (self._both, self._inputs, self._epoll):
            each.close()

    def _close_bell(self) -> None:
        with self._lock:
            bell, self._bell = self._bell, -1
        os.close(bell)

    def _run(self) -> None:
        while not self._is_closing:
            for fd in self._poll(self._timeout_s()):
                if fd == self._bell:
                    os.eventfd_read(self._bell)
                elif fd in self._listeners:
                    self._accept(self._listeners[fd])
                else:
                    self._ready(fd)
            self._find_due()
            self._tend_listeners()
        self._close_listeners()

    def _poll(self, timeout_s: float) -> list[int]:
        """Wait for input, but leave the connections to the worker that takes them, if any."""
        if self._taker is None:
            self._both.poll(timeout_s)
            epolls = [self._epoll, self._inputs] if self._taker is None else [self._epoll]
            return [fd for epoll in epolls for fd, _ in epoll.poll(0)]
        due_s = time.monotonic() + timeout_s
        while True:
            seen_count = self._taken_count
            events = self._epoll.poll(min(timeout_s, _TURN_S))
            with self._lock:
                if self._taken_count == seen_count and not self._is_taking:
                    self._taker = None
            timeout_s = due_s - time.monotonic()
            if events or timeout_s <= 0 or self._taker is None:
                return [fd for fd, _ in events]

    def _timeout_s(self) -> float:
        now_s = time.monotonic()
        due_s = [self._check_at_s]
        if self._resting:
            due_s.append(self._rest_until_s)
        if self._accept_at_s > now_s:
            due_s.append(self._accept_at_s)
        return max(0.0, min(_MOST_WAIT_S, min(due_s) - now_s))

    def _ready(self, fd: int) -> None:
        with self._lock:
            connection = self._watched.pop(fd, None)
        if connection is not None:
            self._on_ready(connection)

    def _find_due(self) -> None:
        now_s = time.monotonic()
        rested = None
        with self._lock:
            if self._resting and now_s >= self._rest_until_s:
                self._rest_until_s = now_s + REST_S
                rested = self._resting.popleft()
            late = []
            if now_s >= self._check_at_s:
                late = [fd for fd, each in self._watched.items() if each.deadline_s <= now_s]
                left = (each.deadline_s for each in self._watched.values())
                self._check_at_s = min((at_s for at_s in left if at_s > now_s), default=math.inf)
        if rested is not None:
            self._on_ready(rested)
        for fd in late:
            self._ready(fd)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_MOST_ACCEPTS):
            if not self._is_accepting:
                return
            try:
                sock, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause_accepting(error)
                return
            try:
                self._on_accept(sock, str(Address(address[0].removeprefix(_MAPPED), address[1])))
            except Exception:
                sock.close()
                log.exception("cannot serve a connection")

    def _pause_accepting(self, error: OSError) -> None:
        now_s = time.monotonic()
        if self._accept_at_s == -math.inf:
            for fd in self._listeners:
                self._epoll.modify(fd, 0)
        self._accept_at_s = now_s + _ACCEPT_PAUSE_S
        if now_s >= self._warned_s + _WARN_PAUSE_S:
            self._warned_s = now_s
            log.warning("cannot accept a connection: %s", error.strerror)

    def _tend_listeners(self) -> None:
        if not self._is_accepting:
            self._close_listeners()
        elif self._accept_at_s != -math.inf and time.monotonic() >= self._accept_at_s:
            self._accept_at_s = -math.inf
            for fd in self._listeners:
                self._epoll.modify(fd, select.EPOLLIN)

    def _close_listeners(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
