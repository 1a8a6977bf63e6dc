"""Flights: boarding, landing once, leaving, and who closes what was handed out."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from support.cache_helpers import Worker
from support.helpers import run_threads, wait_until
from support.threads import is_waiting

from bbcache.prepare.singleflight import Flight, Landing

if TYPE_CHECKING:
    from bbcache.prepare.shared_file import Handout


class Closable:
    """A handout of which only its closing matters."""

    def __init__(self) -> None:
        self.closed_count = 0

    def close(self) -> None:
        """Count it."""
        self.closed_count += 1

    def landing(self) -> Landing:
        """A landing with this handout."""
        return Landing(cast("Handout", self), is_built=True)


def test_a_landing_wakes_everyone() -> None:
    """All who wait get the same, and so does who comes to wait later."""
    flight, landing = Flight(), Landing(error=ValueError("why"))
    for _ in range(5):
        assert flight.board(object())
    workers = [Worker(flight.wait, None) for _ in range(4)]
    wait_until(lambda: all(is_waiting(each, "run") for each in workers))
    flight.land(landing)
    assert [worker.result() for worker in workers] == [landing] * 4
    assert flight.wait(None) is landing


@pytest.mark.parametrize("timeout_s", [-1.0, 0.0, 0.01])
def test_a_wait_ends_in_time(timeout_s: float) -> None:
    """None where the build has not ended; a negative time is none."""
    flight = Flight()
    flight.board(0)
    assert flight.wait(timeout_s) is None
    assert flight.is_awaited


def test_a_wait_may_be_longer_than_any_clock() -> None:
    """More seconds than the system can wait for are as good as without limit."""
    flight = Flight()
    flight.board(0)
    flight.land(Landing())
    assert flight.wait(float("inf")) == Landing()


def test_only_the_first_landing_counts() -> None:
    """A close that comes before the end of the build decides; what is built late is closed."""
    flight, late = Flight(), Closable()
    flight.board(0)
    closing = Landing(error=ValueError("closing"))
    flight.land(closing)
    flight.land(late.landing())
    assert flight.wait(0) is closing
    assert late.closed_count == 1


def test_nobody_boards_what_has_landed() -> None:
    """It is too late: who comes then looks again."""
    flight = Flight()
    flight.land(Landing())
    assert not flight.board(object())
    assert not flight.is_awaited


def test_the_last_one_closes_the_handout() -> None:
    """Once, after everyone has left; not by those before, nor by who gave up earlier."""
    flight, handout = Flight(), Closable()
    for seat in range(3):
        flight.board(seat)
    flight.leave(0)
    flight.land(handout.landing())
    flight.leave(1)
    flight.leave(1)
    assert handout.closed_count == 0
    flight.leave(2)
    assert handout.closed_count == 1


def test_a_handout_for_nobody_is_closed_at_once() -> None:
    """Everyone has given up before the end, and nothing is kept of it."""
    flight, handout = Flight(), Closable()
    flight.board(0)
    flight.leave(0)
    flight.land(handout.landing())
    assert handout.closed_count == 1
    assert flight.wait(0) == Landing()


def test_leaving_and_landing_together_close_once() -> None:
    """Whoever of the two comes last closes, however they meet."""
    for _ in range(200):
        flight, handout = Flight(), Closable()
        flight.board(0)
        run_threads([lambda f=flight: f.leave(0), lambda f=flight, h=handout: f.land(h.landing())])  # type: ignore[misc]
        assert handout.closed_count == 1
