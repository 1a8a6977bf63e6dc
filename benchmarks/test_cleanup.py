"""A clean-up step over many entries that all stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from bbcache.index import make_key
from bbcache.testing import MemoryHost, make_tarball
from benchmarks.entries import LSN, spawn_ready, write_entries

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache import BasebackupCache
    from bbcache.testing import MemoryTimeline
    from benchmarks.conftest import Bench

_TIMELINES_PER_TENANT: Final = 10


@pytest.fixture
def host(entry_count: int) -> MemoryHost:
    """A host with many timelines, ten to a tenant, all at `LSN`."""
    host = MemoryHost()
    tenant = host.add_tenant()
    for _ in range(entry_count):
        if len(tenant.timelines) == _TIMELINES_PER_TENANT:
            tenant = host.add_tenant()
        tenant.add_timeline(LSN)
    return host


def _timelines(host: MemoryHost) -> dict[bytes, MemoryTimeline]:
    return {
        make_key(shard_id.tenant_id, timeline_id): timeline
        for shard_id, tenant in host.list()
        if tenant is not None
        for timeline_id, timeline in tenant.timelines.items()
    }


@pytest.fixture
def cache(scratch_dir: Path, host: MemoryHost) -> Iterator[BasebackupCache]:
    """A cache with an entry for each of them."""
    timelines = _timelines(host)
    some = next(iter(timelines.values()))
    write_entries(scratch_dir, timelines, make_tarball(some.timeline_id, LSN))
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
    timelines = _timelines(host)
    held = dict.fromkeys(timelines, LSN)

    def judge() -> int:
        return sum(timelines[key].get_last_record_lsn() > lsn for key, lsn in held.items())

    assert bench.run(judge) == 0
