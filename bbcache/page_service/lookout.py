"""Waiting for what many clients say, with one thread for all of them.

The thread that waits serves whom it hears, itself, and then waits on. With a thread for
each client a hit would cost several times as much: each had to be woken, and to ask for
the GIL anew behind each of its system calls, while all others ask for it too.

Of those that are heard at once some are served before their answers are sent, since to
wake who waits for an answer costs more than to send another while he is awake.

What may take long says so beforehand, by `Lookout.leave`: then another thread waits on.
The pattern is called Leader/Followers (Schmidt et al., Pattern-Oriented Software
Architecture, volume 2).
"""

from __future__ import annotations

import logging
import math
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Final, Protocol, TypeVar

_MOST_AT_ONCE: Final = 8  # are served before the first of them has its answer
_MOST_S: Final = 1e6  # in milliseconds it must be an int of C

_T = TypeVar("_T")

log = logging.getLogger(__name__)


class Client(Protocol):
    """Somebody who is waited for. One thread at a time uses it."""

    def fileno(self) -> int:
        """The descriptor of its socket: the same one as long as it is open."""
        ...

    def serve(self) -> bool:
        """Serve what it has said, if anything; `finish` comes soon after, with the answer.

        Must not wait before `Lookout.leave` was called.

        Returns:
            Whether it goes on; False where it is over, and closed.
        """
        ...

    def finish(self) -> float | None:
        """Send what is left to be sent, or find that it has been silent for too long.

        Must not wait before `Lookout.leave` was called.

        Returns:
            By when it must say more, by the clock; None where it is over, and closed.
        """
        ...

    def close(self) -> None:
        """End it."""
        ...


