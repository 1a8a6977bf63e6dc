"""The order of requests: whose turn it is, and which ones fall out."""

from __future__ import annotations

import pytest
from support.helpers import TENANT, make_keys, make_request

from bbcache.errors import StoreError
from bbcache.ids import Lsn, TenantShardId
from bbcache.outcomes import SkipReason
from bbcache.prepare.line import Line
from bbcache.prepare.request import Request

A, B, C, D = make_keys(4)


@pytest.fixture
def line() -> Line:
    """An open line with room for two timelines."""
    made = Line(2)
    made.is_open = made.is_open_for_fills = True
    return made


def awaited(line: Line, key: bytes, lsn: int = 1) -> Request:
    """Add a request that a caller waits for."""
    fill = Request(key, Lsn(lsn), TenantShardId(TENANT), 0.0, is_sent=False)
    fill.join(fill)
    line.line_up(fill)
    return fill


def sent(line: Line, key: bytes, lsn: int = 1) -> Request:
    """Add a request that `send_prepare` has asked for."""
    made = make_request(key, lsn)
    line.add(made)
    return made


def joined(line: Line, request: Request) -> Request:
    """Make a caller wait for a request, and return the caller."""
    fill = Request(request.key, request.lsn, request.tenant_shard_id, 0.0, is_sent=False)
    request.join(fill)
    line.adopt(request, fill)
    return fill


def leave(line: Line, request: Request, fill: Request) -> None:
    """Make a caller of a request give up."""
    request.leave(fill)
    line.give_up(request)


def postpone(line: Line, request: Request) -> None:
    """Put a request behind the line as its worker does when the LSN is not reached."""
    request.waiting_since_s = 0.0
    line.postpone(request)


@pytest.mark.parametrize("is_postponed", [True, False], ids=["not reached", "failed"])
def test_one_that_went_first_and_built_nothing_gives_a_turn(
    line: Line, *, is_postponed: bool
) -> None:
    """Each gives one turn to requests without callers; then the others go first again."""
    first, second, third = (awaited(line, key) for key in (A, B, C))
    other = sent(line, D)
    sent(line, A, 2)
    assert line.take() is first
    postpone(line, first) if is_postponed else line.release(first)
    assert line.take() is other
    assert line.start(other)
    line.release(other)
    taken = [line.take() for _ in range(3)]
    assert [each for each in taken if each is not first][:2] == [second, third]


def test_one_that_is_built_gives_no_turn(line: Line) -> None:
    """Callers have threads that wait, so their builds go before prepares without callers."""
    fills = [awaited(line, key) for key in (A, B, C)]
    other = sent(line, D)
    for each in fills:
        assert line.take() is each
        assert line.start(each)
        line.release(each)
    assert line.take() is other


def test_a_running_request_gives_no_turn_before_it_ends(line: Line) -> None:
    """Meanwhile other workers take requests with callers."""
    fills = [awaited(line, key) for key in (A, B)]
    sent(line, D)
    assert [line.take(), line.take()] == fills


def test_callers_do_not_move_a_timeline_to_the_end(line: Line) -> None:
    """The prepares of a timeline keep their turn when callers wait for other LSNs of it."""
    first, second = sent(line, A), sent(line, B)
    fill = awaited(line, A, 9)
    assert line.take() is fill
    assert line.start(fill)
    line.release(fill)
    assert line.fallen == {first: SkipReason.COALESCED}
    third = sent(line, A, 10)
    assert line.take() is second
    fill = awaited(line, A, 11)
    assert line.take() is fill
    line.release(fill)
    assert line.take() is third


@pytest.mark.parametrize("lsn", [5, 500])
def test_a_flood_of_callers_leaves_a_prepare_its_place(line: Line, lsn: int) -> None:
    """The callers name ever new LSNs of its timeline and another one, which are sent as well."""
    true = sent(line, A, 1)
    for number in range(lsn, lsn + 100):
        for key in (A, B):
            fill = joined(line, request := sent(line, key, number))
            leave(line, request, fill)
    assert true not in line.fallen
    late = sent(line, B, 1)
    assert late not in line.fallen
    taken = []
    while late not in taken or true not in taken:
        next_one = line.take()
        assert next_one is not None
        taken.append(next_one)
        postpone(line, next_one)
        awaited(line, A, lsn + 1000 + len(taken))
    assert len(taken) < 20


