"""The queue of prepares: coalescing, bounds, order, waking, closing."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.helpers import (
    TENANT,
    SettledQueue,
    make_keys,
    make_request,
    run_threads,
    take_all,
    wait_until,
)
from support.locks import watched_locks
from support.threads import waiting

from bbcache.ids import TenantShardId
from bbcache.outcomes import SkipReason
from bbcache.prepare.request import Result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bbcache.prepare.queue import PrepareQueue
    from bbcache.prepare.request import Request

A, B, C, D = make_keys(4)
SHARD = TenantShardId(TENANT)


@pytest.fixture
def queue() -> Iterator[SettledQueue]:
    """An open queue of three; closed at the end, so that no taker is left waiting."""
    made = SettledQueue(3)
    made.open()
    yield made
    made.close()


def waiters() -> int:
    """How many threads wait in take."""
    return len(waiting("take"))


def test_requests_are_taken_in_order(queue: SettledQueue) -> None:
    """The oldest first."""
    made = [make_request(key) for key in (C, A, B)]
    assert [queue.submit(each) for each in made] == [None] * 3
    assert len(queue) == 3
    assert take_all(queue) == made
    assert len(queue) == 0


def test_the_newest_lsn_of_a_timeline_is_taken_first(queue: SettledQueue) -> None:
    """When its LSN is reached, older LSNs fall out; other timelines keep their turns."""
    old, other, new, older = (
        make_request(A, 2),
        make_request(B),
        make_request(A, 3),
        make_request(A, 1),
    )
    assert [queue.submit(each) for each in (old, other, new, older)] == [None] * 4
    assert queue.take() is new
    assert queue.start(new) == [old, older]
    assert take_all(queue) == [other]


def test_an_lsn_that_is_not_reached_makes_no_other_superfluous(queue: SettledQueue) -> None:
    """The other LSN has its turn at once, whether it is newer or older."""
    bogus, true = make_request(A, 9), make_request(A, 2)
    queue.submit(bogus)
    assert queue.submit(true) is None
    assert queue.take() is bogus
    assert queue.has_other(bogus)
    assert queue.postpone(bogus) is None
    assert queue.take() is true
    assert queue.submit(late := make_request(A, 1)) is None
    assert queue.start(true) == [late]
    queue.finish(true)
    assert queue.take() is bogus


def test_an_equal_request_falls_out(queue: SettledQueue) -> None:
    """One request for an LSN is enough, wherever it waits."""
    first = make_request(A, 2)
    queue.submit(first)
    assert queue.submit(late := make_request(A, 2)) == (late, SkipReason.COALESCED)
    queue.take()
    queue.postpone(first)
    assert queue.submit(late := make_request(A, 2)) == (late, SkipReason.COALESCED)
    assert take_all(queue) == [first]


@pytest.mark.parametrize("lsn", [1, 2])
def test_a_build_covers_what_is_not_newer(queue: SettledQueue, lsn: int) -> None:
    """The LSN of a build is known to be reached: an older or equal one is superfluous."""
    first, late = make_request(A, 2), make_request(A, lsn)
    queue.submit(first)
    assert queue.take() is first
    assert queue.start(first) == []
    assert queue.submit(late) == (late, SkipReason.COALESCED)
    assert len(queue) == 0


def test_few_lsns_of_a_timeline_wait(queue: SettledQueue) -> None:
    """The middle one of too many falls out: neither the newest nor the next to be reached."""
    made = [make_request(A, lsn) for lsn in range(1, 18)]
    assert [queue.submit(each) for each in made] == [
        *[None] * 16,
        (made[8], SkipReason.COALESCED),
    ]
    assert queue.take() is made[-1]
    assert queue.start(made[-1]) == [*made[:8], *made[9:-1]]


def test_a_newer_request_waits_for_the_running_one(queue: SettledQueue) -> None:
    """A timeline has one build at a time; other timelines pass it."""
    running, newer, other = make_request(A, 1), make_request(A, 2), make_request(B)
    queue.submit(running)
    assert queue.take() is running
    assert queue.submit(newer) is None
    assert queue.submit(other) is None
    assert queue.take() is other
    assert len(queue) == 1
    queue.finish(running)
    assert queue.take() is newer


def test_an_ordinary_request_replaces_a_rebuild_at_its_lsn(queue: SettledQueue) -> None:
    """It builds wherever the rebuild would, and need not find the shard."""
    rebuild, ordinary = make_request(A, 1, is_rebuild=True), make_request(A, 1)
    assert rebuild.is_rebuild
    assert not ordinary.is_rebuild
    queue.submit(rebuild)
    assert queue.submit(ordinary) == (rebuild, SkipReason.COALESCED)
    assert take_all(queue) == [ordinary]


def test_an_ordinary_request_waits_behind_a_running_rebuild(queue: SettledQueue) -> None:
    """The rebuild may give up where the ordinary one does not."""
    rebuild, ordinary = make_request(A, 1, is_rebuild=True), make_request(A, 1)
    queue.submit(rebuild)
    queue.take()
    assert queue.submit(ordinary) is None


@pytest.mark.parametrize("is_running_rebuild", [False, True])
@pytest.mark.parametrize("lsn", [1, 2])
def test_a_rebuild_waits_behind_a_running_prepare(
    queue: SettledQueue, lsn: int, *, is_running_rebuild: bool
) -> None:
    """The one that runs may have relied on the very archive that was found bad since."""
    running = make_request(A, 2, is_rebuild=is_running_rebuild)
    rebuild = make_request(A, lsn, is_rebuild=True)
    queue.submit(running)
    queue.take()
    assert queue.submit(rebuild) is None
    queue.finish(running)
    assert queue.take() is rebuild


@pytest.mark.parametrize("is_first_rebuild", [False, True])
def test_a_rebuild_is_covered_by_either_at_its_lsn(
    queue: SettledQueue, *, is_first_rebuild: bool
) -> None:
    """A second rebuild, or one beside an ordinary prepare, is superfluous."""
    queue.submit(make_request(A, 1, is_rebuild=is_first_rebuild))
    rebuild = make_request(A, 1, is_rebuild=True)
    assert queue.submit(rebuild) == (rebuild, SkipReason.COALESCED)


@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), max_size=20),
)
def test_the_best_request_of_a_timeline_is_run_last(
    steps: list[tuple[int, bool, bool]],
) -> None:
    """However requests and runs mix, every request ends once and the best is not lost."""
    queue = SettledQueue(1)
    queue.open()
    fallen: list[Request] = []
    run: list[Request] = []
    put: list[Request] = []
    running: Request | None = None
    for lsn, is_rebuild, is_taken in steps:
        put.append(make_request(A, lsn, is_rebuild=is_rebuild))
        dropped = queue.submit(put[-1])
        if dropped is not None:
            assert dropped[1] is SkipReason.COALESCED
            fallen.append(dropped[0])
        if is_taken and running is None and len(queue):
            running = queue.take()
            assert running is not None
            fallen += queue.start(running) or []
        elif running is not None:
            queue.finish(running)
            run.append(running)
            running = None
    if running is not None:
        queue.finish(running)
        run.append(running)
    while len(queue):
        run.append(queue.take() or pytest.fail("closed"))
        fallen += queue.start(run[-1]) or []
        queue.finish(run[-1])
    assert {*fallen, *run} == set(put)
    assert len(fallen) + len(run) == len(put)
    if put:
        best = max((each.lsn, not each.is_rebuild) for each in put)
        assert best in [(each.lsn, not each.is_rebuild) for each in run]


def test_capacity_bounds_what_waits(queue: SettledQueue) -> None:
    """The new request falls out."""
    made = [make_request(key) for key in (A, B, C)]
    for each in made:
        queue.submit(each)
    late = make_request(D)
    assert queue.submit(late) == (late, SkipReason.QUEUE_FULL)
    assert len(queue) == 3
    assert take_all(queue) == made


def test_a_full_queue_still_coalesces(queue: SettledQueue) -> None:
    """Another LSN of a timeline that waits takes no capacity."""
    old, new = make_request(B, 1), make_request(B, 2)
    for each in (make_request(A), old, make_request(C)):
        queue.submit(each)
    assert queue.submit(new) is None
    stale = make_request(B, 1)
    assert queue.submit(stale) == (stale, SkipReason.COALESCED)


def test_running_requests_take_no_capacity(queue: SettledQueue) -> None:
    """Only requests that wait count against the capacity."""
    for key in (A, B, C):
        queue.submit(make_request(key))
    queue.take()
    assert queue.submit(make_request(D)) is None


def test_a_full_queue_takes_no_request_of_a_busy_timeline(queue: SettledQueue) -> None:
    """A newer request of a busy timeline counts against the capacity."""
    queue.submit(make_request(A, 1))
    queue.take()
    for key in (B, C, D):
        queue.submit(make_request(key))
    newer = make_request(A, 2)
    assert queue.submit(newer) == (newer, SkipReason.QUEUE_FULL)


def test_requests_gather_until_the_queue_is_opened() -> None:
    """Before the start is done prepares wait, and no worker gets one."""
    queue = SettledQueue(3)
    made = make_request(A)
    queue.submit(made)
    taken: list[Request | None] = []

    def take() -> None:
        taken.append(queue.take())

    def open_it() -> None:
        wait_until(lambda: waiters() == 1)
        assert (len(queue), taken) == (1, [])
        queue.open()

    run_threads([take, open_it])
    assert taken == [made]


def test_a_queue_that_is_open_for_fills_keeps_the_others() -> None:
    """Requests with callers are taken; the others gather until the queue is opened."""
    queue = SettledQueue(3)
    sent, fill = make_request(A), make_request(B)
    queue.submit(sent)
    assert queue.join(fill) is fill
    queue.open(for_fills_only=True)
    assert queue.take() is fill
    assert not queue.has_other(fill)
    queue.finish(fill)
    joined = make_request(A)
    assert queue.join(joined) is sent
    assert queue.take() is sent
    queue.finish(sent)
    late = make_request(C)
    queue.submit(late)
    assert not queue.has_other(sent)
    queue.open()
    assert take_all(queue) == [late]
    queue.close()


def test_take_waits_and_is_woken_by_a_put(queue: SettledQueue) -> None:
    """A worker sleeps until there is work."""
    made = make_request(A)
    taken: list[Request | None] = []

    def put() -> None:
        wait_until(lambda: waiters() == 1)
        queue.submit(made)

    run_threads([lambda: taken.append(queue.take()), put])
    assert taken == [made]


def test_take_is_woken_by_the_end_of_a_run(queue: SettledQueue) -> None:
    """A worker that waits for a busy timeline goes on when it is free."""
    running, newer = make_request(A, 1), make_request(A, 2)
    queue.submit(running)
    queue.take()
    queue.submit(newer)
    taken: list[Request | None] = []

    def done() -> None:
        wait_until(lambda: waiters() == 1)
        queue.finish(running)

    run_threads([lambda: taken.append(queue.take()), done])
    assert taken == [newer]


def test_a_put_for_a_busy_timeline_does_not_swallow_the_next(queue: SettledQueue) -> None:
    """A worker that was woken in vain waits again, and is woken by the next request."""
    running = make_request(A, 1)
    queue.submit(running)
    queue.take()
    other = make_request(B)
    taken: list[Request | None] = []

    def put() -> None:
        wait_until(lambda: waiters() == 1)
        queue.submit(make_request(A, 2))
        queue.submit(other)

    run_threads([lambda: taken.append(queue.take()), put])
    assert taken == [other]


def test_a_request_is_counted_once(queue: SettledQueue) -> None:
    """Even if several threads end it, at once or later."""
    made = make_request(A)
    queue.submit(made)
    assert queue.take() is made
    run_threads([lambda: queue.finish(made)] * 4)
    queue.close()
    queue.abandon_running()
    assert queue.results() == {"error": 1}


def test_what_runs_when_a_close_ends_is_counted_as_closing(queue: SettledQueue) -> None:
    """Its worker, which ends later, does not count it again; its callers were told before."""
    made = make_request(A)
    queue.submit(made)
    assert queue.take() is made
    joined = make_request(A)
    assert queue.join(joined) is made
    assert queue.close() == []
    assert made.wait(0) is not None
    assert queue.abandon_running() == [made]
    queue.finish(made)
    assert queue.results() == {"skip": 1}
    assert queue.is_idle()


def test_close_cancels_what_waits(queue: SettledQueue) -> None:
    """Requests that wait are cancelled, once; running ones are not."""
    running, second, third = make_request(A), make_request(B), make_request(C)
    for each in (running, second, third):
        queue.submit(each)
    assert queue.take() is running
    assert queue.close() == [second, third]
    assert len(queue) == 0
    assert queue.close() == []
    assert not queue.is_idle()
    queue.finish(running)
    assert queue.is_idle()


def test_closed_queue_takes_and_gives_nothing(queue: SettledQueue) -> None:
    """Every request falls out as closing, and takers end."""
    queue.close()
    late = make_request(A)
    assert queue.submit(late) == (late, SkipReason.CLOSING)
    assert queue.take() is None
    queue.open()
    assert queue.take() is None


def test_close_wakes_every_taker() -> None:
    """Workers end, also if the queue was never opened."""
    queue = SettledQueue(3)
    taken: list[Request | None] = []

    def close() -> None:
        wait_until(lambda: waiters() == 3)
        queue.close()

    run_threads([lambda: taken.append(queue.take())] * 3 + [close])
    assert taken == [None, None, None]


def test_length_is_read_without_the_lock() -> None:
    """A scrape never waits for the queue."""
    with watched_locks() as locks:
        queue = SettledQueue(3)
    queue.submit(make_request(A))
    seen: list[int] = []
    with locks[0]:
        run_threads([lambda: seen.append(len(queue))])
    assert seen == [1]


def test_workers_and_senders_lose_nothing() -> None:
    """Every request ends exactly once, and no two of a timeline run at once."""
    settled = SettledQueue(5)
    queue: PrepareQueue = settled.queue
    queue.open()
    lock = threading.Lock()
    busy: set[bytes] = set()
    is_double = threading.Event()
    sent: list[Request] = []
    all_keys = make_keys(6)

    def work() -> None:
        while (taken := queue.take()) is not None:
            with lock:
                if taken.key in busy:
                    is_double.set()
                busy.add(taken.key)
            assert queue.start(taken)
            with lock:
                busy.discard(taken.key)
            queue.finish(taken, Result())

    def send() -> None:
        for lsn in range(300):
            made = make_request(all_keys[lsn % 6], lsn)
            with lock:
                sent.append(made)
            queue.submit(made)

    def end() -> None:
        try:
            wait_until(lambda: sum(settled.results().values()) == 900)
        finally:
            queue.close()

    run_threads([work] * 4 + [send] * 3 + [end])
    assert not is_double.is_set()
    assert all(each.wait(0) is not None for each in sent)
    assert sum(settled.results().values()) == len(sent) == 900
    assert queue.is_idle()
