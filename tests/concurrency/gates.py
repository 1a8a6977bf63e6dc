"""Stopping a thread at one step, once, and seeing who waits for what."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, NamedTuple, Self

from support.cache_helpers import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from bbcache.waiters import Waiters


class Step(NamedTuple):
    """A seam, and the how-manieth time that an action passes it."""

    seam: str
    time: int = 1

    def __str__(self) -> str:
        return self.seam if self.time == 1 else f"{self.seam} {self.time}"

    @classmethod
    def parse(cls, text: str) -> Step:
        """The step that prints as `text`."""
        seam, _, time = text.rpartition(" ")
        return cls(seam, int(time)) if time.isdigit() else cls(text)


class StepGate:
    """Stops the first thread that comes to `step`, exactly once, until it is opened.

    A context manager: leaving opens it, so that a failing test leaves no thread behind.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self._arrived = threading.Event()
        self._is_open = threading.Event()
        self._stopped_name = ""

    @property
    def is_in_pool(self) -> bool:
        """Whether a thread of the cache's pool is stopped, not one of the test."""
        return self._stopped_name.startswith("bbcache-prepare")

    def stop(self) -> None:
        """Stop here; a step comes only once, so there is no second thread."""
        self._stopped_name = threading.current_thread().name
        self._arrived.set()
        assert self._is_open.wait(DEADLINE_S), f"nobody opened the gate at {self.step}"

    def wait(self) -> None:
        """Wait until a thread has been stopped."""
        assert self._arrived.wait(DEADLINE_S), f"nobody came to {self.step}"

    def open(self) -> None:
        """Let the stopped thread go on."""
        self._is_open.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()


class WatchedLock:
    """The catalog's file lock, of which one can tell who waits for it.

    Args:
        before: called by a thread that does not have the lock, before it takes it, with
            the name of the function that does.
    """

    def __init__(self, before: Callable[[str], None]) -> None:
        self._lock = threading.RLock()
        self._before = before
        self._depth = 0  # guarded by the lock itself
        self._owner: int | None = None
        self.waiting = 0  # threads that found it taken; never two at once in these tests

    @property
    def is_held(self) -> bool:
        """Whether any thread has the lock."""
        return self._owner is not None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT002 - as RLock
        """As `threading.RLock.acquire`."""
        if self._owner != threading.get_ident():
            frame = sys._getframe(1)
            taker = frame.f_back if frame.f_code.co_name == "__enter__" else frame
            self._before(taker.f_code.co_name if taker else "")
        is_taken = self._lock.acquire(blocking=False)
        if not is_taken and blocking:
            self.waiting += 1
            is_taken = self._lock.acquire(timeout=timeout)
            self.waiting -= 1
        if is_taken:
            self._depth += 1
            self._owner = threading.get_ident()
        return is_taken

    def release(self) -> None:
        """As `threading.RLock.release`."""
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def watch_waits(monkeypatch: pytest.MonkeyPatch, waiters: Waiters) -> threading.Event:
    """An event that is set as soon as a thread of the test waits with `waiters`."""
    waits, wait_for = threading.Event(), waiters.wait_for

    def watched(is_so: Callable[[], bool], timeout_s: float | None) -> bool:
        if not threading.current_thread().name.startswith("bbcache-"):
            waits.set()
        return wait_for(is_so, timeout_s)

    monkeypatch.setattr(waiters, "wait_for", watched)
    return waits
