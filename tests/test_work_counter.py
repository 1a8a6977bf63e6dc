"""Work under way, and waiting for its end."""

from __future__ import annotations

import threading

import pytest
from support.helpers import run_threads, wait_until
from support.threads import waiting

from bbcache.work_counter import WorkCounter


def test_a_new_one_is_idle() -> None:
    """Nothing is under way at first."""
    assert WorkCounter().wait_idle(0)
    assert WorkCounter().wait_idle(None)


def test_wait_idle_gives_up_after_its_timeout() -> None:
    """Work that goes on makes the wait end False, at once where the timeout is 0."""
    work_counter = WorkCounter()
    with work_counter.under_way():
        assert not work_counter.wait_idle(0)
        assert not work_counter.wait_idle(0.01)
    assert work_counter.wait_idle(0)


def test_the_rest_must_be_idle_too() -> None:
    """What is under way elsewhere is asked for at each look."""
    is_rest_idle = False
    work_counter = WorkCounter(lambda: is_rest_idle)
    assert not work_counter.wait_idle(0)
    is_rest_idle = True
    assert work_counter.wait_idle(0)


def test_under_way_ends_also_where_the_block_raises() -> None:
    """A block counts for its time, whatever it raises."""
    work_counter = WorkCounter()

    def fail() -> None:
        with work_counter.under_way():
            with work_counter.under_way():
                assert not work_counter.wait_idle(0)
            assert not work_counter.wait_idle(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert work_counter.wait_idle(0)


def test_the_end_wakes_all_who_wait() -> None:
    """Every waiter returns True when the last piece of work ends."""
    work_counter = WorkCounter()
    results: list[bool] = []
    is_waited_for = threading.Event()

    def work() -> None:
        with work_counter.under_way():
            is_waited_for.set()
            wait_until(lambda: len(waiting("wait_idle")) == 3)
        work_counter.changed()

    def wait() -> None:
        is_waited_for.wait()
        results.append(work_counter.wait_idle(30))

    run_threads([wait, wait, wait, work])
    assert results == [True, True, True]


def test_giving_up_wakes_all_who_wait() -> None:
    """A close with work left makes every wait end False, at once and for ever."""
    work_counter = WorkCounter(lambda: False)
    results: list[bool] = []

    def give_up() -> None:
        wait_until(lambda: len(waiting("wait_idle")) == 2)
        work_counter.give_up()

    run_threads([lambda: results.append(work_counter.wait_idle(None))] * 2 + [give_up])
    assert results == [False, False]
    assert not work_counter.wait_idle(None)


def test_giving_up_with_nothing_left_is_idle() -> None:
    """A close that leaves nothing undone was idle."""
    work_counter = WorkCounter()
    work_counter.give_up()
    assert work_counter.wait_idle(None)


def test_no_piece_of_work_is_lost_between_threads() -> None:
    """Many threads that begin and end leave it idle."""
    work_counter = WorkCounter()
    is_held = threading.Event()

    def hammer() -> None:
        for _ in range(1000):
            with work_counter.under_way():
                if work_counter.wait_idle(0):
                    is_held.set()
            work_counter.changed()

    run_threads([hammer] * 4)
    assert work_counter.wait_idle(0)
    assert not is_held.is_set()
