"""The time of a periodic step: arithmetic only. Not thread-safe."""

from __future__ import annotations


class Ticker:
    """Ticks at whole periods after the start; missed ticks are skipped.

    Args:
        period_s: seconds between two ticks.
        now_s: when the first period begins.
    """

    def __init__(self, period_s: float, now_s: float) -> None:
        self._period_s = period_s
        self._due_s = now_s + period_s

    def delay_s(self, now_s: float) -> float:
        """Seconds until the next tick; 0 if it is due."""
        return max(0.0, self._due_s - now_s)

    def advance(self, now_s: float) -> None:
        """Go on to the first tick after `now_s`."""
        missed = max(0, int((now_s - self._due_s) // self._period_s))
        self._due_s += (missed + 1) * self._period_s
