"""Waiting for a change: its end, its time, and what an interrupt leaves behind."""

from __future__ import annotations

import threading
import weakref

import pytest
from support.cache_helpers import DEADLINE_S, Worker
from support.helpers import run_threads, wait_until
from support.threads import is_waiting

from bbcache import waiters as waiters_module
from bbcache.waiters import Waiters


@pytest.fixture(autouse=True)
def _without_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each wait last until it is woken, so that a wake-up that is lost shows."""
    monkeypatch.setattr(waiters_module, "_SLICE_S", 3600.0)


def test_a_true_condition_is_not_waited_for() -> None:
    """A true condition ends the wait with any timeout; a false one returns False in time."""
    waiters = Waiters()
    for timeout_s in (None, 0.0, -1.0, float("inf")):
        assert waiters.wait_for(lambda: True, timeout_s)
    for timeout_s in (0.0, -1.0, 0.01):
        assert not waiters.wait_for(lambda: False, timeout_s)


@pytest.mark.parametrize("timeout_s", [None, DEADLINE_S, float("inf"), threading.TIMEOUT_MAX * 2])
def test_a_change_wakes_all_who_wait(timeout_s: float | None) -> None:
    """Each thread looks again and returns."""
    waiters, has_changed = Waiters(), threading.Event()
    waiting = [Worker(waiters.wait_for, has_changed.is_set, timeout_s) for _ in range(3)]
    wait_until(lambda: all(is_waiting(each, "run") for each in waiting))
    waiters.wake_all()  # for nothing
    has_changed.set()
    waiters.wake_all()
    assert [worker.result() for worker in waiting] == [True] * 3


@pytest.mark.parametrize("timeout_s", [None, DEADLINE_S])
def test_a_change_is_seen_though_nobody_wakes(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float | None
) -> None:
    """After a slice, since the thread that should wake may have been interrupted."""
    monkeypatch.setattr(waiters_module, "_SLICE_S", 0.001)
    answers = iter([False, False, True])
    assert Waiters().wait_for(lambda: next(answers), timeout_s)


def test_a_wait_does_not_spin() -> None:
    """It looks at the beginning and at the end."""
    looks: list[None] = []

    def look() -> bool:
        looks.append(None)
        return False

    assert not Waiters().wait_for(look, 0.05)
    assert len(looks) <= 3


def test_a_wait_of_microseconds_ends() -> None:
    """Also where the time is over before the thread waits."""
    waiters = Waiters()

    def wait() -> None:
        for _ in range(3000):
            assert not waiters.wait_for(lambda: False, 1e-5)

    run_threads([wait] * 4)


def test_a_wait_that_raises_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The predicate may raise."""
    made: list[weakref.ref[object]] = []

    def make() -> object:
        lock = threading.Lock()
        made.append(weakref.ref(lock))
        return lock

    def interrupt() -> bool:
        raise KeyboardInterrupt

    waiters = Waiters()
    monkeypatch.setattr(waiters_module, "Lock", make)
    with pytest.raises(KeyboardInterrupt):
        waiters.wait_for(interrupt, None)
    assert [each() for each in made] == [None]


def test_no_change_is_missed_between_threads() -> None:
    """A change just before, or while, a thread begins to wait ends its wait."""
    for _ in range(300):
        waiters, has_changed = Waiters(), threading.Event()

        def change(waiters: Waiters = waiters, has_changed: threading.Event = has_changed) -> None:
            has_changed.set()
            waiters.wake_all()

        def wait(waiters: Waiters = waiters, has_changed: threading.Event = has_changed) -> None:
            assert waiters.wait_for(has_changed.is_set, DEADLINE_S)

        run_threads([wait, change])
