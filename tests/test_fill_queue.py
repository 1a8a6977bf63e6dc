"""Fills in the queue: joining, their order, their places, giving up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers import TENANT, make_keys, make_request, take_all

from bbcache.flight import Landing
from bbcache.ids import Lsn, TenantShardId
from bbcache.metrics import SkipReason
from bbcache.prepare_queue import PrepareQueue, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

A, B, C, D = make_keys(4)
SHARD = TenantShardId(TENANT)


def fill(key: bytes, lsn: int = 1, *, must_build: bool = False) -> Request:
    """A request that somebody waits for."""
    return Request(key, Lsn(lsn), SHARD, 0.0, is_fill=True, must_build=must_build)


@pytest.fixture
def queue() -> Iterator[PrepareQueue]:
    """An open queue of two; closed at the end."""
    made = PrepareQueue(2)
    made.open()
    yield made
    made.close()


def test_the_first_fill_is_queued_and_the_next_join_it(queue: PrepareQueue) -> None:
    """One request an LSN, whether it waits or runs, and everyone is aboard its flight."""
    first = fill(A)
    assert queue.join(first) is first
    assert queue.join(fill(A)) is first
    assert len(queue) == 1
    assert queue.take() is first
    assert queue.join(fill(A)) is first
    assert len(queue) == 0
    assert queue.has(A, Lsn(1))
    for _ in range(3):
        assert first.flight.is_awaited
        queue.leave(first)
    assert not first.flight.is_awaited
    queue.done(first)
    assert not queue.has(A, Lsn(1))


@pytest.mark.parametrize("is_running", [False, True])
@pytest.mark.parametrize("is_rebuild", [False, True])
def test_a_fill_joins_a_prepare(queue: PrepareQueue, *, is_running: bool, is_rebuild: bool) -> None:
    """At its LSN; a rebuild that is joined need not find the shard any more."""
    asked = make_request(A, is_rebuild=is_rebuild)
    queue.put(asked)
    if is_running:
        assert queue.take() is asked
    assert queue.has(A, Lsn(1))
    assert queue.join(fill(A, must_build=True)) is asked
    assert asked.flight.is_awaited
    assert asked.must_build
    assert not asked.is_rebuild
    assert len(queue) == (0 if is_running else 1)
    assert take_all(queue) == ([] if is_running else [asked])


def test_another_lsn_is_another_request(queue: PrepareQueue) -> None:
    """A caller wants exactly the LSN that he names: nothing is coalesced."""
    prepared, older, newer = make_request(A, 2), fill(A, 1), fill(A, 3)
    queue.put(prepared)
    assert queue.join(older) is older
    assert queue.join(newer) is newer
    assert len(queue) == 3
    assert take_all(queue) == [older, newer, prepared]


def test_one_build_a_timeline_at_a_time(queue: PrepareQueue) -> None:
    """Fills of one timeline wait for each other, those of others pass them."""
    first, second, other = fill(A, 1), fill(A, 2), fill(B)
    for each in (first, second, other):
        queue.join(each)
    assert queue.take() is first
    assert queue.take() is other
    queue.done(first)
    assert queue.take() is second


def test_a_newer_prepare_replaces_nothing_that_is_waited_for(queue: PrepareQueue) -> None:
    """Neither a fill nor a prepare that a fill has joined."""
    joined, newer = make_request(A, 1), make_request(A, 2)
    queue.put(joined)
    queue.join(fill(A, 1))
    assert queue.put(newer) is None
    assert queue.put(make_request(A, 3)) == (newer, SkipReason.COALESCED)
    assert [int(each.lsn) for each in take_all(queue)] == [1, 3]


@pytest.mark.parametrize("is_running", [False, True])
@pytest.mark.parametrize("is_rebuild", [False, True])
def test_a_fill_covers_a_prepare_at_its_lsn_alone(
    queue: PrepareQueue, *, is_running: bool, is_rebuild: bool
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
    assert queue.put(same) == ((same, SkipReason.COALESCED) if is_covered else None)
    if is_covered:
        assert queue.put(older) is None


def test_what_is_waited_for_goes_first(queue: PrepareQueue) -> None:
    """Also a prepare that is joined late; among themselves in order."""
    first, second, awaited = make_request(A), make_request(B), fill(C)
    queue.put(first)
    queue.put(second)
    queue.join(awaited)
    queue.join(fill(B))
    assert take_all(queue) == [awaited, second, first]


def test_waiting_callers_are_not_bounded_by_the_capacity(queue: PrepareQueue) -> None:
    """Their own number bounds them; prepares keep their places beside them."""
    fills = [fill(key) for key in (A, B, C)]
    for each in fills:
        assert queue.join(each) is each
    first, second, third = make_request(D), make_request(A, 2), make_request(B, 2)
    assert queue.put(first) is None
    assert queue.put(second) is None
    assert queue.put(third) == (third, SkipReason.QUEUE_FULL)
    assert take_all(queue) == [*fills, first, second]


def test_what_is_given_up_goes_on_where_it_has_a_place(queue: PrepareQueue) -> None:
    """As many as a queue of prepares would hold; what is beyond falls out."""
    fills = [fill(key) for key in (A, B, C)]
    for each in fills:
        queue.join(each)
    queue.join(fill(C))
    assert [queue.leave(each) for each in fills] == [None] * 3
    assert queue.put(make_request(D)) is not None  # the two that were given up have its places
    assert queue.leave(fills[2]) is fills[2]
    assert take_all(queue) == fills[:2]
    assert queue.join(fill(C)) is not fills[2]


def test_what_was_given_up_can_be_joined_again(queue: PrepareQueue) -> None:
    """It is still the one request of its LSN."""
    first = fill(A)
    queue.join(first)
    assert queue.leave(first) is None
    assert queue.join(fill(A)) is first
    assert first.flight.is_awaited


def test_what_runs_goes_on_when_it_is_given_up(queue: PrepareQueue) -> None:
    """Leaving takes nothing out that a worker has taken."""
    first = fill(A)
    queue.join(first)
    assert queue.take() is first
    assert queue.leave(first) is None
    assert queue.running() == [first]


def test_what_has_landed_is_not_joined(queue: PrepareQueue) -> None:
    """Between its end and its leaving the queue a new request is made, which waits its turn."""
    first, second = fill(A), fill(A)
    queue.join(first)
    queue.take()
    first.flight.land(Landing())
    assert queue.join(second) is second
    assert len(queue) == 1


def test_a_closed_queue_takes_no_fill(queue: PrepareQueue) -> None:
    """Those that wait come back to be told; later ones get nothing."""
    waiting, prepared = fill(A), make_request(B)
    queue.join(waiting)
    queue.put(prepared)
    assert set(queue.close()) == {waiting, prepared}
    assert queue.join(fill(A)) is None
    assert len(queue) == 0
