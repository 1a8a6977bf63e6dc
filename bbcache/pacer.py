"""Pauses of long work in Python, so that reads go first.

A thread that returns from a system call needs the GIL, and a thread that runs Python gives it
up only after the interpreter's switch interval, 5 ms. A read makes several system calls. So
long work is cut into slices with pauses in between. A pause sleeps: a thread that only releases
the GIL may have it back before the other thread is awake.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SLICE_S: Final = 0.002  # about as long as a read may have to wait
SHORT_PAUSE_S: Final = 1e-6  # in fact some 60 us, the shortest sleep of Linux
LONG_PAUSE_S: Final = 0.008  # hundreds of reads, of which one meets the next slice: below 1 %

_T = TypeVar("_T")


class Pacer:
    """Knows whether there are reads, and makes long work pause for them. Thread-safe.

    Each read sets a flag. Long work pauses at the end of each slice: for a moment, which lets
    one other thread in, or for longer if there was a read since the last pause. So the work
    takes at most five times as long, even under endless reads.

    Args:
        clock: a monotonic clock, in seconds.
        sleep: sleeps for a number of seconds.

    Attributes:
        clock: the same.
        has_read: set by each read when it begins.
        due_s: when the next pause is due, by the clock. Set by any thread: one pause more or
            less does no harm.
    """

    __slots__ = ("_sleep", "clock", "due_s", "has_read")

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.clock = clock
        self.has_read = False
        self.due_s = clock() + SLICE_S
        self._sleep = sleep

    def pause(self) -> None:
        """Let other threads run, and begin a slice. Hold no lock when you call it."""
        had_read, self.has_read = self.has_read, False
        self._sleep(LONG_PAUSE_S if had_read else SHORT_PAUSE_S)
        self.due_s = self.clock() + SLICE_S

    def paced(self, items: Iterable[_T]) -> Iterator[_T]:
        """The same items, with pauses between them."""
        clock = self.clock
        for item in items:
            if clock() >= self.due_s:
                self.pause()
            yield item
