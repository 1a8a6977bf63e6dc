"""Requests with callers in the queue: joining, order, capacity, giving up."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from support.helpers import TENANT, SettledQueue, make_keys, make_request, take_all

from bbcache.ids import Lsn, TenantShardId
from bbcache.outcomes import SkipReason
from bbcache.prepare.queue import WAIT_SLICE_S
from bbcache.prepare.request import Request, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

A, B, C, D = make_keys(4)
SHARD = TenantShardId(TENANT)


def fill(key: bytes, lsn: int = 1, *, must_build: bool = False) -> Request:
    """A request of a caller."""
    made = Request(key, Lsn(lsn), SHARD, 0.0, is_sent=False)
    made.must_build = must_build
    return made


@pytest.fixture
def queue() -> Iterator[SettledQueue]:
    """An open queue of two; closed at the end."""
    made = SettledQueue(2)
    made.open()
    yield made
    made.close()


def test_the_first_fill_is_queued_and_the_next_join_it(queue: SettledQueue) -> None:
    """There is one request for an LSN, waiting or running, and each caller joins it."""
    first = fill(A)
    assert queue.join(first) is first
    assert queue.join(fill(A)) is first
    assert len(queue) == 1
    assert queue.take() is first
    assert queue.join(fill(A)) is first
    assert len(queue) == 0
    assert queue.has(A, Lsn(1))
    for _ in range(3):
        assert first.is_awaited
        queue.leave(first)
    assert not first.is_awaited
    queue.finish(first)
    assert not queue.has(A, Lsn(1))


@pytest.mark.parametrize("is_running", [False, True])
@pytest.mark.parametrize("is_rebuild", [False, True])
def test_a_fill_joins_a_prepare(queue: SettledQueue, *, is_running: bool, is_rebuild: bool) -> None:
    """At its LSN; a rebuild that is joined need not find the shard any more."""
    asked = make_request(A, is_rebuild=is_rebuild)
    queue.submit(asked)
    if is_running:
        assert queue.take() is asked
    assert queue.has(A, Lsn(1))
    assert queue.join(fill(A, must_build=True)) is asked
    assert asked.is_awaited
    assert asked.must_build
    assert not asked.is_rebuild
    assert len(queue) == (0 if is_running else 1)
    assert take_all(queue) == ([] if is_running else [asked])


def test_another_lsn_is_another_request(queue: SettledQueue) -> None:
    """A caller wants exactly the LSN that it names: a fill is not coalesced."""
    prepared, older, newer = make_request(A, 4), fill(A, 1), fill(A, 3)
    queue.submit(prepared)
    assert queue.join(older) is older
    assert queue.join(newer) is newer
    assert len(queue) == 3
    assert take_all(queue) == [older, newer, prepared]


def test_one_build_a_timeline_at_a_time(queue: SettledQueue) -> None:
    """Requests of one timeline wait for each other; those of other timelines pass them."""
    first, second, other = fill(A, 1), fill(A, 2), fill(B)
    for each in (first, second, other):
        queue.join(each)
    assert queue.take() is first
    assert queue.take() is other
    queue.finish(first)
    assert queue.take() is second


def test_a_newer_prepare_replaces_nothing_that_is_waited_for(queue: SettledQueue) -> None:
    """Neither the request of a caller nor a prepare that a caller has joined."""
    joined, newer = make_request(A, 1), make_request(A, 2)
    queue.submit(joined)
    queue.join(fill(A, 1))
    assert queue.submit(newer) is None
    assert [int(each.lsn) for each in take_all(queue)] == [1, 2]


@pytest.mark.parametrize("is_running", [False, True])
@pytest.mark.parametrize("is_rebuild", [False, True])
def test_a_fill_covers_a_prepare_at_its_lsn_alone(
    queue: SettledQueue, *, is_running: bool, is_rebuild: bool
) -> None:
    """A client that names an LSN of the future costs the timeline no prepare."""
    running = fill(A, 5)
    queue.join(running)
    if is_running:
        queue.take()
    same, older = (
        make_request(A, 5, is_rebuild=is_rebuild),
        make_request(A, 4, is_rebuild=is_rebuild),
    )
    is_covered = not (is_running and is_rebuild)  # it may have relied on what was bad
    assert queue.submit(same) == ((same, SkipReason.COALESCED) if is_covered else None)
    if is_covered:
        assert queue.submit(older) is None


def test_requests_with_callers_go_first(queue: SettledQueue) -> None:
    """Also a prepare that was joined late; among themselves they keep their order."""
    first, second, awaited = make_request(A), make_request(B), fill(C)
    queue.submit(first)
    queue.submit(second)
    queue.join(awaited)
    queue.join(fill(B))
    assert take_all(queue) == [second, awaited, first]


def test_waiting_callers_are_not_bounded_by_the_capacity(queue: SettledQueue) -> None:
    """Only the number of callers bounds them, and prepares keep their capacity."""
    fills = [fill(key) for key in (A, B, C)]
    for each in fills:
        assert queue.join(each) is each
    first, second, third = make_request(D), make_request(A, 2), make_request(B, 2)
    assert queue.submit(first) is None
    assert queue.submit(second) is None
    assert queue.submit(third) == (third, SkipReason.QUEUE_FULL)
    assert take_all(queue) == [*fills, first, second]


def test_a_request_that_was_left_goes_behind_the_line(queue: SettledQueue) -> None:
    """As many requests without callers stay behind the line as the capacity says."""
    fills = [fill(key) for key in (A, B, C)]
    for each in fills:
        queue.join(each)
    queue.join(fill(C))
    assert [queue.leave(each) for each in fills] == [None] * 3
    asked = [make_request(key) for key in (D, A)]
    assert queue.submit(asked[0]) is None  # they have no places of prepares
    assert queue.submit(asked[1]) == (asked[1], SkipReason.COALESCED)  # and is what was given up
    assert queue.leave(fills[2]) is None
    assert take_all(queue) == [asked[0], fills[0], fills[1], fills[2]]


def test_too_many_that_are_given_up_fall_out(queue: SettledQueue) -> None:
    """The highest LSN of the largest timeline falls out."""
    fills = [fill(A), fill(B, 1), fill(B, 2)]
    for each in fills:
        queue.join(each)
    assert [queue.leave(each) for each in fills] == [None, None, (fills[2], SkipReason.QUEUE_FULL)]
    assert take_all(queue) == [fills[0], fills[1]]
    assert queue.join(fill(B, 2)) is not fills[2]


def test_requests_that_were_left_take_no_capacity_of_prepares(queue: SettledQueue) -> None:
    """The two are counted apart: callers that come and go drop no prepare."""
    ahead = [make_request(A, lsn) for lsn in (8, 9)]
    for each in ahead:
        queue.submit(each)
        assert queue.take() is each
        each.waiting_since_s = 0.0
        assert queue.postpone(each) is None
    for lsn in range(10, 20):
        cancelled = fill(A, lsn)
        queue.join(cancelled)
        dropped = queue.leave(cancelled)
        assert dropped is None or dropped[0] not in ahead
    assert queue.take() is ahead[0]


class TestNotReached:
    """Requests of callers whose LSN is not reached."""

    @pytest.fixture
    def ahead(self, queue: SettledQueue) -> Request:
        """A request that its worker has put behind the line."""
        made = fill(A, 9)
        queue.join(made)
        assert queue.take() is made
        made.waiting_since_s = 0.0
        assert queue.postpone(made) is None
        return made

    def test_it_is_joined_and_stays_behind(self, queue: SettledQueue, ahead: Request) -> None:
        """Another caller makes it no more urgent."""
        assert queue.has(A, Lsn(9))
        assert queue.join(fill(A, 9)) is ahead
        other = fill(A, 1)
        queue.join(other)
        assert take_all(queue) == [other, ahead]

    def test_it_ends_with_its_last_caller(self, queue: SettledQueue, ahead: Request) -> None:
        """It falls out when its last caller leaves."""
        queue.join(fill(A, 9))
        assert queue.leave(ahead) is None
        assert queue.leave(ahead) == (ahead, SkipReason.CANCELLED)
        assert len(queue) == 0

    def test_one_that_is_looked_at_is_left_to_its_worker(
        self, queue: SettledQueue, ahead: Request
    ) -> None:
        """It holds no slot, can be joined, and goes behind the line again."""
        assert queue.take() is ahead
        assert queue.running() == []
        assert queue.leave(ahead) is None
        assert queue.join(fill(A, 9)) is ahead
        other = fill(A, 1)
        queue.join(other)
        assert queue.take() is other
        assert queue.postpone(ahead) is None
        queue.finish(other)
        assert queue.take() is ahead
        queue.finish(ahead)
        assert len(queue) == 0

    def test_a_prepare_of_it_outlasts_its_callers(
        self, queue: SettledQueue, ahead: Request
    ) -> None:
        """The host has asked for it by now."""
        late = make_request(A, 9)
        assert queue.submit(late) == (late, SkipReason.COALESCED)
        assert queue.leave(ahead) is None
        assert queue.take() is ahead

    def test_reached_it_waits_for_the_slot(self, queue: SettledQueue, ahead: Request) -> None:
        """While another build has the slot, it is in the line, before requests without callers."""
        assert queue.take() is ahead
        build = make_request(A, 1)
        queue.submit(build)
        assert queue.take() is build
        assert queue.start(build) == []
        assert queue.start(ahead) is None
        queue.submit(make_request(B))
        queue.finish(build)
        assert queue.take() is ahead
        assert queue.running() == [ahead]

    def test_it_has_a_turn_after_each_other(self, queue: SettledQueue, ahead: Request) -> None:
        """It is looked at although other requests can run all the time."""
        others = [fill(B, lsn) for lsn in (1, 2)]
        for each in others:
            queue.join(each)
        taken = []
        for _ in range(4):
            request = queue.take()
            assert request is not None
            taken.append(request)
            queue.postpone(request) if request is ahead else queue.finish(request)
        assert taken == [others[0], ahead, others[1], ahead]

    def test_others_that_are_not_reached_keep_no_turn_from_it(
        self, queue: SettledQueue, ahead: Request
    ) -> None:
        """However many there are; of a timeline the lowest LSN is looked at."""
        taken = []
        for lsn in range(10, 14):
            queue.join(fill(A, lsn))
            for _ in range(2):
                request = queue.take()
                assert request is not None
                request.waiting_since_s = 0.0
                queue.postpone(request)
                taken.append(int(request.lsn))
        assert taken == [10, ahead.lsn, 11, ahead.lsn, 12, ahead.lsn, 13, ahead.lsn]

    def test_a_flood_of_prepares_that_are_not_reached_keeps_no_look_from_a_true_one(
        self, queue: SettledQueue
    ) -> None:
        """One below an LSN that is not reached goes before newer ones, however many come."""
        for lsn in range(1000, 1030):
            queue.submit(make_request(A, lsn))
        true = make_request(A, 9)
        queue.submit(true)
        taken = []
        for lsn in range(1030, 1060):
            request = queue.take()
            assert request is not None
            taken.append(request)
            if request is true:
                break
            request.waiting_since_s = 0.0
            queue.postpone(request)
            queue.submit(make_request(A, lsn))
        assert taken[-1] is true

    def test_a_flood_of_falling_lsns_keeps_no_look_from_a_true_one(
        self, queue: SettledQueue
    ) -> None:
        """Each of them is below all LSNs that were not reached, and could be the next."""
        falling = iter(range(10_000, 0, -10))
        for lsn in itertools.islice(falling, 30):
            queue.submit(make_request(A, lsn))
        true = make_request(A, 9)
        queue.submit(true)
        taken = []
        for lsn in itertools.islice(falling, 30):
            request = queue.take()
            assert request is not None
            taken.append(request)
            if request is true:
                break
            request.waiting_since_s = 0.0
            queue.postpone(request)
            queue.submit(make_request(A, lsn))
        assert taken[-1] is true

    def test_how_long_it_is_looked_at(self, queue: SettledQueue, ahead: Request) -> None:
        """A full slice if it is alone, a part beside others, and 1 ms while another can run."""
        assert queue.slice_s(ahead) == WAIT_SLICE_S
        for lsn in range(10, 13):
            more = fill(A, lsn)
            queue.join(more)
            while queue.take() is not more:
                pass
            queue.postpone(more)
        assert queue.slice_s(ahead) == WAIT_SLICE_S / 4
        queue.join(fill(A, 1))
        assert queue.slice_s(ahead) < WAIT_SLICE_S / 20

    def test_a_close_cancels_it(self, queue: SettledQueue, ahead: Request) -> None:
        """Also while a worker looks at it: it is neither postponed nor started then."""
        assert queue.take() is ahead
        assert queue.close() == [ahead]
        assert queue.postpone(ahead) is None
        assert queue.start(ahead) == []
        queue.finish(ahead)
        assert len(queue) == 0


def test_a_request_that_was_left_can_be_joined_again(queue: SettledQueue) -> None:
    """It is still the only request of its LSN."""
    first = fill(A)
    queue.join(first)
    assert queue.leave(first) is None
    assert queue.join(fill(A)) is first
    assert first.is_awaited


def test_a_running_request_goes_on_when_it_is_left(queue: SettledQueue) -> None:
    """A request that a worker has taken stays when its callers leave."""
    first = fill(A)
    queue.join(first)
    assert queue.take() is first
    assert queue.leave(first) is None
    assert queue.running() == [first]


def test_a_finished_request_is_not_joined(queue: SettledQueue) -> None:
    """A caller that comes after its end, and before the queue is told, queues a new request."""
    first, second = fill(A), fill(A)
    queue.join(first)
    queue.take()
    first.finish(Result())
    assert queue.join(second) is second
    assert len(queue) == 1


def test_a_closed_queue_takes_no_fill(queue: SettledQueue) -> None:
    """Requests that wait are settled; later callers get None."""
    waiting, prepared = fill(A), make_request(B)
    queue.join(waiting)
    queue.submit(prepared)
    assert set(queue.close()) == {waiting, prepared}
    assert queue.join(fill(A)) is None
    assert len(queue) == 0
