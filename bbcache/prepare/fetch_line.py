"""The requests that a second tier is asked for, before they become builds. Memory only."""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bbcache.prepare.request import Request

MOST_WARMS: Final = 10_000  # requests that no caller waits for


class FetchLine:
    """Requests that wait for a fetch, and those that are being fetched.

    Every call but `wait` needs the queue's lock. A thread is woken before a request is
    added, and waits for the lock then, so that an interrupted caller leaves no request behind.

    Attributes:
        requests: all of them, by place.
    """

    def __init__(self) -> None:
        self.requests: dict[bytes, Request] = {}
        self._fills: dict[bytes, Request] = {}  # those that wait, with callers
        self._warms: dict[bytes, Request] = {}  # those that wait, without
        self._news: SimpleQueue[None] = SimpleQueue()  # one for each request, or more

    def add(self, request: Request) -> bool:
        """Let a request wait for a fetch; False if too many wait already."""
        waiting = self._fills if request.is_awaited else self._warms
        if waiting is self._warms and len(waiting) >= MOST_WARMS:
            return False
        self.wake(1)
        waiting[request.place] = request
        self.requests[request.place] = request
        return True

    def adopt(self, request: Request, fill: Request) -> None:
        """Let a request that `fill`, of a caller, has joined go first, if it still waits."""
        request.fetch_by_s = max(request.fetch_by_s, fill.fetch_by_s)
        if self._warms.get(request.place) is request:
            self._fills[request.place] = request
            del self._warms[request.place]

    def take(self) -> Request | None:
        """The next request to fetch."""
        for waiting in (self._fills, self._warms):
            if waiting:
                return waiting.pop(next(iter(waiting)))
        return None

    def has(self, request: Request) -> bool:
        """Whether the request is still here."""
        return self.requests.get(request.place) is request

    def is_waiting(self, request: Request) -> bool:
        """Whether no thread has taken the request yet."""
        return request in (self._fills.get(request.place), self._warms.get(request.place))

    def remove(self, request: Request) -> None:
        """Remove a request."""
        for requests in (self._fills, self._warms, self.requests):
            requests.pop(request.place, None)

    def overdue(self, now_s: float) -> list[Request]:
        """The requests that callers wait for, and whose time for a fetch is over."""
        return [
            each for each in self.requests.values() if each.is_awaited and now_s > each.fetch_by_s
        ]

    def clear(self) -> None:
        """Remove all."""
        for requests in (self._fills, self._warms, self.requests):
            requests.clear()

    def wake(self, count: int) -> None:
        """Make threads look; a finaliser may call it."""
        for _ in range(count):
            self._news.put(None)

    def wait(self) -> None:
        """Wait until there may be a request to take, or the queue is closed."""
        self._news.get()
