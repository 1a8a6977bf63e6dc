"""Signals that ask a command to stop, as exceptions."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

STOP_SIGNALS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_PATIENCE_S: Final = 10.0


class Stopped(KeyboardInterrupt):
    """A signal to stop, as an exception, so that every clean-up runs.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def heeded_signals() -> set[signal.Signals]:
    """Return the signals that end a command.

    SIGINT and SIGHUP that arrive ignored stay ignored, as under nohup and in a shell's
    background; SIGTERM always ends a command.
    """
    return {
        number
        for number in STOP_SIGNALS
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN
    }


@contextmanager
def stop_signals_raise() -> Iterator[None]:
    """Make a stop signal raise `Stopped` in a block; for the main thread.

    A second signal must not cut the clean-up short, such as the stop of servers, so further
    signals do nothing for 10 s. After that they raise
    again: Python drops an exception that a handler raises in a destructor. See
    `heeded_signals` for those that arrive ignored; one that arrives blocked is unblocked.
    """
    wanted = heeded_signals()
    raised_at_s = -_PATIENCE_S

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal raised_at_s
        now_s = time.monotonic()
        if now_s >= raised_at_s + _PATIENCE_S:
            raised_at_s = now_s
            raise Stopped(number)

    handlers = {number: signal.signal(number, stop) for number in wanted}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
