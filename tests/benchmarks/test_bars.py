"""Bars, and their verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.bench_helpers import COST, GAIN, SIZE, rounds_of

from benchmarks.bars import Bar, Verdict, judge, spread_of

OTHERS = replace(GAIN, against="theirs")


@pytest.mark.parametrize(
    ("bar", "ours", "theirs", "value", "verdict"),
    [
        (COST, [3.0, 3.0, 3.0], [2.0, 2.0, 2.0], 1.5, Verdict.PASS),
        (COST, [5.0, 5.0, 9.0], [2.0, 2.0, 2.0], 2.5, Verdict.FAIL),
        (OTHERS, [1.0, 1.0, 1.0], [2.0, 2.0, 9.0], 2.0, Verdict.PASS),
        (OTHERS, [2.0, 2.0, 2.0], [2.0, 3.0, 9.0], 1.5, Verdict.FAIL),
    ],
)
def test_a_ratio_is_held_against_the_bar(
    bar: Bar, ours: list[float], theirs: list[float], value: float, verdict: Verdict
) -> None:
    """The median of the rounds' ratios decides, either way round; on the bar is met."""
    outcome = judge(bar, "group", rounds_of({"ours": ours, "theirs": theirs}))
    assert (outcome.value, outcome.verdict) == (value, verdict)
    assert (outcome.what_samples, outcome.against_samples) == (ours, theirs)


def test_rounds_are_compared_one_by_one() -> None:
    """Where everything was slow for a while, the ratio stays and so does the spread."""
    outcome = judge(
        COST, "group", rounds_of({"ours": [1.0, 10.0, 100.0], "theirs": [1.0, 10.0, 100.0]})
    )
    assert (outcome.value, outcome.spread) == (1.0, 0.0)


@pytest.mark.parametrize(("size", "verdict"), [(220.0, Verdict.PASS), (221.0, Verdict.FAIL)])
def test_a_figure_may_be_absolute(size: float, verdict: Verdict) -> None:
    """Bytes are compared with nothing but the bar."""
    outcome = judge(SIZE, "group", rounds_of({"ours": [size]}))
    assert (outcome.value, outcome.verdict, outcome.spread) == (size, verdict, None)


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_a_missing_peer_is_named(name: str) -> None:
    """A bar without its peer is neither met nor failed, and says why."""
    rounds = rounds_of({"ours": [1.0]}, missing={name: "it is not here\nhint: Get it."})
    outcome = judge(COST, "group", rounds)
    assert (outcome.verdict, outcome.value) == (Verdict.MISSING, None)
    assert outcome.reason == "it is not here\nhint: Get it."


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_a_failed_contender_is_named(name: str) -> None:
    """The rounds before the failure give no figure."""
    samples = {"ours": [1.0, 1.0], "theirs": [1.0]}
    outcome = judge(COST, "group", rounds_of(samples, failed={name: "it failed: no space"}))
    assert (outcome.verdict, outcome.value) == (Verdict.ERROR, None)
    assert outcome.reason == "it failed: no space"


def test_a_figure_of_0_has_no_ratio() -> None:
    """Nothing is divided by nothing."""
    with pytest.raises(ValueError, match="prepare-a: a figure of 0"):
        judge(COST, "group", rounds_of({"ours": [1.0], "theirs": [0.0]}))


def test_the_spread_is_half_the_distance_of_the_quartiles() -> None:
    """It is a share of the median; an outlier does not change it, and one round has none."""
    assert spread_of([8.0, 9.0, 10.0, 11.0, 9000.0]) == 0.1
    assert spread_of([3.0]) is None
    assert spread_of([0.0, 0.0]) is None
