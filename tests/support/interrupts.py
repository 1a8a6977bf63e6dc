"""KeyboardInterrupts at every place of a call where CPython raises one.

A signal only sets a flag. The main thread looks at it where a function begins, after each
call and at the end of each turn of a loop, and raises there. A tracer sets the flag just
before each such place in turn, so that the interrupt is a real one: raised by the
interpreter, at places where it can come, and not in between.
"""

from __future__ import annotations

import _thread
import dis
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import bbcache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

    import pytest

_TRACED: Final = (bbcache.__path__[0] + os.sep, threading.__file__)
_MOST_TURNS: Final = 2  # of a place that is passed again and again


class _Flag:
    """Sets the flag of SIGINT by a minus sign, behind which CPython does not look at it.

    A call would be looked at here, and not in the function that is traced.
    """

    __neg__: Any = _thread.interrupt_main  # written in C: it gets no `self`


class Place(NamedTuple):
    """Where a thread is to be interrupted: at which passing of which instruction."""

    code: CodeType
    offset: int
    turn: int

    def __str__(self) -> str:
        line = next(
            (line for start, end, line in self.code.co_lines() if start <= self.offset < end),
            self.code.co_firstlineno,
        )
        name = os.path.basename(self.code.co_filename)
        return f"{name}:{line} {self.code.co_qualname} {self.offset}/{self.turn}"


class _Tracer:
    """Calls `at_place` at each place of the bbcache code that the thread passes."""

    def __init__(self, at_place: Callable[[Place], None]) -> None:
        self._at_place = at_place
        self._turns: dict[tuple[CodeType, int], int] = {}

    def __call__(self, frame: FrameType, event: str, _arg: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(_TRACED):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "call" or (event == "opcode" and _is_looked_at(code, frame.f_lasti)):
            offset = -1 if event == "call" else frame.f_lasti
            turn = self._turns.get((code, offset), 0)
            self._turns[code, offset] = turn + 1
            if turn < _MOST_TURNS:
                return self._at_place(Place(code, offset, turn)) or self
        return self


def _is_looked_at(code: CodeType, offset: int) -> bool:
    name = dis.opname[code.co_code[offset]]
    return name.startswith(("CALL", "JUMP_BACKWARD"))


def _is_in_a_finaliser() -> bool:
    """Whether a KeyboardInterrupt would reach nobody: Python reports it and goes on."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def places_of(call: Callable[[], object]) -> list[Place]:
    """The places that a call passes, in order; it is made once, and not interrupted."""
    found: list[Place] = []
    before = sys.gettrace()
    sys.settrace(_Tracer(found.append))
    try:
        call()
    finally:
        sys.settrace(before)
    return found


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt in a block, however the process was started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted(call: Callable[[], object], place: Place) -> bool:
    """Make a call that is interrupted at one place; whether it was.

    The interrupt may come after the call: then nothing was interrupted. What the call
    returns, or raises for it, is thrown away.
    """
    before, flag = sys.gettrace(), _Flag()

    def at_place(passed: Place) -> None:
        if passed == place and not _is_in_a_finaliser():
            sys.settrace(None)
            -flag  # noqa: B018 - a call of C

    try:
        sys.settrace(_Tracer(at_place))
        try:
            call()
        finally:
            sys.settrace(before)
    except KeyboardInterrupt:
        return True
    return False


@contextmanager
def start_interrupted(monkeypatch: pytest.MonkeyPatch, when: str) -> Iterator[list[int]]:
    """Interrupt the start of each program ``before the fork`` or ``after the fork``.

    Yields:
        The process ids of the programs that were started.
    """

    def popen(*args: Any, **kwargs: Any) -> subprocess.Popen[Any]:
        if when == "before the fork":
            signal.raise_signal(signal.SIGUSR1)
        process = subprocess_popen(*args, **kwargs)
        pids.append(process.pid)
        if when == "after the fork":
            signal.raise_signal(signal.SIGUSR1)
        return process

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    pids: list[int] = []
    subprocess_popen = subprocess.Popen
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", popen)
            yield pids
    finally:
        signal.signal(signal.SIGUSR1, before)
