"""The clean-up clock: whole periods, missed ticks skipped."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbcache.config import BasebackupCacheConfig
from bbcache.errors import ConfigError
from bbcache.ticker import Ticker

periods_s = st.floats(0.001, 1e6)
starts_s = st.floats(0, 1e9)


def test_first_tick_is_one_period_after_the_start() -> None:
    """Nothing is due at the start itself."""
    ticker = Ticker(60.0, 1000.0)
    assert [ticker.delay_s(now_s) for now_s in (1000.0, 1030.0, 1060.0)] == [60.0, 30.0, 0.0]


def test_a_late_tick_is_due_at_once() -> None:
    """A tick in the past has no negative delay."""
    assert Ticker(60.0, 1000.0).delay_s(1e9) == 0.0


def test_ticks_keep_to_whole_periods() -> None:
    """A step that takes part of a period does not shift the ticks that follow."""
    ticker = Ticker(60.0, 1000.0)
    ticker.advance(1075.0)
    assert ticker.delay_s(1075.0) == 45.0
    ticker.advance(1120.0)
    assert ticker.delay_s(1120.0) == 60.0


def test_missed_ticks_are_skipped() -> None:
    """After a step of several periods there is one tick to come, not several."""
    ticker = Ticker(60.0, 1000.0)
    ticker.advance(1060.0 + 5 * 60.0 + 1.0)
    assert ticker.delay_s(1361.0) == 59.0


def test_a_tick_acted_on_early_is_not_repeated() -> None:
    """A wait that ends a moment too soon does not give the same tick twice."""
    ticker = Ticker(60.0, 1000.0)
    ticker.advance(1059.999)
    assert ticker.delay_s(1060.0) == 60.0


@given(period_s=periods_s, start_s=starts_s, passed=st.lists(st.floats(0, 20), max_size=20))
def test_ticks_come_at_whole_periods_and_never_twice(
    period_s: float, start_s: float, passed: list[float]
) -> None:
    """However long the steps are: no negative delay, none past a period, all on the grid."""
    ticker, now_s = Ticker(period_s, start_s), start_s
    slack_s = 1e-6 + now_s * 1e-12
    for periods in passed:
        assert 0.0 <= ticker.delay_s(now_s) <= period_s + slack_s
        due_s = now_s + ticker.delay_s(now_s)
        now_s = due_s + periods * period_s
        slack_s = 1e-6 + now_s * 1e-12
        ticker.advance(now_s)
        following_s = now_s + ticker.delay_s(now_s)
        assert following_s > due_s
        periods_since = (following_s - start_s) / period_s
        assert abs(periods_since - round(periods_since)) * period_s <= slack_s


@given(period_s=periods_s, start_s=starts_s, now_s=st.floats(0, 1e9))
def test_delay_is_never_negative(period_s: float, start_s: float, now_s: float) -> None:
    """Even where the clock goes back, a delay can be waited for."""
    ticker = Ticker(period_s, start_s)
    assert ticker.delay_s(now_s) >= 0.0
    ticker.advance(now_s)
    assert ticker.delay_s(now_s) >= 0.0


@pytest.mark.parametrize(
    "period_s", [5e-324, 1e-300, 1e-9, 60, 1e9, 1e10, 1e300, pytest.param(10**400, id="huge")]
)
def test_every_accepted_period_can_be_waited_for(period_s: float) -> None:
    """What the settings accept must not end the thread that waits and ticks by it."""
    try:
        config = BasebackupCacheConfig(cleanup_period=period_s)
    except ConfigError:
        assert period_s not in (1e-9, 60, 1e9)
        return
    ticker = Ticker(config.cleanup_period, 1000.0)
    assert threading.Lock().acquire(timeout=ticker.delay_s(1000.0))
    ticker.advance(2000.0)
