"""What the threads of this process do, seen from outside: in what they wait."""

from __future__ import annotations

import faulthandler
import os
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import threading

_WAITS: Final = frozenset({"wait", "wait_for"})
_HEAD: Final = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+)")
_FRAME: Final = re.compile(r'  File ".*", line \S+ in (.*)')


def functions() -> dict[int, list[str]]:
    """The names of the functions that each thread is in, the innermost first, by identifier.

    Read from the dump of `faulthandler`, which makes no objects. To walk the frames of another
    thread with ``f_back`` makes one for each, and now and then CPython 3.11 crashes at that while
    the other thread goes on. It knows the hundred threads that were started last.
    """
    with os.fdopen(os.memfd_create("threads"), "w+", encoding="utf-8", errors="replace") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        lines = file.readlines()
    found: dict[int, list[str]] = {}
    names: list[str] = []
    for line in lines:
        if head := _HEAD.match(line):
            names = found.setdefault(int(head[1], 16), [])
        elif frame := _FRAME.match(line):
            names.append(frame[1])
    return found


def waiting(function: str) -> list[int]:
    """The identifiers of the threads that wait inside a function of this name.

    A thread counts from the moment that it enters the wait until it leaves it, whatever it
    does in between.
    """
    return [ident for ident, names in functions().items() if _waits_in(names, function)]


def is_waiting(thread: threading.Thread, function: str) -> bool:
    """Whether a thread waits inside a function of this name."""
    return thread.ident in waiting(function)


def _waits_in(names: list[str], function: str) -> bool:
    waits = [number for number, name in enumerate(names) if name in _WAITS]
    return bool(waits) and function in names[waits[0] + 1 :]
