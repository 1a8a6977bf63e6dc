"""Interleaved rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest

from benchmarks.peers import PeerMissingError
from benchmarks.rounds import Pace, Rounds, checked, timed

if TYPE_CHECKING:
    from collections.abc import Callable


class Track:
    """A clock that contenders move on, and the order in which they ran."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.order: list[str] = []

    def clock(self) -> float:
        """The time."""
        return self.now_s

    def runner(self, name: str, seconds: float) -> Callable[[], Callable[[], float]]:
        """Return a contender that takes so long, and returns how many have run before."""

        def run() -> float:
            self.now_s += seconds
            self.order.append(name)
            return float(len(self.order))

        return lambda: run


@pytest.fixture
def track() -> Track:
    """An empty one."""
    return Track()


def make_rounds(track: Track, *, seconds: float) -> Rounds:
    """Return three contenders, each of which takes so long."""
    rounds = Rounds(track.clock)
    for name in "abc":
        rounds.add(name, track.runner(name, seconds))
    return rounds


def test_rounds_are_in_turn_and_warmed(track: Track) -> None:
    """Each runs once uncounted, then once a round, and each is first equally often."""
    rounds = make_rounds(track, seconds=1.0)
    rounds.run(Pace(budget_s=9.0, least=1, most=60))
    assert "".join(track.order) == "abc" + "abc" + "bca" + "cab"
    assert rounds.samples == {"a": [4, 9, 11], "b": [5, 7, 12], "c": [6, 8, 10]}


def test_a_long_first_round_counts(track: Track) -> None:
    """What takes longer than all the time there is does not run once more for warmth."""
    rounds = make_rounds(track, seconds=10.0)
    rounds.run(Pace(budget_s=9.0, least=2, most=60))
    assert {name: len(samples) for name, samples in rounds.samples.items()} == dict.fromkeys(
        "abc", 2
    )
    assert len(track.order) == 6


@pytest.mark.parametrize(
    ("pass_s", "count"), [(0.0, 8), (0.1, 8), (1.0, 5), (2.4, 2), (3.0, 2), (99.0, 2)]
)
def test_the_count_of_rounds_is_bounded(pass_s: float, count: int) -> None:
    """As many as fit the time, between the least and the most."""
    assert Pace(budget_s=5.0, least=2, most=8).round_count(pass_s) == count


def test_a_missing_contender_is_noted(track: Track) -> None:
    """The others run without it."""

    def enter() -> NoReturn:
        raise PeerMissingError("d is not here")

    rounds = make_rounds(track, seconds=1.0)
    rounds.add("d", enter)
    rounds.run(Pace(budget_s=3.0, least=1, most=60))
    assert rounds.missing == {"d": "d is not here"}
    assert set(rounds.samples) == {"a", "b", "c"}


def test_a_failed_contender_is_noted_and_the_others_go_on(track: Track) -> None:
    """When it is made ready, at its first round, or in a later round."""
    figures = iter([1.0, 2.0])

    def refuse() -> NoReturn:
        raise OSError("not ready")

    rounds = make_rounds(track, seconds=1.0)
    rounds.add("early", refuse)
    rounds.add("at once", lambda: refuse)
    rounds.add("late", lambda: lambda: next(figures))
    rounds.run(Pace(budget_s=9.0, least=3, most=60))
    assert rounds.failed == {
        "early": "early failed: OSError: not ready",
        "at once": "at once failed: OSError: not ready",
        "late": "late failed: StopIteration",
    }
    assert [len(rounds.samples[name]) for name in "abc"] == [3, 3, 3]


def test_a_check_follows_the_first_round_alone() -> None:
    """A failure there ends the contender; later rounds are not delayed."""
    checks: list[int] = []
    run = checked(lambda: 7.0, lambda: checks.append(1))
    assert [run(), run()] == [7.0, 7.0]
    assert len(checks) == 1


def test_the_setup_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the call itself is, with what the setup has returned."""
    now_s, given = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: now_s[0])

    def setup() -> tuple[str]:
        now_s[0] += 100.0
        return ("argument",)

    def target(argument: str) -> None:
        now_s[0] += 2.0
        given.append(argument)

    assert timed(target, setup)() == 2.0
    assert given == ["argument"]
