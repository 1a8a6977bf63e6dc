"""Many entries: which sizes are taken, and the least work beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bbcache.testing import make_tarball
from benchmarks.entries import (
    LSN,
    TIMELINES_PER_TENANT,
    make_host,
    make_ids,
    make_unready_host,
    spawn_ready,
    write_entries,
)
from benchmarks.test_many_entries import dict_pass, growth_sizes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (300, [100, 300]),
        (1_000, [100, 1_000]),
        (20_000, [100, 1_000, 10_000, 20_000]),
        (200_000, [100, 1_000, 10_000, 200_000]),
    ],
)
def test_growth_begins_with_few_and_ends_with_most(most: int, sizes: list[int]) -> None:
    """And has few steps between, since each is a directory to write."""
    assert growth_sizes(most) == sizes


def test_ids_are_the_same_each_time_and_all_different() -> None:
    """So that a directory can be used again; ten timelines to a tenant."""
    ids = make_ids(1_000)
    assert ids == make_ids(1_000)
    assert len(set(ids)) == 1_000
    assert len({each.tenant_id for each in ids}) == 1_000 // TIMELINES_PER_TENANT


def test_a_clean_up_removes_nothing_that_is_measured(tmp_path: Path) -> None:
    """A run may last longer than the minute after which a cache cleans up by itself."""
    ids = make_ids(3)
    write_entries(tmp_path, ids, make_tarball(ids[0].timeline_id, LSN))
    with spawn_ready(tmp_path, make_unready_host()) as cache:
        cache.run_cleanup()
        assert len(cache.entries()) == 3


def test_the_dict_pass_asks_about_every_timeline() -> None:
    """Those that have gone on are counted."""
    ids = make_ids(25)
    host = make_host(ids)
    judge = dict_pass(host)
    assert judge() == 0
    tenant = host.list()[1][1]
    assert tenant is not None
    timeline = tenant.list_timelines()[3]
    timeline.advance(LSN + 8)
    assert judge() == 1
