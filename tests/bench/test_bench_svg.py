"""Plots: axes, ticks, places."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbcache.bench.svg import (
    HEIGHT,
    WIDTH,
    Axis,
    Plot,
    Series,
    figure,
    linear_axis,
    log_axis,
    strip,
)

POSITIVE = st.floats(1e-9, 1e12)


def say(value: float) -> str:
    """A tick's text."""
    return f"{value:g}"


@given(st.lists(POSITIVE, min_size=1))
def test_a_log_axis_holds_its_values(values: list[float]) -> None:
    """Every value lies on it, and so does every tick; there are not too many."""
    axis = log_axis("x", values, say)
    assert all(0 <= axis.share(value) <= 1 for value in values)
    assert all(axis.low <= tick <= axis.high for tick, _ in axis.ticks)
    assert len(axis.ticks) <= 7


@given(st.lists(POSITIVE, min_size=1))
def test_a_linear_axis_begins_at_zero(values: list[float]) -> None:
    """So that heights can be compared; every value lies on it, and a few ticks do."""
    axis = linear_axis("y", values, say)
    assert axis.share(0) == 0
    assert all(0 <= axis.share(value) <= 1 for value in values)
    assert 2 <= len(axis.ticks) <= 8


def test_ticks_are_round_numbers() -> None:
    """Over few decades 1, 2 and 5 of each; in one even steps; over many the powers of ten."""
    few = log_axis("x", [1e-3, 2e-2], say)
    assert [text for _, text in few.ticks] == ["0.001", "0.002", "0.005", "0.01", "0.02"]
    near = log_axis("x", [5.6e6, 8.4e6], say)
    assert [text for _, text in near.ticks] == ["6e+06", "7e+06", "8e+06"]
    many = log_axis("x", [1, 1e5], say)
    assert [text for _, text in many.ticks] == ["1", "10", "100", "1000", "10000", "100000"]


def test_points_are_where_they_belong() -> None:
    """More is further right and higher up, and inside of the picture."""
    axis = Axis("share", 0.0, 1.0, [(0.0, "0"), (1.0, "1")], is_log=False)
    drawn = figure(
        Plot("name", "title", axis, axis, [Series("one", [(0.0, 0.0, "low"), (1.0, 1.0, "high")])])
    )
    circles = list(ET.fromstring(f"<div>{drawn}</div>").iter("circle"))  # noqa: S314 - made here
    (x_low, y_low), (x_high, y_high) = (
        (float(circle.get("cx", "")), float(circle.get("cy", ""))) for circle in circles
    )
    assert 0 < x_low < x_high < WIDTH
    assert HEIGHT > y_low > y_high > 0


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0, 100.0], [0.0, 1.0], []])
def test_a_strip_has_a_dot_a_round(values: list[float]) -> None:
    """And the bar; what has no logarithm is left out."""
    tree = ET.fromstring(strip(values, 1.5, is_met=True))  # noqa: S314 - made here
    assert len(list(tree.iter("circle"))) == sum(value > 0 for value in values)
    assert len(list(tree.iter("line"))) == 1