def test_a_sent_request_that_is_left_waits_with_its_like(line: Line) -> None:
    """It counts against the capacity again, and goes after requests with callers."""
    request = sent(line, A)
    fill = joined(line, request)
    leave(line, request, fill)
    second, third = sent(line, B), sent(line, C)
    assert line.fallen == {third: SkipReason.QUEUE_FULL}
    first = awaited(line, D)
    assert [line.take() for _ in range(3)] == [first, request, second]


def test_a_timeline_keeps_few_lsns_that_were_left(line: Line) -> None:
    """As many as of requests that never had a caller."""
    pairs = [(each := sent(line, A, lsn), joined(line, each)) for lsn in range(1, 31)]
    assert not line.fallen
    for request, fill in pairs:
        leave(line, request, fill)
    assert len(line) == 16
    assert set(line.fallen.values()) == {SkipReason.COALESCED}
    assert not line.fallen.keys() & {pairs[0][0], pairs[-1][0]}


def test_nothing_is_lost(line: Line) -> None:
    """All cleared requests have fallen out, and none waits."""
    waiting = {sent(line, A), awaited(line, B), awaited(line, C)}
    behind = line.take()
    assert behind in waiting
    postpone(line, behind)
    line.clear(SkipReason.CLOSING)
    assert line.fallen == dict.fromkeys(waiting, SkipReason.CLOSING)
    assert len(line) == 0
    assert not line.is_empty  # they are to be settled


def test_a_joined_request_does_what_its_callers_need(line: Line) -> None:
    """It builds beside an entry, or elsewhere, if any of them could not read the last archive."""
    request, failure = sent(line, A), StoreError("the disk fails")
    for disk_failure in (None, failure, None):
        fill = Request(A, Lsn(1), request.tenant_shard_id, 0.0, is_sent=False)
        fill.must_build, fill.disk_failure = disk_failure is not None, disk_failure
        request.join(fill)
        line.adopt(request, fill)
    assert request.must_build
    assert request.disk_failure is failure


def test_requests_behind_the_line_take_turns(line: Line) -> None:
    """Workers look at each of them in turn."""
    requests = [sent(line, key) for key in (A, B)]
    for each in requests:
        assert line.take() is each
        postpone(line, each)
    taken = []
    for _ in range(4):
        behind = line.take()
        assert behind is not None
        postpone(line, behind)
        taken.append(behind)
    assert taken == requests * 2


def test_a_request_that_is_joined_again_returns_to_the_line(line: Line) -> None:
    """A request that its callers have left goes first again when another one joins it."""
    fill = awaited(line, A)
    leave(line, fill, fill)
    other = sent(line, B)
    joined(line, fill)
    assert [line.take(), line.take()] == [fill, other]
    assert line.behind_count == 0


def test_a_request_that_a_worker_has_seen_ends_with_its_last_caller(line: Line) -> None:
    """Also if the worker has seen it behind the line."""
    fill = awaited(line, A)
    leave(line, fill, fill)
    assert not line.fallen
    assert line.take() is fill
    line.postpone(fill)
    leave(line, fill, joined(line, fill))
    assert line.fallen == {fill: SkipReason.CANCELLED}


def test_too_many_behind_the_line_fall_out(line: Line) -> None:
    """As many as the capacity says stay; the highest LSN of the largest timeline goes."""
    for key, lsn in ((A, 5), (A, 4), (B, 9)):
        request = sent(line, key, lsn)
        while (taken := line.take()) is not request:
            assert taken is not None
            postpone(line, taken)
        postpone(line, request)
    assert [each.lsn for each in line.fallen] == [5]
    assert line.behind_count == 2


def test_a_build_from_behind_the_line_is_not_looked_at_any_more(line: Line) -> None:
    """It counts neither as waiting nor as looked at, so a worker looks at the next one."""
    first, second = sent(line, A), sent(line, B)
    for each in (first, second):
        assert line.take() is each
        postpone(line, each)
    assert line.take() is first
    assert line.start(first)
    line.release(first)
    assert line.has_unpolled
    assert len(line) == 1


