"""A clock that a test can advance."""

from __future__ import annotations

import threading
import time


class MovableClock:
    """Seconds of `time.monotonic`, and those by which a test has advanced it. Thread-safe.

    Pass it as `clock` to `BasebackupCache.spawn`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _ahead_s
        self._ahead_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        with self._lock:
            return time.monotonic() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Args:
            seconds: how much, at least 0.

        Raises:
            ValueError: it is less.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot be advanced by {seconds} s")
        with self._lock:
            self._ahead_s += seconds
