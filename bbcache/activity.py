"""How much work is under way in a cache, and waiting until there is none."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bbcache.waiters import Waiters

if TYPE_CHECKING:
    from collections.abc import Iterator


class Activity:
    """A count of pieces of work under way. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # guards _count
        self._count = 0
        self._is_over = False
        self._waiters = Waiters()

    def begin(self) -> None:
        """Count one more piece of work."""
        with self._lock:
            self._count += 1

    def end(self) -> None:
        """Count one piece of work less; call once for each `begin`."""
        with self._lock:
            self._count -= 1
            is_idle = self._count == 0
        if is_idle:
            self._waiters.wake_all()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Count a piece of work for the time of a block."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def wait_idle(self, timeout_s: float | None) -> bool:
        """Wait until nothing is under way.

        Returns:
            False when `timeout_s` seconds passed first, or the cache was closed
            with work left.
        """
        self._waiters.wait_for(lambda: self._count == 0 or self._is_over, timeout_s)
        return self._count == 0

    def give_up(self) -> None:
        """Wake every thread that waits: nothing more will end."""
        self._is_over = True
        self._waiters.wake_all()
