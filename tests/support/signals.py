"""The signals of the process that runs the tests, and so of every child that it starts."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

_IGNORED_BY_PYTHON: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """Survive a signal, as this process did while it ignored that."""


def give_children_default_signals() -> None:
    """Let every program that this process starts have default dispositions and no mask.

    Under nohup, in cron and with some CI runners signals arrive ignored, and programs
    inherit that. A signal with a handler is reset where a program is executed.
    """
    for number in signal.valid_signals() - _IGNORED_BY_PYTHON:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _do_nothing)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
