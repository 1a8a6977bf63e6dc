"""Signals that ask a command to stop: as exceptions, or in a queue."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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
    with _handled(heeded_signals(), _Raiser()):
        yield


class ServiceSignals:
    """The signals that a service gets: exceptions while it starts, a queue afterwards.

    A start may take an hour, and a signal must end it; a service that runs must not be
    interrupted in the middle of its code. For the main thread.

    The queue is a pipe that the interpreter writes the numbers into. The handlers of Python
    run later, and not at all while the main thread waits for a lock that it began to wait for
    just after the signal.
    """

    def __init__(self, queue_fd: int) -> None:
        self._queue_fd = queue_fd
        self._raise = _Raiser()
        self._is_starting = True

    @classmethod
    @contextmanager
    def heeded(cls) -> Iterator[Self]:
        """Take the signals in a block; see `heeded_signals` for those that arrive ignored.

        Yields:
            The signals. Until `end_start` TERM and INT raise, as in `stop_signals_raise`.
        """
        queue_fd, write_fd = os.pipe()
        os.set_blocking(write_fd, False)
        signals = cls(queue_fd)
        before = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        try:
            with _handled(heeded_signals(), signals._take):
                yield signals
        finally:
            signal.set_wakeup_fd(before)
            os.close(queue_fd)
            os.close(write_fd)

    def end_start(self) -> None:
        """Let signals wait in the queue from now on; one that has raised waits there, too."""
        self._is_starting = False

    def wait(self) -> int:
        """Wait for the next signal."""
        return os.read(self._queue_fd, 1)[0]

    def is_stop_waiting(self) -> bool:
        """Whether another signal to stop has arrived; drops what is in the queue before it."""
        while select.select([self._queue_fd], [], [], 0)[0]:
            if self.wait() != signal.SIGHUP:
                return True
        return False

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._is_starting and number != signal.SIGHUP:
            self._raise(number, frame)


class _Raiser:
    """A handler that raises `Stopped`, and then does nothing for a while."""

    def __init__(self) -> None:
        self._raised_at_s = -_PATIENCE_S

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if now_s >= self._raised_at_s + _PATIENCE_S:
            self._raised_at_s = now_s
            raise Stopped(number)


@contextmanager
def _handled(
    numbers: set[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Call a handler for each of these signals in a block, also if they arrive blocked."""
    before = {number: signal.signal(number, handler) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, old in before.items():
            signal.signal(number, old)
