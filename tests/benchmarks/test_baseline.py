"""Ratios that must not get worse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.bench_helpers import COST, GAIN, SIZE, make_outcomes, rounds_of

from bbcache.errors import ConfigError
from benchmarks.bars import Bar, judge
from benchmarks.baseline import Baseline, read_baseline, regression


def complaint(bar: Bar, ratio: float, reached: float) -> str:
    """Return the complaint about a ratio, with a slack of a quarter."""
    outcome = judge(bar, "group", rounds_of({"ours": [ratio], "theirs": [1.0]}))
    return regression(outcome, {bar.name: Baseline(reached, 0.25)})


@pytest.mark.parametrize(("ratio", "is_worse"), [(0.5, False), (1.24, False), (1.26, True)])
def test_a_cost_may_rise_by_its_slack(ratio: float, is_worse: bool) -> None:
    """A cost may rise by its slack, also far below the bar itself."""
    assert bool(complaint(replace(COST, limit=9.0), ratio, 1.0)) is is_worse


@pytest.mark.parametrize(("ratio", "is_worse"), [(0.01, False), (0.124, False), (0.126, True)])
def test_a_gain_may_fall_by_its_slack(ratio: float, is_worse: bool) -> None:
    """Ten times faster may become eight times."""
    assert bool(complaint(replace(GAIN, against="theirs"), ratio, 10.0)) is is_worse


def test_the_complaint_has_the_figures() -> None:
    """The figure, the baseline, and the limit."""
    assert (
        complaint(COST, 2.0, 1.0) == "prepare-a is 2x; the baseline is 1x, the limit at most 1.25x"
    )


def test_a_bar_without_a_figure_is_no_regression() -> None:
    """Neither is a bar without a baseline."""
    baseline = {name: Baseline(1e-9, 0.25) for name in ("prepare-b", "memory-b")}
    assert [regression(each, baseline) for each in make_outcomes()] == [""] * 4


def test_a_bar_may_have_a_slack_of_its_own() -> None:
    """Others have the common one."""
    baseline = read_baseline("slack = 0.5\n[reached]\na = 1\nb = 2.0\n[slacks]\nb = 1.0\n")
    assert baseline == {"a": Baseline(1.0, 0.5), "b": Baseline(2.0, 1.0)}
    assert baseline["b"].limit(COST) == 4.0
    assert baseline["b"].limit(GAIN) == 1.0
    assert baseline["a"].limit(SIZE) == 1.5


@pytest.mark.parametrize(
    "text",
    ["", "slack = 1", "reached = 3\nslack = 1", "[", "slack=1\n[reached]\n[slacks]\na = 1\n"],
)
def test_another_file_is_refused(text: str) -> None:
    """A file that is not a baseline is refused by name."""
    with pytest.raises(ConfigError, match=r"baseline\.toml"):
        read_baseline(text)
