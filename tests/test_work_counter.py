"""Work under way, and waiting for its end."""

from __future__ import annotations

import threading

import pytest
from support.helpers import run_threads, wait_until
from support.threads import waiting

from bbcache.work_counter import WorkCounter


def wait_idle(work_counter: WorkCounter, timeout_s: float | None) -> bool:
    """Wait until nothing is under way."""
    return work_counter.wait_for(work_counter.is_idle, timeout_s)


def test_a_new_one_is_idle() -> None:
    """Nothing is under way at first."""
    assert wait_idle(WorkCounter(), 0)
    assert wait_idle(WorkCounter(), None)


def test_wait_idle_gives_up_after_its_timeout() -> None:
    """The wait returns False while work goes on, at once if the timeout is 0."""
    work_counter = WorkCounter()
    with work_counter.under_way():
        assert not wait_idle(work_counter, 0)
        assert not wait_idle(work_counter, 0.01)
    assert wait_idle(work_counter, 0)


def test_one_idle_moment_is_enough() -> None:
    """The wait reports a moment at which it was so, even if new work has begun since."""
    looks = iter([False, True, False])
    work_counter = WorkCounter()
    assert work_counter.wait_for(lambda: next(looks), None)
    assert not work_counter.wait_for(lambda: next(looks), 0)


def test_under_way_ends_also_where_the_block_raises() -> None:
    """A block counts until its end, also if it raises."""
    work_counter = WorkCounter()

    def fail() -> None:
        with work_counter.under_way():
            with work_counter.under_way():
                assert not wait_idle(work_counter, 0)
            assert not wait_idle(work_counter, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert wait_idle(work_counter, 0)


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
        results.append(wait_idle(work_counter, 30))

    run_threads([wait, wait, wait, work])
    assert results == [True, True, True]


def test_giving_up_wakes_all_who_wait() -> None:
    """After a close with work left, every wait returns False at once."""
    work_counter = WorkCounter()
    results: list[bool] = []

    def give_up() -> None:
        wait_until(lambda: len(waiting("wait_idle")) == 2)
        work_counter.give_up()

    with work_counter.under_way():
        run_threads([lambda: results.append(wait_idle(work_counter, None))] * 2 + [give_up])
        assert results == [False, False]
        assert not wait_idle(work_counter, None)


def test_giving_up_with_nothing_left_is_idle() -> None:
    """After a close without work left, a wait returns True."""
    work_counter = WorkCounter()
    work_counter.give_up()
    assert wait_idle(work_counter, None)


def test_no_piece_of_work_is_lost_between_threads() -> None:
    """Many threads that begin and end leave it idle."""
    work_counter = WorkCounter()
    is_held = threading.Event()

    def hammer() -> None:
        for _ in range(1000):
            with work_counter.under_way():
                if wait_idle(work_counter, 0):
                    is_held.set()
            work_counter.changed()

    run_threads([hammer] * 4)
    assert wait_idle(work_counter, 0)
    assert not is_held.is_set()
