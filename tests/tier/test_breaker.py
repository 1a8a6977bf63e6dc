"""When a breaker opens, how long it pauses, and what closes it."""

from __future__ import annotations

from bbcache.tier.breaker import FAILURES_TO_OPEN, LONGEST_PAUSE_S, Attempt, Breaker


class Clock:
    """A clock that stands still."""

    now_s = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


def fail(breaker: Breaker, times: int = 1) -> None:
    """Let attempts fail."""
    for _ in range(times):
        attempt = breaker.begin()
        assert attempt is not None
        breaker.end(attempt, has_failed=True)


def test_failures_that_are_not_in_a_row_pause_nothing() -> None:
    """A success begins a new row."""
    breaker = Breaker(Clock())
    for _ in range(3):
        fail(breaker, FAILURES_TO_OPEN - 1)
        breaker.end(Attempt.ORDINARY, has_failed=False)
    assert not breaker.is_failing()


def test_pauses_double_up_to_a_minute() -> None:
    """Each failed probe doubles the pause: 1 s, 2 s, and so on up to 60 s."""
    clock = Clock()
    breaker = Breaker(clock)
    fail(breaker, FAILURES_TO_OPEN)
    pauses = []
    for _ in range(8):
        pauses.append(breaker.pause_s())
        assert breaker.begin() is None
        clock.advance(breaker.pause_s())
        assert breaker.pause_s() == 0
        fail(breaker)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_one_probe_decides() -> None:
    """After a pause one attempt goes ahead, all others wait for its end."""
    clock = Clock()
    breaker = Breaker(clock)
    fail(breaker, FAILURES_TO_OPEN)
    clock.advance(1)
    assert breaker.begin() is Attempt.PROBE
    assert breaker.begin() is None
    assert breaker.end(Attempt.PROBE, has_failed=False)
    assert breaker.begin() is Attempt.ORDINARY
    assert not breaker.is_failing()


def test_failures_are_forgotten_without_another_attempt() -> None:
    """A minute after the pause: a node that asks for nothing cannot know that the tier is back."""
    clock = Clock()
    breaker = Breaker(clock)
    assert not breaker.is_failing()
    fail(breaker, FAILURES_TO_OPEN)
    clock.advance(1 + LONGEST_PAUSE_S - 0.5)
    assert breaker.is_failing()
    clock.advance(1)
    assert not breaker.is_failing()
    assert breaker.begin() is Attempt.PROBE


def test_a_probe_that_says_nothing_is_repeated() -> None:
    """One that the cache has broken off neither closes the breaker nor blocks the next one."""
    clock = Clock()
    breaker = Breaker(clock)
    fail(breaker, FAILURES_TO_OPEN)
    clock.advance(1)
    assert breaker.begin() is Attempt.PROBE
    assert not breaker.end(Attempt.PROBE, has_failed=None)
    assert breaker.begin() is Attempt.PROBE


def test_many_failures_at_once_cause_one_pause() -> None:
    """Attempts that began before the pause do not make it longer, nor end it."""
    breaker = Breaker(Clock())
    attempts = [breaker.begin() for _ in range(16)]
    changes = [breaker.end(each, has_failed=True) for each in attempts if each is not None]
    assert changes.count(True) == 1
    assert breaker.pause_s() == 1
    breaker.end(Attempt.ORDINARY, has_failed=False)
    assert breaker.is_failing()
