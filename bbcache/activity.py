"""How much work is under way in a cache, and waiting until there is none."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from bbcache.condition import Condition

if TYPE_CHECKING:
    from collections.abc import Iterator


class Activity:
    """A count of pieces of work under way. Thread-safe and re-entrant."""

    def __init__(self) -> None:
        self._changed = Condition()  # guards all that follows
        self._count = 0
        self._is_over = False

    def begin(self) -> None:
        """One piece of work more."""
        with self._changed:
            self._count += 1

    def end(self) -> None:
        """One piece of work less; call once for each `begin`."""
        with self._changed:
            self._count -= 1
            if self._count == 0:
                self._changed.notify_all()

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
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0 or self._is_over, timeout_s)
            return self._count == 0

    def give_up(self) -> None:
        """Wake everyone who waits: nothing more will end."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
