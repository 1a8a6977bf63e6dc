"""An event that a signal handler may set at any moment."""

from __future__ import annotations

from bbcache.condition import Condition


class Latch:
    """A flag that is set once, and can be waited for. Thread-safe and re-entrant.

    `threading.Event` has a plain lock: a signal handler that sets one in the middle of
    a call of the same thread would wait for itself.
    """

    def __init__(self) -> None:
        self._changed = Condition()  # guards _is_set
        self._is_set = False

    def is_set(self) -> bool:
        """Whether it is set; one read of memory."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake everyone who waits."""
        with self._changed:
            self._is_set = True
            self._changed.notify_all()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is set; False when `timeout_s` seconds passed first."""
        with self._changed:
            return self._changed.wait_for(self.is_set, timeout_s)
