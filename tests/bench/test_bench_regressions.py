"""What was reached once must not get worse."""

from __future__ import annotations

import pytest
from support.bench_helpers import COST, GAIN, SIZE, make_report

from bbcache.bench.bars import Bar, judge
from bbcache.bench.regressions import Locked, read_locked, regressions
from bbcache.bench.suite import CONTESTS
from bbcache.errors import ConfigError

BARS = {bar.name: bar for contest in CONTESTS for bar in contest.bars}


def test_the_file_of_the_package_locks_what_exists() -> None:
    """Each name is a bar's; the slack is something, and not everything."""
    locked = read_locked()
    assert set(locked) <= set(BARS)
    assert all(0 < each.slack <= 2 and each.reached > 0 for each in locked.values())


def found(bar: Bar, ratio: float, reached: float) -> list[str]:
    """What is complained about, where a ratio was reached with a slack of a quarter."""
    outcome = judge(bar, "group", {"ours": [ratio], "theirs": [1.0]}, {}, {})
    return list(regressions([outcome], {bar.name: Locked(reached, 0.25)}, needs_peers=False))


@pytest.mark.parametrize(("ratio", "is_worse"), [(0.5, False), (1.24, False), (1.26, True)])
def test_a_cost_may_rise_by_its_slack(ratio: float, is_worse: bool) -> None:
    """Also far below the bar itself."""
    assert bool(found(COST._replace(limit=9.0), ratio, 1.0)) is is_worse


@pytest.mark.parametrize(("ratio", "is_worse"), [(0.01, False), (0.124, False), (0.126, True)])
def test_a_gain_may_fall_by_its_slack(ratio: float, is_worse: bool) -> None:
    """Ten times faster may become eight times."""
    assert bool(found(GAIN._replace(against="theirs"), ratio, 10.0)) is is_worse


def test_the_complaint_has_the_figures() -> None:
    """What it is, what it was, and what would do."""
    (line,) = found(COST, 2.0, 1.0)
    assert line == "prepare-a is 2x, but was 1x once, and is to be at most 1.25x"


def test_an_error_counts_and_a_missing_peer_if_asked() -> None:
    """What could not be measured is never silently well."""
    outcomes = make_report().outcomes
    lenient = list(regressions(outcomes, {}, needs_peers=False))
    assert [line.split()[0] for line in lenient] == ["memory-b"]
    strict = list(regressions(outcomes, {}, needs_peers=True))
    assert [line.split()[0] for line in strict] == ["prepare-b", "memory-b"]


def test_a_bar_may_have_a_slack_of_its_own() -> None:
    """Others have the common one."""
    locked = read_locked("slack = 0.5\n[reached]\na = 1\nb = 2.0\n[slacks]\nb = 1.0\n")
    assert locked == {"a": Locked(1.0, 0.5), "b": Locked(2.0, 1.0)}
    assert locked["b"].limit(COST) == 4.0
    assert locked["b"].limit(GAIN) == 1.0
    assert locked["a"].limit(SIZE) == 1.5


@pytest.mark.parametrize(
    "text",
    ["", "slack = 1", "reached = 3\nslack = 1", "[", "slack=1\n[reached]\n[slacks]\na = 1\n"],
)
def test_another_file_is_refused(text: str) -> None:
    """By name."""
    with pytest.raises(ConfigError, match=r"locked\.toml"):
        read_locked(text)
