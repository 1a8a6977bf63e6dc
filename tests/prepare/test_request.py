"""Requests: joining, finishing once, leaving, and closing the shared file."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, cast

import pytest
from support.cache_helpers import Worker
from support.helpers import make_keys, make_request, run_threads, wait_until
from support.threads import is_waiting

from bbcache.prepare.request import Result

if TYPE_CHECKING:
    from bbcache.prepare.shared_file import SharedFile


(KEY,) = make_keys(1)


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
    request, result = make_request(KEY), Result(error=ValueError("why"))
    for _ in range(5):
        assert request.join(object())
    workers = [Worker(request.wait, None) for _ in range(4)]
    wait_until(lambda: all(is_waiting(each, "run") for each in workers))
    request.finish(result)
    assert [worker.result() for worker in workers] == [result] * 4
    assert request.wait(None) is result


@pytest.mark.parametrize("timeout_s", [-1.0, 0.0, 0.01])
def test_a_wait_ends_in_time(timeout_s: float) -> None:
    """It returns None if the build has not ended; a negative timeout does not wait."""
    request = make_request(KEY)
    request.join(0)
    assert request.wait(timeout_s) is None
    assert request.is_awaited


def test_a_wait_may_be_longer_than_any_clock() -> None:
    """More seconds than the system can wait for mean no limit."""
    request = make_request(KEY)
    request.join(0)
    request.finish(Result())
    assert request.wait(float("inf")) == Result()


def test_only_the_first_result_counts() -> None:
    """A close that comes before the end of the build counts; a late archive is closed."""
    request, late = make_request(KEY), Closable()
    request.join(0)
    closing = Result(error=ValueError("closing"))
    request.finish(closing)
    request.finish(late.result())
    assert request.wait(0) is closing
    assert late.closed_count == 1


def test_a_finished_call_is_not_joined() -> None:
    """A caller that comes too late looks again."""
    request = make_request(KEY)
    request.finish(Result())
    assert not request.join(object())
    assert not request.is_awaited


def test_the_last_caller_closes_the_shared_file() -> None:
    """Only the last caller closes it, and once."""
    request, shared_file = make_request(KEY), Closable()
    for caller in range(3):
        request.join(caller)
    request.leave(0)
    request.finish(shared_file.result())
    request.leave(1)
    request.leave(1)
    assert shared_file.closed_count == 0
    request.leave(2)
    assert shared_file.closed_count == 1


def test_a_shared_file_without_callers_is_closed_at_once() -> None:
    """If all callers have left before the end, nothing is kept."""
    request, shared_file = make_request(KEY), Closable()
    request.join(0)
    request.leave(0)
    request.finish(shared_file.result())
    assert shared_file.closed_count == 1
    assert request.wait(0) == Result()


def test_leaving_and_finishing_together_close_once() -> None:
    """The later of the two closes it, once."""
    for _ in range(200):
        request, shared_file = make_request(KEY), Closable()
        request.join(0)
        leave = functools.partial(request.leave, 0)
        run_threads([leave, functools.partial(request.finish, shared_file.result())])
        assert shared_file.closed_count == 1
