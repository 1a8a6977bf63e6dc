"""What the threads of this process do, seen from outside: in what they wait."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import threading
    from types import FrameType

_WAITS: Final = frozenset({"wait", "wait_for"})


def waiting(function: str) -> list[int]:
    """The identifiers of the threads that wait inside a function of this name.

    A thread counts from the moment that it enters the wait until it leaves it, whatever it
    does in between.
    """
    return [i for i, frame in _frames().items() if _waits_in(frame, function)]


def is_waiting(thread: threading.Thread, function: str) -> bool:
    """Whether a thread waits inside a function of this name."""
    return thread.ident in waiting(function)


def _frames() -> dict[int, FrameType]:
    """The frame of each thread, read without a collection in the middle.

    In CPython 3.11 one that frees a `threading.local` there takes a lock of the interpreter
    twice, and all stands still (https://github.com/python/cpython/issues/106883).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        if was_enabled:
            gc.enable()


def _waits_in(frame: FrameType | None, function: str) -> bool:
    is_wait = False
    while frame is not None:
        name = frame.f_code.co_name
        if is_wait and name == function:
            return True
        is_wait = is_wait or name in _WAITS
        frame = frame.f_back
    return False
