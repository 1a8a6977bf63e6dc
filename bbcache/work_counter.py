"""The work under way in callers' threads, and waiting until a cache is idle."""

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
        self._blocks: list[weakref.ref[threading.Lock]] = []  # each locked while its block runs
        self._is_over = False
        self._waiters = Waiters()

    def under_way(self) -> AbstractContextManager[object]:
        """Count a piece of work during a ``with`` block; call `changed` after it.

        The block holds a lock of its own, which an interrupt anywhere in the block frees.
        """
        block = threading.Lock()
        with self._lock:
            # No WeakSet: its finalisers are written in Python, and swallow an interrupt.
            self._blocks = [ref for ref in self._blocks if ref() is not None]
            self._blocks.append(weakref.ref(block))
        return block

    def changed(self) -> None:
        """Make the threads that wait look again, since a piece of work has ended."""
        self._waiters.wake_all()

    def is_idle(self) -> bool:
        """Whether nothing is under way at this moment."""
        with self._lock:
            blocks = [ref() for ref in self._blocks]
        return not any(block is not None and block.locked() for block in blocks)

    def wait_for(self, is_so: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until `is_so` is true, or until `give_up`; see `Waiters.wait_for`.

        Returns:
            Whether `is_so` was true once. It may not be so any more.
        """
        was_so = False

        def is_over() -> bool:
            nonlocal was_so
            was_so = is_so()
            return was_so or self._is_over

        self._waiters.wait_for(is_over, timeout_s)
        return was_so

    def give_up(self) -> None:
        """End every wait, since the cache is closed."""
        self._is_over = True
        self._waiters.wake_all()
