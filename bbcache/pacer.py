"""Reads go before long work in Python, which is cut into slices for their sake.

Who comes back from a system call wants the GIL, and a thread that runs Python alone
gives it up only after the interpreter's switch interval, 5 ms; a read makes several
system calls. Only sleeping hands the GIL over for sure: who gives it up for a moment may
have it back before the other thread is awake.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SLICE_S: Final = 0.002  # about what a read may have to wait
SHORT_PAUSE_S: Final = 1e-6  # in truth some 60 us: Linux wakes nobody sooner
LONG_PAUSE_S: Final = 0.008  # hundreds of reads, of which one meets the next slice: below 1 %

_T = TypeVar("_T")


class Pacer:
    """Whether somebody reads, and the rests of those who work at length. Thread-safe.

    A read says that it is there by one write to memory. Whoever works at length rests
    whenever a slice of time is over: a nap, which lets any one thread in, or a longer
    pause where something was read since the last rest. So the work takes five times as
    long at the most, even under reads without end.

    Args:
        clock: seconds that only grow.
        sleep: called with seconds.

    Attributes:
        clock: the same.
        is_taken: set by each read when it begins.
        due_s: when the next rest is due, in seconds of the clock. Set by any thread: a
            rest more or less does no harm.
    """

    __slots__ = ("_sleep", "clock", "due_s", "is_taken")

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.clock = clock
        self.is_taken = False
        self.due_s = clock() + SLICE_S
        self._sleep = sleep

    def rest(self) -> None:
        """Let others go on, and begin a slice; not to be called with a lock held."""
        was_taken, self.is_taken = self.is_taken, False
        self._sleep(LONG_PAUSE_S if was_taken else SHORT_PAUSE_S)
        self.due_s = self.clock() + SLICE_S

    def paced(self, items: Iterable[_T]) -> Iterator[_T]:
        """The same items, with rests between them when they are due."""
        clock = self.clock
        for item in items:
            if clock() >= self.due_s:
                self.rest()
            yield item
