"""Waits in slices are no shorter and no longer than waits without, but for those of `wait`."""

from __future__ import annotations

import threading
import time

import pytest
from cache_helpers import DEADLINE_S, Worker

from bbcache import condition
from bbcache.condition import Condition


@pytest.fixture(autouse=True)
def _short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condition, "_SLICE_S", 0.001)


@pytest.mark.parametrize("timeout_s", [None, DEADLINE_S])
def test_a_wait_ends_though_nobody_notifies(timeout_s: float | None) -> None:
    """A handler whose signal came just before it can run then."""
    changed = Condition()
    with changed:
        assert not changed.wait(timeout_s)


def test_wait_for_goes_on() -> None:
    """Over many slices, until it is so."""
    changed, asked, is_over = Condition(), 0, threading.Event()

    def is_so() -> bool:
        nonlocal asked
        asked += 1
        if asked == 5:
            is_over.set()
        return is_over.is_set()

    with changed:
        assert changed.wait_for(is_so)
    assert asked == 5


def test_other_threads_wait_in_one_piece() -> None:
    """No handler runs there; who notifies ends the wait."""
    changed, begun, is_notified = Condition(), threading.Event(), False

    def wait() -> bool:
        with changed:
            begun.set()
            return changed.wait()

    waiter = Worker(wait)
    assert begun.wait(DEADLINE_S)
    with changed:  # only now it waits
        changed.notify_all()
    assert waiter.result()

    def notify() -> None:
        nonlocal is_notified
        with changed:
            is_notified = True
            changed.notify_all()

    notifier = Worker(notify)
    with changed:
        assert changed.wait_for(lambda: is_notified)
    notifier.result()


def test_wait_for_keeps_to_its_time() -> None:
    """However many slices that is."""
    changed = Condition()
    started_s = time.monotonic()
    with changed:
        assert not changed.wait_for(lambda: False, 0.05)
    assert time.monotonic() - started_s >= 0.05


def test_it_can_be_taken_twice() -> None:
    """A signal handler may use it in the midst of a use of the same thread."""
    changed = Condition()
    with changed, changed:
        changed.notify_all()
