"""The arithmetic of measurements."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbcache.bench.samples import Summary, quantile, ratios, summarize

VALUES = st.lists(st.floats(1e-9, 1e9), min_size=1)


@pytest.mark.parametrize(
    ("share", "wanted"), [(0, 1.0), (0.25, 2.0), (0.5, 3.0), (0.9, 4.6), (1, 5.0)]
)
def test_quantile_lies_between_values(share: float, wanted: float) -> None:
    """A quantile is a value, or linear between two, in whatever order they come."""
    assert quantile([4, 1, 5, 3, 2], share) == pytest.approx(wanted)


@given(VALUES, st.floats(0, 1))
def test_quantile_is_within(values: list[float], share: float) -> None:
    """No quantile is outside of the values."""
    assert min(values) <= quantile(values, share) <= max(values) * (1 + 1e-9)


def test_spread_is_half_the_quartiles_distance() -> None:
    """It is a share of the median, whatever a single outlier does."""
    assert summarize([8.0, 9.0, 10.0, 11.0, 9000.0]) == Summary(10.0, 0.1, 5)


def test_one_sample_has_no_spread() -> None:
    """A spread of one round would be a claim; neither is there one round a median of 0."""
    assert summarize([3.0]) == Summary(3.0, None, 1)
    assert summarize([0.0, 0.0]).spread is None


def test_ratios_are_those_of_rounds() -> None:
    """Each round is divided by itself: a slow minute hits both sides."""
    assert ratios([2.0, 20.0], [1.0, 10.0]) == [2.0, 2.0]


@pytest.mark.parametrize(("above", "below"), [([1.0], [0.0]), ([1.0, 2.0], [1.0])])
def test_ratios_refuse_what_is_none(above: list[float], below: list[float]) -> None:
    """Nothing is divided by nothing, and no round is left without its partner."""
    with pytest.raises(ValueError, match=r"nothing|shorter"):
        ratios(above, below)
