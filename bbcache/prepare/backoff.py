"""Pauses after failed builds. Memory only."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.errors import BackingOffError

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
MOST_FAILING: Final = 10_000  # if there are more, the oldest is forgotten


class _Failing(NamedTuple):
    failure_count: int
    until_s: float  # by the clock
    cause: str


class Backoff:
    """Pauses after failures in a row, each twice as long as the last. Thread-safe, re-entrant.

    Args:
        clock: a monotonic clock, in seconds.
        utcnow: the wall clock, for the text of the error.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        utcnow: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._lock = threading.RLock()  # guards _failing
        self._failing: dict[bytes, _Failing] = {}  # the latest failure last
        self._clock = clock
        self._utcnow = utcnow

    def failed(self, what: bytes, cause: str) -> None:
        """Note a failure of `what`, and pause."""
        now_s = self._clock()
        with self._lock:
            last = self._failing.pop(what, None)
            # A failure long after the last pause begins a new row.
            is_in_a_row = last is not None and now_s < last.until_s + LONGEST_PAUSE_S
            count = 1 + (last.failure_count if last is not None and is_in_a_row else 0)
            self._failing[what] = _Failing(count, now_s + _pause_s(count), cause)
            if len(self._failing) > MOST_FAILING:
                del self._failing[next(iter(self._failing))]

    def succeeded(self, *what: bytes) -> None:
        """Forget the failures of each `what`."""
        if self._failing:
            with self._lock:
                for each in what:
                    self._failing.pop(each, None)

    def beginning_with(self, key: bytes) -> list[bytes]:
        """Return the failing timelines and positions that begin with `key`."""
        with self._lock:
            failing = list(self._failing)
        return [each for each in failing if each.startswith(key)]

    def refusal(self, what: bytes, name: str) -> BackingOffError | None:
        """The error for a caller that wants `what` now; None if there is no pause.

        Args:
            what: as given to `failed`.
            name: what the error calls it.
        """
        with self._lock:
            last = self._failing.get(what)
        left_s = 0.0 if last is None else last.until_s - self._clock()
        if last is None or left_s <= 0:
            return None
        until = (self._utcnow() + timedelta(seconds=left_s)).isoformat(timespec="milliseconds")
        return BackingOffError(name, last.failure_count, left_s, until, last.cause)


def _pause_s(count: int) -> float:
    return min(FIRST_PAUSE_S * 2.0 ** min(count - 1, 30), LONGEST_PAUSE_S)
