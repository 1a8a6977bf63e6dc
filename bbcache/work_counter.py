"""How much work is under way in a cache, and waiting until there is none."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from bbcache.waiters import Waiters

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


class WorkCounter:
    """The work that is under way. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # guards _blocks
        self._blocks: list[weakref.ref[threading.Lock]] = []  # locked while they run
        self._is_over = False
        self._waiters = Waiters()

    def under_way(self) -> AbstractContextManager[object]:
        """Count a piece of work for the time of a block; call `changed` behind it.

        A block that is interrupted has ended, wherever that was: it holds a lock of its own,
        which Python frees without a step of Python code in between.
        """
        block = threading.Lock()
        with self._lock:
            # No WeakSet: its own finalisers are written in Python, and swallow an interrupt.
            self._blocks = [ref for ref in self._blocks if ref() is not None]
            self._blocks.append(weakref.ref(block))
        return block

    def changed(self) -> None:
        """Let the threads that wait look again: a piece of work has ended."""
        self._waiters.wake_all()

    def is_idle(self) -> bool:
        """Whether nothing is under way at this moment."""
        with self._lock:
            blocks = [ref() for ref in self._blocks]
        return not any(block is not None and block.locked() for block in blocks)

    def wait_for(self, is_so: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until `is_so` is true, and look again each time that work ends.

        Args:
            is_so: called without a lock.
            timeout_s: seconds to wait; None waits without limit.

        Returns:
            What `is_so` returned last: False when `timeout_s` seconds passed first, or the
            cache was closed with work left.
        """
        self._waiters.wait_for(lambda: self._is_over or is_so(), timeout_s)
        return is_so()

    def give_up(self) -> None:
        """Wake every thread that waits: nothing more will end."""
        self._is_over = True
        self._waiters.wake_all()
