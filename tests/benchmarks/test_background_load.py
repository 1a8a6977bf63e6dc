"""Work that runs beside measured calls."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from support.cache_helpers import noise

from bbcache import TenantTimelineId
from bbcache.testing import MemoryHost, make_tarball
from benchmarks.background_load import WORKERS, building, cleaning, compressing
from benchmarks.entries import LSN, make_config, spawn_ready, write_entries
from benchmarks.pipeline import Pipeline

if TYPE_CHECKING:
    from pathlib import Path

    from bbcache import TenantShardId
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTenant

TIMEOUT_S = 30.0


def test_two_workers_build_in_the_block_and_nothing_is_left(tmp_path: Path) -> None:
    """Both work when it begins, and go on with the next prepare; the end removes the archives."""
    builds = threading.Semaphore(0)

    def send(writer: TarballWriter) -> None:
        writer.write(noise(3000))
        builds.release()

    with Pipeline(tmp_path, make_config(WORKERS)) as pipeline:
        kept = pipeline.add_timeline(noise(4000), 1000)
        pipeline.prepare(kept)
        with building(pipeline, send):
            for _ in range(3 * WORKERS):
                assert builds.acquire(timeout=TIMEOUT_S)
        assert [entry.timeline_id for entry in pipeline.cache.entries()] == [kept.timeline_id]
        assert list(pipeline.tenant.timelines) == [kept.timeline_id]
        assert pipeline.cache.wait_idle(0)


def test_compressors_run_in_the_block_alone() -> None:
    """As many compressors run as a cache has workers, and only during the block."""
    before = set(threading.enumerate())
    with compressing(b"zeros" * 100_000):
        assert len(set(threading.enumerate()) - before) == WORKERS
    assert set(threading.enumerate()) <= before


class _CountingHost(MemoryHost):
    """A host that says when it is asked for its tenants, as each clean-up step does."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = threading.Semaphore(0)

    def list(self) -> list[tuple[TenantShardId, MemoryTenant | None]]:
        self.steps.release()
        return super().list()


def test_clean_up_steps_follow_each_other(tmp_path: Path) -> None:
    """Clean-up steps follow each other as long as the block lasts."""
    host = _CountingHost()
    tenant = host.add_tenant()
    timeline = tenant.add_timeline(LSN)
    ids = [TenantTimelineId(tenant.tenant_id, timeline.timeline_id)]
    write_entries(tmp_path, ids, make_tarball(timeline.timeline_id, LSN))
    before = set(threading.enumerate())
    with spawn_ready(tmp_path, host) as cache:
        with cleaning(cache):
            assert all(host.steps.acquire(timeout=TIMEOUT_S) for _ in range(3))
        assert len(cache.entries()) == 1
    assert set(threading.enumerate()) <= before
