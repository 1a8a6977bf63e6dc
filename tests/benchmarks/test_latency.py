"""Latencies of single calls."""

from __future__ import annotations

from array import array
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from bbcache.testing import MemoryHost, make_tarball
from benchmarks.entries import LSN, make_ids, spawn_ready, write_entries
from benchmarks.latency import P99, Calls, Latencies, get_latencies, open_latencies, quantile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_a_round_is_the_quantile_of_its_calls() -> None:
    """And the calls of all rounds make the quantiles of the report."""
    rounds = [range(101), range(1000, 1101)]
    taken = iter([array("q", [each * 1_000 for each in values]) for values in rounds])
    latencies = Latencies(lambda: next(taken), P99)
    assert latencies() == pytest.approx(99e-6)
    assert latencies() == pytest.approx(1099e-6)
    assert latencies.quantiles()["p50"] == pytest.approx(550e-6)


def test_the_calls_are_timed_beside_the_work() -> None:
    """The work has begun before the first call, and ends behind the last."""
    order: list[str] = []

    @contextmanager
    def work() -> Iterator[None]:
        order.append("begin")
        yield
        order.append("end")

    def take() -> array[int]:
        order.append("calls")
        return array("q", [1])

    Latencies(take, P99, work)()
    assert order == ["begin", "calls", "end"]


@pytest.mark.parametrize(
    ("share", "wanted"), [(0, 1.0), (0.25, 2.0), (0.5, 3.0), (0.9, 4.6), (1, 5.0)]
)
def test_a_quantile_lies_between_values(share: float, wanted: float) -> None:
    """It is a value, or linear between two."""
    assert quantile([1, 2, 3, 4, 5], share) == pytest.approx(wanted)


def test_hits_are_timed_one_by_one(tmp_path: Path) -> None:
    """As many as were asked for, or as fit the time; each archive in its turn."""
    ids = make_ids(3)
    paths = write_entries(tmp_path, ids, make_tarball(ids[0].timeline_id, LSN))
    with spawn_ready(tmp_path, MemoryHost()) as cache:
        assert len(get_latencies(cache, ids, Calls(7, 60.0))) == 7
        assert len(get_latencies(cache, ids, Calls(7, 0.0))) == 1
        with pytest.raises(LookupError, match="no archive"):
            get_latencies(cache, make_ids(4)[3:], Calls(7, 60.0))
    assert len(open_latencies(paths, Calls(7, 60.0))) == 7
    assert len(open_latencies(paths, Calls(7, 0.0))) == 1