def test_a_request_that_ends_while_it_is_looked_at_is_gone(line: Line) -> None:
    """A worker looks at the next one behind the line."""
    first, second = sent(line, A), sent(line, B)
    for each in (first, second):
        assert line.take() is each
        postpone(line, each)
    assert line.take() is first
    line.release(first)
    assert line.has_unpolled
    assert len(line) == 1


def test_a_sent_request_returns_to_the_line_what_its_callers_have_left(line: Line) -> None:
    """The host has asked for it by now: it can run, and the new one is superfluous."""
    fill = awaited(line, A)
    leave(line, fill, fill)
    late = sent(line, A)
    assert line.fallen == {late: SkipReason.COALESCED}
    assert line.behind_count == 0
    assert line.take() is fill
    assert line.running == {A: fill}


def test_the_other_lsns_of_a_timeline_go_behind_other_timelines(line: Line) -> None:
    """A timeline with many LSNs does not keep others from their turns."""
    older, newer, other = sent(line, A, 1), sent(line, A, 2), sent(line, B)
    assert line.take() is newer
    line.release(newer)
    assert [line.take(), line.take()] == [other, older]


def test_an_empty_timeline_begins_with_its_newest_lsn_again(line: Line) -> None:
    """The turns of the lowest LSN end with the last request of the timeline."""
    lower, higher = sent(line, A, 10), sent(line, A, 20)
    assert line.take() is higher
    line.release(higher)
    assert line.take() is lower
    postpone(line, lower)
    sent(line, A, 3)
    newest = sent(line, A, 4)
    assert line.take() is newest


@pytest.mark.parametrize(("behind", "built"), [(A, B), (B, A)])
def test_a_build_makes_no_request_of_another_timeline_superfluous(
    line: Line, behind: bytes, built: bytes
) -> None:
    """A build makes no request of another timeline superfluous, at any LSN."""
    waiting = sent(line, behind, 1)
    assert line.take() is waiting
    postpone(line, waiting)
    request = sent(line, built, 5)
    while line.take() is not request:
        postpone(line, waiting)
    assert line.start(request)
    assert not line.fallen


@pytest.mark.parametrize(("behind", "other"), [(A, B), (B, A)])
def test_an_unreached_lsn_says_nothing_of_other_timelines(
    line: Line, behind: bytes, other: bytes
) -> None:
    """Their newest LSN still goes first."""
    unreached = sent(line, behind, 3)
    assert line.take() is unreached
    postpone(line, unreached)
    sent(line, other, 1)
    newest = sent(line, other, 9)
    while (taken := line.take()) is unreached:
        postpone(line, unreached)
    assert taken is newest


def test_requests_that_were_left_drop_no_prepare_behind_the_line(line: Line) -> None:
    """Each kind has the capacity for itself."""
    for key in (A, B):
        fill = awaited(line, key)
        leave(line, fill, fill)
    request = sent(line, C)
    while (taken := line.take()) is not request:
        assert taken is not None
        line.postpone(taken)
    postpone(line, request)
    assert not line.fallen
    assert line.behind_count == 3


def test_prepares_behind_the_line_drop_no_request_that_was_left(line: Line) -> None:
    """Prepares behind the line and requests that were left do not drop each other."""
    for key in (A, B):
        request = sent(line, key)
        while (taken := line.take()) is not request:
            assert taken is not None
            postpone(line, taken)
        postpone(line, request)
    fill = awaited(line, C)
    leave(line, fill, fill)
    assert not line.fallen
    assert line.behind_count == 3


def test_an_lsn_above_one_that_is_not_reached_comes_last(line: Line) -> None:
    """The newest one below goes first."""
    unreached = sent(line, A, 10)
    assert line.take() is unreached
    postpone(line, unreached)
    below = sent(line, A, 5)
    sent(line, A, 20)
    while (taken := line.take()) is unreached:
        postpone(line, unreached)
    assert taken is below


def test_a_line_above_its_capacity_takes_no_other_timeline(line: Line) -> None:
    """Callers that leave prepares may bring it there."""
    pairs = [(each := sent(line, key), joined(line, each)) for key in (A, B, C)]
    for request, fill in pairs:
        leave(line, request, fill)
    late = sent(line, D)
    assert line.fallen == {late: SkipReason.QUEUE_FULL}
