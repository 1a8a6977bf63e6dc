"""How often a fetch is tried, and its pauses."""

from __future__ import annotations

import pytest

from bbcache.errors import ConfigError
from bbcache.fetch.retry import RetryPolicy


def test_the_pauses_are_those_of_neons_compute_node() -> None:
    """Ten of them, from half a second on, each one and a half times the last: 57 s in all."""
    policy = RetryPolicy()
    pauses = [policy.pause_s(number, 0.5) for number in range(1, 11)]
    assert pauses[:3] == [0.5, 0.75, 1.125]
    assert sum(filter(None, pauses)) == pytest.approx(56.7, abs=0.1)
    assert policy.pause_s(11, 0.5) is None


def test_chance_spreads_them() -> None:
    """From half of a pause to one and a half."""
    policy = RetryPolicy()
    assert (policy.pause_s(1, 0.0), policy.pause_s(1, 1.0)) == (0.25, 0.75)


def test_one_attempt() -> None:
    """There is none behind it."""
    assert RetryPolicy(attempt_count=1).pause_s(1, 0.5) is None


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("attempt_count", 0),
        ("timeout_s", 0),
        ("timeout_s", float("nan")),
        ("timeout_s", float("inf")),
        ("read_timeout_s", -1),
    ],
)
def test_bad_settings(setting: str, value: float) -> None:
    """Each is refused by name, with its value."""
    with pytest.raises(ConfigError, match=f"{setting} is {value}"):
        RetryPolicy(**{setting: value})  # type: ignore[arg-type]
