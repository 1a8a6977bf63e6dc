"""A clean-up step over many entries that all stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bbcache.bench.crowds import dict_pass
from bbcache.bench.entries import LSN, make_host, make_places, spawn_ready, write_entries
from bbcache.testing import make_tarball

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache import BasebackupCache, TenantTimelineId
    from bbcache.testing import MemoryHost
    from benchmarks.conftest import Bench


@pytest.fixture
def places(entry_count: int) -> list[TenantTimelineId]:
    """Many timelines, ten to a tenant."""
    return make_places(entry_count)


@pytest.fixture
def host(places: list[TenantTimelineId]) -> MemoryHost:
    """A host with all of them, at `LSN`."""
    return make_host(places)


@pytest.fixture
def cache(
    scratch_dir: Path, places: list[TenantTimelineId], host: MemoryHost
) -> Iterator[BasebackupCache]:
    """A cache with an entry for each of them."""
    write_entries(scratch_dir, places, make_tarball(places[0].timeline_id, LSN))
    with spawn_ready(scratch_dir, host) as cache:
        yield cache


def test_cleanup(bench: Bench, cache: BasebackupCache, entry_count: int) -> None:
    """`run_cleanup`: the host is asked about every tenant and timeline."""
    bench.label(f"clean-up, {entry_count} entries that stay", "bbcache run_cleanup")
    bench.run(cache.run_cleanup)
    assert len(cache.entries()) == entry_count


def test_cleanup_dict(bench: Bench, host: MemoryHost, entry_count: int) -> None:
    """The least: one pass over a dict that calls the host for each timeline."""
    bench.label(
        f"clean-up, {entry_count} entries that stay",
        "dict pass calling the host",
        is_reference=True,
    )
    assert bench.run(dict_pass(host)) == 0
