"""A breaker: after failures in a row, a tier is left alone for a while. Memory only."""

from __future__ import annotations

import threading
import time
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

FAILURES_TO_OPEN: Final = 3
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0


class Attempt(Enum):
    """An attempt that a breaker has let through."""

    ORDINARY = "ordinary"
    PROBE = "probe"  # the only one after a pause


class Breaker:
    """Opens after three failures in a row, for 1 s, doubling up to 60 s. Thread-safe.

    After each pause one attempt is let through, the probe. If it succeeds, the breaker is closed
    again. Attempts that began before a pause say nothing about the time after it.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards the rest
        self._failure_count = 0  # in a row, while closed
        self._pause_count = 0  # in a row; 0 while closed
        self._until_s = 0.0  # of the pause, by the clock
        self._is_probing = False

    def is_failing(self) -> bool:
        """Whether the last attempts failed.

        False a minute after the pause: without another attempt nothing is known any more.
        """
        with self._lock:
            return self._is_open_locked() and self._clock() < self._until_s + LONGEST_PAUSE_S

    def pause_s(self) -> float:
        """How many seconds are left of the pause; 0 if there is none."""
        with self._lock:
            return max(0.0, self._until_s - self._clock()) if self._is_open_locked() else 0.0

    def begin(self) -> Attempt | None:
        """Let an attempt through, for which `end` must follow; None refuses it."""
        with self._lock:
            if not self._is_open_locked():
                return Attempt.ORDINARY
            if self._is_probing or self._clock() < self._until_s:
                return None
            self._is_probing = True
            return Attempt.PROBE

    def end(self, attempt: Attempt, *, has_failed: bool | None) -> bool:
        """Note how an attempt ended.

        Args:
            attempt: the attempt.
            has_failed: None if the attempt says nothing about the tier.

        Returns:
            Whether the breaker has opened or closed just now.
        """
        with self._lock:
            was_open = self._is_open_locked()
            if attempt is Attempt.PROBE:
                self._is_probing = False
            elif was_open:
                return False
            if has_failed is None:
                return False
            self._failure_count = self._failure_count + 1 if has_failed else 0
            if not has_failed:
                self._pause_count = 0
            elif self._failure_count >= FAILURES_TO_OPEN:
                self._pause_count += 1
                pause_s = FIRST_PAUSE_S * 2.0 ** min(self._pause_count - 1, 30)
                self._until_s = self._clock() + min(pause_s, LONGEST_PAUSE_S)
            return was_open != self._is_open_locked()

    def _is_open_locked(self) -> bool:
        """Whether attempts are refused, but for the probe."""
        return self._pause_count > 0
