"""A condition whose waits let signal handlers run, whenever the signal came."""

from __future__ import annotations

import threading
from typing import Final

_SLICE_S: Final = 0.25


class Condition(threading.Condition):
    """Waits in slices in the main thread. Re-entrant: a signal handler may use it, too.

    CPython runs a signal's handler in the main thread, between two steps of Python, or
    where the signal interrupts a wait. One that comes just before a wait begins, when
    the last such step is over, does neither: without a limit the handler would run when
    the wait has ended, and that may be what the handler is to bring about.
    """

    def __init__(self) -> None:
        super().__init__(threading.RLock())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait to be notified; False where the time, or the slice, has passed first.

        `wait_for` goes on with the next slice by itself.
        """
        if threading.current_thread() is threading.main_thread():
            timeout = _SLICE_S if timeout is None else min(timeout, _SLICE_S)
        elif timeout is not None:
            timeout = min(timeout, threading.TIMEOUT_MAX)  # the most that the system can wait
        return super().wait(timeout)
