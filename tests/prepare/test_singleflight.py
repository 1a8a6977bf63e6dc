"""Calls: joining, finishing once, leaving, and closing the shared file."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from support.cache_helpers import Worker
from support.helpers import run_threads, wait_until
from support.threads import is_waiting

from bbcache.prepare.singleflight import Call, Result

if TYPE_CHECKING:
    from bbcache.prepare.shared_file import SharedFile


class Closable:
    """A shared file that counts its closes."""

    def __init__(self) -> None:
        self.closed_count = 0

    def close(self) -> None:
        """Count it."""
        self.closed_count += 1

    def result(self) -> Result:
        """A result with this shared file."""
        return Result(cast("SharedFile", self), is_built=True)


def test_a_result_wakes_every_caller() -> None:
    """All callers get the same result, also one that waits later."""
    call, result = Call(), Result(error=ValueError("why"))
    for _ in range(5):
        assert call.join(object())
    workers = [Worker(call.wait, None) for _ in range(4)]
    wait_until(lambda: all(is_waiting(each, "run") for each in workers))
    call.finish(result)
    assert [worker.result() for worker in workers] == [result] * 4
    assert call.wait(None) is result


@pytest.mark.parametrize("timeout_s", [-1.0, 0.0, 0.01])
def test_a_wait_ends_in_time(timeout_s: float) -> None:
    """It returns None if the build has not ended; a negative timeout does not wait."""
    call = Call()
    call.join(0)
    assert call.wait(timeout_s) is None
    assert call.is_awaited


def test_a_wait_may_be_longer_than_any_clock() -> None:
    """More seconds than the system can wait for mean no limit."""
    call = Call()
    call.join(0)
    call.finish(Result())
    assert call.wait(float("inf")) == Result()


def test_only_the_first_result_counts() -> None:
    """A close that comes before the end of the build counts; a late archive is closed."""
    call, late = Call(), Closable()
    call.join(0)
    closing = Result(error=ValueError("closing"))
    call.finish(closing)
    call.finish(late.result())
    assert call.wait(0) is closing
    assert late.closed_count == 1


def test_a_finished_call_is_not_joined() -> None:
    """A caller that comes too late looks again."""
    call = Call()
    call.finish(Result())
    assert not call.join(object())
    assert not call.is_awaited


def test_the_last_caller_closes_the_shared_file() -> None:
    """Only the last caller closes it, and once."""
    call, shared_file = Call(), Closable()
    for seat in range(3):
        call.join(seat)
    call.leave(0)
    call.finish(shared_file.result())
    call.leave(1)
    call.leave(1)
    assert shared_file.closed_count == 0
    call.leave(2)
    assert shared_file.closed_count == 1


def test_a_shared_file_without_callers_is_closed_at_once() -> None:
    """If all callers have left before the end, nothing is kept."""
    call, shared_file = Call(), Closable()
    call.join(0)
    call.leave(0)
    call.finish(shared_file.result())
    assert shared_file.closed_count == 1
    assert call.wait(0) == Result()


def test_leaving_and_finishing_together_close_once() -> None:
    """The later of the two closes it, once."""
    for _ in range(200):
        call, shared_file = Call(), Closable()
        call.join(0)
        run_threads([lambda f=call: f.leave(0), lambda f=call, h=shared_file: f.finish(h.result())])  # type: ignore[misc]
        assert shared_file.closed_count == 1
