"""Latencies of single calls."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import pytest

from bbcache.bench.entries import LSN, make_places, spawn_ready, write_entries
from bbcache.bench.latency import P50, P99, Latencies, get_latencies, open_latencies
from bbcache.testing import MemoryHost, make_tarball

if TYPE_CHECKING:
    from pathlib import Path

MICROSECOND_NS = 1_000


def test_a_round_is_the_quantile_of_what_it_took() -> None:
    """And all rounds together make the distribution."""
    rounds = [range(101), range(1000, 1101)]
    taken = iter([array("q", [each * MICROSECOND_NS for each in values]) for values in rounds])
    latencies = Latencies(lambda: next(taken), P99)
    assert latencies.round() == pytest.approx(99e-6)
    assert latencies.round() == pytest.approx(1099e-6)
    assert latencies.count == 202
    assert latencies.quantile(P50) == pytest.approx(550e-6)


def test_a_distribution_rises_and_ends_where_the_calls_do() -> None:
    """No share is shown that fewer than one call stands for."""
    latencies = Latencies(lambda: array("q", range(200)), P50)
    latencies.round()
    shown = latencies.distribution()
    assert shown.call_count == 200
    assert list(shown.seconds) == sorted(shown.seconds)
    assert shown.shares[0] == 0
    assert all((1 - share) * 200 >= 1 for share in shown.shares)


def test_hits_are_timed_one_by_one(tmp_path: Path) -> None:
    """As many as asked for, or as the time has room for; each archive in its turn."""
    places = make_places(3)
    paths = write_entries(tmp_path, places, make_tarball(places[0].timeline_id, LSN))
    with spawn_ready(tmp_path, MemoryHost()) as cache:
        assert len(get_latencies(cache, places, 7, 60.0)) == 7
        assert len(get_latencies(cache, places, 7, 0.0)) == 1
        with pytest.raises(LookupError, match="no archive"):
            get_latencies(cache, make_places(4)[3:], 7, 60.0)
    assert len(open_latencies(paths, 7, 60.0)) == 7
    assert len(open_latencies(paths, 7, 0.0)) == 1