class Lookout:
    """Waits for clients, and serves each one that says something. Thread-safe.

    Args:
        most_away: how many clients can be at something long at once.
        clock: seconds that only grow.
        name: of the threads.
        when_quiet: called where nobody has said anything, for what can be put off.
    """

    def __init__(
        self,
        most_away: int,
        clock: Callable[[], float],
        name: str,
        when_quiet: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._when_quiet = when_quiet
        self._pool = ThreadPoolExecutor(most_away + 1, name)
        self._is_started = False
        self._is_closing = threading.Event()
        self._has_ended = threading.Event()
        # Here any thread hands a client to the one that leads: a new one, one that is back
        # from something long, or with None one that is over after something long.
        self._handed: deque[tuple[Client, float | None]] = deque()
        # All that follows is the leader's alone, and goes on with the lead.
        self._leader: int | None = None  # the thread's ident
        self._waiting: dict[int, Client] = {}  # by descriptor
        self._deadlines_s: dict[int, float] = {}  # likewise
        self._away: set[Client] = set()
        # Descriptors of those to be served next, and again, to be finished: True.
        self._turns: deque[tuple[int, bool]] = deque()
        self._served_fd = -1
        self._check_at_s = math.inf  # nobody's deadline is before that

    def start(self) -> None:
        """Begin to wait.

        Raises:
            OSError: there is no descriptor for it.
            RuntimeError: there is no thread for it.
        """
        with ExitStack() as opened:
            self._epoll = opened.enter_context(select.epoll())
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            opened.callback(os.close, self._bell)
            self._epoll.register(self._bell, select.EPOLLIN)
            self._pool.submit(self._lead)
            self._is_started = True
            opened.pop_all()

    def add(self, client: Client, deadline_s: float) -> None:
        """Wait for one more, which must say something by then; after `start`.

        Where all has ended it is closed.
        """
        self._hand_over(client, deadline_s)

    def leave(self) -> None:
        """What this thread does now may take long: another one waits on, if it was this."""
        if self._leader != threading.get_ident():
            return
        self._epoll.unregister(self._served_fd)
        self._away.add(self._forget(self._served_fd))
        self._leader = None
        try:
            self._pool.submit(self._lead)
        except RuntimeError as error:  # it is queued, and begins when some thread is free
            log.warning("no thread can be begun to wait for clients: %s", error)

    def drop_inherited(self) -> None:
        """See `bbcache.page_service.inherited.Owner`."""
        if self._is_started:
            self._epoll.close()
            os.close(self._bell)

    def begin_close(self) -> None:
        """End as soon as the last client is over; waits for nothing."""
        if self._is_started:
            self._is_closing.set()
            self._ring()

    def close(self, timeout_s: float | None) -> None:
        """End as soon as the last client is over, and wait for that."""
        if not self._is_started:
            return
        self.begin_close()
        if self._has_ended.wait(timeout_s):
            self._is_started = False
            self._pool.shutdown()
            self._epoll.close()
            os.close(self._bell)

    def _hand_over(self, client: Client, deadline_s: float | None) -> None:
        self._handed.append((client, deadline_s))
        if self._has_ended.is_set():
            self._drop_handed()
        else:
            self._ring()

    def _drop_handed(self) -> None:
        with suppress(IndexError):  # another thread may take the last one
            while self._handed:
                client, deadline_s = self._handed.popleft()
                if deadline_s is not None:
                    client.close()

    def _ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    def _lead(self) -> None:
        """Wait for clients and serve them, until this thread leaves or all is over."""
        me = self._leader = threading.get_ident()
        while (turn := self._next()) is not None:
            fd, is_second = turn
            self._served_fd = fd
            client = self._waiting[fd]
            goes_on = is_second or _guarded(client, client.serve)
            if goes_on and not is_second and self._leader == me:
                continue  # its second turn comes
            deadline_s = _guarded(client, client.finish) if goes_on else None
            if self._leader != me:
                self._hand_over(client, deadline_s)
                return
            if deadline_s is None:
                self._forget(fd)  # it was closed, by which it has left the epoll, too
            else:
                self._expect_by(fd, deadline_s)
        self._has_ended.set()
        self._drop_handed()  # who comes later does so himself

    def _expect_by(self, fd: int, deadline_s: float) -> None:
        self._deadlines_s[fd] = deadline_s
        self._check_at_s = min(self._check_at_s, deadline_s)

    def _forget(self, fd: int) -> Client:
        del self._deadlines_s[fd]
        return self._waiting.pop(fd)

    def _next(self) -> tuple[int, bool] | None:
        """Whose turn is next; None where all is over."""
        while True:
            while self._turns:
                turn = self._turns.popleft()
                if turn[0] in self._waiting:  # it may have left, or ended, at its first
                    return turn
            self._take_handed()
            if self._is_closing.is_set() and not self._waiting and not self._away:
                return None
            left_s = self._check_at_s - self._clock()
            if left_s > 0:
                self._listen(min(left_s, _MOST_S))
            else:
                self._find_late()

    def _give_turns(self, fds: Sequence[int]) -> None:
        for first in range(0, len(fds), _MOST_AT_ONCE):
            some = fds[first : first + _MOST_AT_ONCE]
            self._turns.extend((fd, False) for fd in some)
            self._turns.extend((fd, True) for fd in some)

    def _take_handed(self) -> None:
        while self._handed:
            client, deadline_s = self._handed.popleft()
            self._away.discard(client)
            if deadline_s is None:
                continue
            try:
                self._epoll.register(client.fileno(), select.EPOLLIN)
            except OSError as error:
                client.close()
                with suppress(Exception):  # of a handler of the log: it must not end the wait
                    log.warning("a client cannot be waited for: %s", error.strerror)
            else:
                self._waiting[client.fileno()] = client
                self._expect_by(client.fileno(), deadline_s)

    def _listen(self, timeout_s: float) -> None:
        events = self._epoll.poll(0)
        if not events:
            self._use_the_quiet()
            events = self._epoll.poll(timeout_s)
        fds = [fd for fd, _ in events]
        if self._bell in fds:
            os.eventfd_read(self._bell)
            fds.remove(self._bell)
        self._give_turns(fds)

    def _use_the_quiet(self) -> None:
        try:
            self._when_quiet()
        except Exception:
            with suppress(Exception):  # as above
                log.exception("what was put off has failed")

    def _find_late(self) -> None:
        now_s = self._clock()
        self._give_turns([fd for fd, at_s in self._deadlines_s.items() if at_s <= now_s])
        left_s = (at_s for at_s in self._deadlines_s.values() if at_s > now_s)
        self._check_at_s = min(left_s, default=math.inf)


def _guarded(client: Client, step: Callable[[], _T]) -> _T | None:
    """What a step of a client's gives; None where it fails, and the client is closed."""
    try:
        return step()
    except BaseException:
        client.close()
        with suppress(Exception):  # of a handler of the log: others are to be served
            log.exception("a client could not be served")
        return None
