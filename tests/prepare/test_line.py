"""The order of what waits: turns between what callers wait for and the rest, and what falls out."""

from __future__ import annotations

import pytest
from support.helpers import TENANT, make_keys, make_request

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
    fill.call.join(fill)
    line.line_up(fill)
    return fill


def sent(line: Line, key: bytes, lsn: int = 1) -> Request:
    """Add a request that `send_prepare` has asked for."""
    made = make_request(key, lsn)
    line.add(made)
    return made


def joined(line: Line, request: Request) -> Request:
    """Make a caller wait for a request, and give the caller."""
    fill = Request(request.key, request.lsn, request.tenant_shard_id, 0.0, is_sent=False)
    request.call.join(fill)
    line.adopt(request, fill)
    return fill


def leave(line: Line, request: Request, fill: Request) -> None:
    """Make a caller of a request give up."""
    request.call.leave(fill)
    assert line.may_give_up(request)
    line.give_up(request)


def postpone(line: Line, request: Request) -> None:
    """Find the LSN of a request not reached."""
    request.waiting_since_s = 0.0
    line.postpone(request)


def test_one_that_is_built_gives_no_turn(line: Line) -> None:
    """Callers have threads that wait: their builds go before what nobody waits for."""
    fills = [awaited(line, key) for key in (A, B, C)]
    other = sent(line, D)
    for each in fills:
        assert line.take() is each
        assert line.start(each)
        line.release(each)
    assert line.take() is other


def test_nothing_is_lost(line: Line) -> None:
    """What is cleared has fallen, and nothing waits."""
    waiting = {sent(line, A), awaited(line, B), awaited(line, C)}
    behind = line.take()
    assert behind in waiting
    postpone(line, behind)
    line.clear(SkipReason.CLOSING)
    assert line.fallen == dict.fromkeys(waiting, SkipReason.CLOSING)
    assert len(line) == 0
    assert not line.is_empty  # they are to be settled
