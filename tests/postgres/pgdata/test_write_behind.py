"""WriteBehind works in order, not far behind, and leaves neither error nor thread behind."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from bbcache.postgres.pgdata.write_behind import WAITING_AT_MOST, WriteBehind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

TIMEOUT_S = 60
GATED = 99
_INTERRUPTION = signal.SIGUSR1


class InterruptedHereError(Exception):
    """What the signal handler of a test raises."""


class Worker:
    """Notes what it works on, and where; a batch below 0 fails, `GATED` waits at the gate."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.threads: list[threading.Thread] = []
        self.gate = threading.Semaphore(0)
        self.at_gate = threading.Semaphore(0)

    def __call__(self, batch: int) -> None:
        """Work on one batch."""
        self.threads.append(threading.current_thread())
        if batch == GATED:
            self.at_gate.release()
            assert self.gate.acquire(timeout=TIMEOUT_S)
        if batch < 0:
            raise ValueError(batch)
        self.done.append(batch)

    def other_thread(self) -> threading.Thread:
        """The one thread beside the caller's that was used."""
        (other,) = {*self.threads} - {threading.current_thread()}
        return other


def put_all(worker: Worker, batches: list[int], at_end: Callable[[], None]) -> None:
    """Put all of these, call `at_end`, and finish."""
    with WriteBehind(worker, 1) as behind:
        for batch in batches:
            behind.put(batch)
        at_end()
        behind.finish()


def test_order_and_threads() -> None:
    """The first batch is done at once by the caller, the others in order by one thread."""
    worker = Worker()
    with WriteBehind(worker, 1) as behind:
        behind.put(0)
        assert worker.done == [0]
        for number in range(1, 50):
            behind.put(number)
        behind.finish()
        assert worker.done == [*range(50)]
        assert not worker.other_thread().is_alive()
    assert worker.threads == [threading.current_thread(), *[worker.other_thread()] * 49]


@pytest.mark.parametrize("at_once", [0, 1, 7])
def test_how_many_are_done_at_once(at_once: int) -> None:
    """So many batches are done by the caller, and no more."""
    worker = Worker()
    with WriteBehind(worker, at_once) as behind:
        for number in range(9):
            behind.put(number)
        behind.finish()
    assert worker.done == [*range(9)]
    assert worker.threads.count(threading.current_thread()) == at_once


def test_one_batch_takes_no_thread() -> None:
    """No thread is started for a single batch, nor for none."""
    worker = Worker()
    before = set(threading.enumerate())
    put_all(worker, [], lambda: None)
    put_all(worker, [0], lambda: None)
    assert worker.threads == [threading.current_thread()]
    assert set(threading.enumerate()) <= before


def test_error_of_the_first_batch() -> None:
    """What the work raises in the caller's thread comes out of `put`."""
    worker = Worker()
    with pytest.raises(ValueError, match="-1"):
        put_all(worker, [-1], lambda: None)
    assert worker.done == []


def test_error_of_the_thread() -> None:
    """What the work raises in its thread comes out of `finish`; no later batch is worked on."""
    worker = Worker()
    with pytest.raises(ValueError, match="-2"):
        put_all(worker, [0, GATED, -2, 3, 4], worker.gate.release)
    assert worker.done == [0, GATED]
    assert not worker.other_thread().is_alive()


def test_error_of_the_thread_stops_the_caller() -> None:
    """A caller that goes on after the work has failed is told, and never waits for ever."""
    worker = Worker()

    def put_for_ever() -> None:
        with WriteBehind(worker, 1) as behind:
            behind.put(0)
            while True:
                behind.put(-3)

    with pytest.raises(ValueError, match="-3"):
        put_for_ever()
    assert worker.done == [0]
    assert not worker.other_thread().is_alive()


def test_bound() -> None:
    """At most so many batches wait; a caller that puts another waits for room."""
    worker = Worker()
    is_full, is_through = threading.Event(), threading.Event()

    def fill() -> None:
        with WriteBehind(worker, 1) as behind:
            behind.put(0)
            behind.put(GATED)
            assert worker.at_gate.acquire(timeout=TIMEOUT_S)
            for number in range(WAITING_AT_MOST):
                behind.put(number)
            is_full.set()
            behind.put(WAITING_AT_MOST)
            is_through.set()
            behind.finish()

    caller = threading.Thread(target=fill)
    caller.start()
    assert is_full.wait(TIMEOUT_S)
    assert not is_through.wait(0.05)
    worker.gate.release()
    caller.join(TIMEOUT_S)
    assert is_through.is_set()
    assert worker.done == [0, GATED, *range(WAITING_AT_MOST + 1)]


def before_each_wait(patched: pytest.MonkeyPatch, steps: list[Callable[[], None]]) -> None:
    """Have this thread take one of these steps whenever it begins to wait for an event."""
    real_wait, this_thread, left = threading.Event.wait, threading.get_ident(), iter(steps)

    def wait(event: threading.Event, timeout: float | None = None) -> bool:
        if threading.get_ident() == this_thread:
            next(left, lambda: None)()
        return real_wait(event, timeout)

    patched.setattr(threading.Event, "wait", wait)


def test_leaving_drops_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the block drops what waits; the batch in work ends, and the thread."""
    worker = Worker()

    def be_stopped() -> None:
        assert worker.at_gate.acquire(timeout=TIMEOUT_S)
        before_each_wait(monkeypatch, [worker.gate.release])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put_all(worker, [0, GATED, 1, 2], be_stopped)
    assert worker.done == [0, GATED]
    assert not worker.other_thread().is_alive()


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Sends this thread a signal whose handler raises."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise InterruptedHereError

    before = signal.signal(_INTERRUPTION, handle)
    yield lambda: signal.raise_signal(_INTERRUPTION)
    signal.signal(_INTERRUPTION, before)


@pytest.mark.parametrize("is_failed", [False, True])
def test_interrupted_while_it_waits_for_the_end(
    monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[], None], *, is_failed: bool
) -> None:
    """A signal that raises while the thread is waited for comes out once that has ended."""
    worker = Worker()

    def end() -> None:
        assert worker.at_gate.acquire(timeout=TIMEOUT_S)
        before_each_wait(monkeypatch, [interrupt, interrupt, worker.gate.release])
        if is_failed:
            raise ValueError

    with pytest.raises(InterruptedHereError):
        put_all(worker, [0, GATED, 1], end)
    assert worker.done == [0, GATED]
    assert not worker.other_thread().is_alive()


def test_interrupted_while_it_starts(
    monkeypatch: pytest.MonkeyPatch, interrupt: Callable[[], None]
) -> None:
    """A thread whose start was interrupted does no work, and ends by itself."""
    worker, before = Worker(), {*threading.enumerate()}
    before_each_wait(monkeypatch, [interrupt])
    with pytest.raises(InterruptedHereError):
        put_all(worker, [0, 1, 2], lambda: None)
    deadline_s = time.monotonic() + TIMEOUT_S
    while not {*threading.enumerate()} <= before:
        assert time.monotonic() < deadline_s
    assert worker.done == [0]


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, the caller's does all of the work."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    worker = Worker()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    put_all(worker, [*range(WAITING_AT_MOST * 3)], lambda: None)
    assert worker.done == [*range(WAITING_AT_MOST * 3)]
    assert {*worker.threads} == {threading.current_thread()}
