"""Waiting for another thread in a way that a KeyboardInterrupt cannot break.

CPython raises a KeyboardInterrupt in the main thread between two steps of Python code.
`threading.Event` and ``with condition`` take their lock in Python code. An interrupt right
after that leaves the lock held, and the next thread that wants it hangs. So each wait has a lock of
its own, which is taken in C, with the timeout, by nobody else.

`queue.SimpleQueue` is not an alternative: before CPython 3.13 its `get` may wait for ever if the
timeout expires before it waits.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# CPython sees a signal that comes just before a wait only after it. And a thread may be
# interrupted before it wakes the others. So each wait ends after a slice, and begins again.
_SLICE_S: Final = 1.0


class Waiters:
    """The threads that wait for a change of some state. Thread-safe; takes no lock."""

    def __init__(self) -> None:
        self._waiting: set[Lock] = set()  # one for each wait; held until it is woken

    def wait_for(self, is_so: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until `is_so` is true.

        Args:
            is_so: called in this thread, without any lock.
            timeout_s: seconds to wait; None waits without limit.

        Returns:
            The last result of `is_so`.
        """
        deadline_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        asleep = Lock()
        asleep.acquire()
        self._waiting.add(asleep)  # before the first look, so that no change is missed
        try:
            while not (is_over := is_so()):
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    break
                asleep.acquire(timeout=min(left_s, _SLICE_S))
            return is_over
        finally:
            self._waiting.discard(asleep)

    def wake_all(self) -> None:
        """Make every thread look at the changed state. A finaliser may call it."""
        for asleep in tuple(self._waiting):
            with suppress(RuntimeError):  # it was woken before
                asleep.release()
