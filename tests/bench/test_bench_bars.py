"""Bars, and what comes of them."""

from __future__ import annotations

import pytest

from bbcache.bench.bars import Bar, Sense, Verdict, judge

COST = Bar("cost", "ours", "theirs", Sense.AT_MOST, 2.0)
GAIN = Bar("gain", "ours", "theirs", Sense.AT_LEAST, 2.0)
SIZE = Bar("size", "ours", "", Sense.AT_MOST, 220.0, "bytes")


@pytest.mark.parametrize(
    ("bar", "ours", "theirs", "value", "verdict"),
    [
        (COST, [4.0, 4.0, 4.0], [2.0, 2.0, 2.0], 2.0, Verdict.PASS),
        (COST, [5.0, 5.0, 9.0], [2.0, 2.0, 2.0], 2.5, Verdict.FAIL),
        (GAIN, [1.0, 1.0, 1.0], [2.0, 2.0, 9.0], 2.0, Verdict.PASS),
        (GAIN, [2.0, 2.0, 2.0], [2.0, 3.0, 9.0], 1.5, Verdict.FAIL),
    ],
)
def test_a_ratio_is_held_against_the_bar(
    bar: Bar, ours: list[float], theirs: list[float], value: float, verdict: Verdict
) -> None:
    """The median of the rounds' ratios decides, either way round; on the bar is met."""
    outcome = judge(bar, "group", {"ours": ours, "theirs": theirs}, {}, {})
    assert (outcome.value, outcome.verdict) == (value, verdict)
    assert (outcome.what_samples, outcome.against_samples) == (tuple(ours), tuple(theirs))


def test_rounds_are_compared_one_by_one() -> None:
    """Where everything was slow for a while, the ratio stays and so does the spread."""
    ours, theirs = [1.0, 10.0, 100.0], [1.0, 10.0, 100.0]
    outcome = judge(COST, "group", {"ours": ours, "theirs": theirs}, {}, {})
    assert (outcome.value, outcome.spread) == (1.0, 0.0)


@pytest.mark.parametrize(("size", "verdict"), [(220.0, Verdict.PASS), (221.0, Verdict.FAIL)])
def test_a_figure_may_stand_for_itself(size: float, verdict: Verdict) -> None:
    """Bytes are compared with nothing but the bar."""
    outcome = judge(SIZE, "group", {"ours": [size]}, {}, {})
    assert (outcome.value, outcome.verdict, outcome.spread) == (size, verdict, None)


@pytest.mark.parametrize("missing", ["ours", "theirs"])
def test_who_is_missing_is_named(missing: str) -> None:
    """A bar without its peer is neither met nor failed, and says why."""
    outcome = judge(COST, "group", {"ours": [1.0]}, {missing: "it is not here\nhint: Get it."}, {})
    assert outcome.verdict is Verdict.MISSING
    assert outcome.value is None
    assert outcome.reason == "it is not here\nhint: Get it."


@pytest.mark.parametrize("failed", ["ours", "theirs"])
def test_who_has_failed_is_named(failed: str) -> None:
    """Whatever was measured before it failed is no figure."""
    samples = {"ours": [1.0, 1.0], "theirs": [1.0]}
    outcome = judge(COST, "group", samples, {}, {failed: "it failed: no space"})
    assert (outcome.verdict, outcome.value) == (Verdict.ERROR, None)
    assert outcome.reason == "it failed: no space"
