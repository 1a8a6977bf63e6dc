"""Pauses after failures: their length, what they apply to, and what ends them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from bbcache.prepare.backoff import FIRST_PAUSE_S, LONGEST_PAUSE_S, MOST_FAILING, Backoff

if TYPE_CHECKING:
    from bbcache.errors import BackingOffError


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """A clock that does not run."""
    return Clock()


@pytest.fixture
def backoff(clock: Clock) -> Backoff:
    """Nothing has failed, and it is noon."""
    return Backoff(clock, lambda: datetime(2026, 1, 2, 12, 0, tzinfo=UTC))


def refusal(backoff: Backoff, what: bytes = b"t") -> BackingOffError:
    """The error for a caller that asks now."""
    error = backoff.refusal(what, "the timeline")
    assert error is not None
    return error


def test_a_failure_pauses_and_the_pause_ends(backoff: Backoff, clock: Clock) -> None:
    """A timeline is refused until its pause is over; no other timeline is."""
    assert backoff.refusal(b"t", "t") is None
    backoff.failed(b"t", "broken")
    assert refusal(backoff).retry_after_s == FIRST_PAUSE_S
    assert backoff.refusal(b"other", "t") is None
    clock.now_s += FIRST_PAUSE_S - 0.001
    refusal(backoff)
    clock.now_s += 0.001
    assert backoff.refusal(b"t", "t") is None


def test_each_failure_in_a_row_doubles_the_pause(backoff: Backoff, clock: Clock) -> None:
    """Each pause is twice as long as the last, up to the longest one."""
    pauses = []
    for count in range(1, 2000):
        backoff.failed(b"t", "broken")
        error = refusal(backoff)
        assert error.failure_count == count
        pauses.append(error.retry_after_s)
        clock.now_s += error.retry_after_s
    assert pauses[:7] == [1, 2, 4, 8, 16, LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    assert set(pauses[5:]) == {LONGEST_PAUSE_S}


def test_a_success_ends_the_row(backoff: Backoff) -> None:
    """After a success the next call is tried, and the next failure counts as the first."""
    for what in (b"t", b"other"):
        backoff.failed(what, "broken")
        backoff.failed(what, "broken")
    backoff.succeeded(b"t", b"unknown")
    assert backoff.refusal(b"t", "t") is None
    backoff.failed(b"t", "broken")
    assert refusal(backoff).retry_after_s == FIRST_PAUSE_S
    assert refusal(backoff, b"other").failure_count == 2


def test_a_long_silence_ends_the_row(backoff: Backoff, clock: Clock) -> None:
    """An old failure that was followed by no other does not count."""
    backoff.failed(b"t", "broken")
    clock.now_s += FIRST_PAUSE_S + LONGEST_PAUSE_S - 0.001
    backoff.failed(b"t", "broken")
    assert refusal(backoff).failure_count == 2
    clock.now_s += 2 * FIRST_PAUSE_S + LONGEST_PAUSE_S
    backoff.failed(b"t", "broken")
    assert refusal(backoff).failure_count == 1


def test_the_error_says_what_until_when_and_why(backoff: Backoff, clock: Clock) -> None:
    """Text and attributes have the end of the pause and the first line of the cause."""
    backoff.failed(b"t", "the disk is full\nhint: Free space.")
    clock.now_s += 0.25
    error = refusal(backoff)
    first, hint = str(error).split("\n")
    for part in ("the timeline", "2026-01-02T12:00:00.750+00:00", "0.8 s", "the disk is full"):
        assert part in first
    assert hint.startswith("hint: ")
    assert hint.endswith(".")
    assert (error.what, error.failure_count, error.retry_after_s) == ("the timeline", 1, 0.75)
    assert error.until == "2026-01-02T12:00:00.750+00:00"
    assert error.cause == "the disk is full\nhint: Free space."


def test_what_is_remembered_is_bounded(backoff: Backoff) -> None:
    """The oldest failures are forgotten, but not those of timelines that failed again."""
    names = [number.to_bytes(4, "big") for number in range(MOST_FAILING)]
    for name in names:
        backoff.failed(name, "broken")
    backoff.failed(names[0], "broken")
    backoff.failed(b"new", "broken")
    assert backoff.refusal(names[1], "t") is None
    assert refusal(backoff, names[0]).failure_count == 2
    refusal(backoff, b"new")
    refusal(backoff, names[2])
