"""Clean-up beside publishing: nothing new is lost, what cannot be removed waits."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import (
    LSN_B,
    Gate,
    Harness,
    Worker,
    fail_with,
    noise,
    put,
    stop_before,
    stop_while_sending,
    tar_of,
)
from support.helpers import run_threads, wait_until

from bbcache.storage.files import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache import TenantShardId
    from bbcache.testing import MemoryTenant


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache whose periodic clean-up does not come in a test's time."""
    with Harness(tmp_path / "cache") as opened:
        yield opened


def test_an_entry_published_while_the_host_is_asked_is_not_judged(harness: Harness) -> None:
    """Entries are copied before the host is asked: an entry published later stays."""
    old, refreshed = harness.prepared(), harness.prepared()
    born = harness.timeline()
    del harness.tenant.timelines[old.timeline_id]
    with Gate() as gate:

        def list_slowly() -> list[tuple[TenantShardId, MemoryTenant | None]]:
            gate()
            return []

        put(harness.host, "list", list_slowly)
        step = Worker(harness.cache.run_cleanup)
        gate.wait_for()
        refreshed.advance(LSN_B)
        harness.send(born)
        harness.send(refreshed, LSN_B)
        wait_until(lambda: harness.counts() == {"ok": 4})
        gate.open()
        step.result()
    assert harness.get(born) == tar_of(born)
    assert harness.get(refreshed, LSN_B) == tar_of(refreshed, LSN_B)
    assert not harness.holds(old)
    harness.check_accounting()


def test_removal_judges_the_entry_not_its_lsn(harness: Harness) -> None:
    """An entry that was rebuilt at the judged LSN stays."""
    timeline = harness.prepared()
    rows = [*harness.host.tenants.items()]
    with Gate() as gate:

        def list_slowly() -> list[tuple[TenantShardId, MemoryTenant | None]]:
            gate()
            return []

        put(harness.host, "list", list_slowly)
        step = Worker(harness.cache.run_cleanup)
        gate.wait_for()
        harness.path(timeline).unlink()
        assert harness.get(timeline) is None  # the ghost is dropped
        harness.send(timeline)
        wait_until(lambda: harness.counts() == {"ok": 2})
        gate.open()
        step.result()
        put(harness.host, "list", lambda: rows)
    assert harness.get(timeline) == tar_of(timeline)
    harness.check_accounting()


def test_a_late_unlink_never_hits_a_new_file(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publish at the path that is being unlinked waits, and its file is there afterwards."""
    timeline = harness.prepared()
    rows = harness.host.tenants.pop(harness.tenant.tenant_shard_id)
    with Gate() as gate:
        stop_before(monkeypatch, os, "unlink", gate)
        step = Worker(harness.cache.run_cleanup)
        gate.wait_for()  # dropped from the index, its file not unlinked yet
        harness.host.tenants[harness.tenant.tenant_shard_id] = rows
        renaming = threading.Event()
        real_rename = Store.rename_temp

        def rename(*args: Any) -> None:
            renaming.set()
            real_rename(*args)

        monkeypatch.setattr(Store, "rename_temp", rename)
        timeline.tarball = lambda _at: noise(2000)
        harness.send(timeline)
        wait_until(lambda: harness.value("bbcache_prepare_seconds_count{phase=wait_lsn}") == 2)
        assert not renaming.is_set()
        gate.open()
        step.result()
    harness.wait_idle()
    assert harness.get(timeline) == noise(2000)
    harness.check_accounting()


def test_clean_up_leaves_a_build_in_flight_alone(harness: Harness) -> None:
    """Neither a step nor its upkeep touches the temporary file of a build."""
    timeline = harness.timeline()
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        harness.send(timeline)
        gate.wait_for()
        before = harness.temp_files()
        assert len(before) == 1
        for _ in range(3):
            harness.cache.run_cleanup()
        assert harness.temp_files() == before
    harness.wait_idle()
    assert harness.get(timeline) == tar_of(timeline)


def test_a_failed_unlink_is_tried_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its bytes count, it does not hold up `wait_idle`, and the next step tries again."""
    timeline = harness.prepared()
    path = harness.path(timeline)
    size_bytes = path.stat().st_size
    timeline.advance(LSN_B)
    with monkeypatch.context() as patch:
        fail_with(patch, os, "unlink", OSError(errno.EBUSY, "busy", str(path)))
        harness.cache.run_cleanup()
        harness.wait_idle()
        harness.cache.run_cleanup()
        assert harness.cache.entries() == []
        assert harness.get(timeline) is None
        assert path.exists()
        assert harness.nonentry_bytes == size_bytes
        assert harness.value("pageserver_basebackup_cache_size_bytes") == 0
        assert harness.value("bbcache_unlink_failures_total") == 1  # once a file
        assert str(path) in caplog.text
    harness.cache.run_cleanup()
    assert not path.exists()
    harness.check_accounting()


def test_a_publish_takes_over_the_path_of_a_doomed_file(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file published at a path that waits to be removed counts once and stays."""
    timeline = harness.prepared()
    harness.host.tenants[harness.tenant.tenant_shard_id] = None
    with monkeypatch.context() as patch:
        fail_with(patch, os, "unlink", OSError(errno.EACCES, "no", "x"))
        harness.cache.run_cleanup()
    harness.host.tenants[harness.tenant.tenant_shard_id] = harness.tenant
    harness.prepare(timeline)
    harness.cache.run_cleanup()
    assert harness.get(timeline) == tar_of(timeline)
    harness.check_accounting()


def test_a_replaced_file_that_cannot_go_is_doomed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refresh whose old file stays is served; the old one counts until it is gone."""
    timeline = harness.prepared()
    timeline.advance(LSN_B)
    with monkeypatch.context() as patch:
        fail_with(patch, os, "unlink", OSError(errno.EACCES, "no", "x"), times=1)
        harness.prepare(timeline, LSN_B)
    assert harness.get(timeline, LSN_B) == tar_of(timeline, LSN_B)
    assert harness.nonentry_bytes == harness.path(timeline).stat().st_size
    harness.cache.run_cleanup()
    harness.check_accounting()


def test_two_steps_at_once_do_no_harm(harness: Harness) -> None:
    """Steps in several threads remove each entry once."""
    for _ in range(20):
        harness.prepared().advance(LSN_B)
    wanted = harness.prepared()
    run_threads([harness.cache.run_cleanup] * 4)
    assert [entry.timeline_id for entry in harness.cache.entries()] == [wanted.timeline_id]
    assert harness.value("bbcache_unlink_failures_total") == 0
    harness.check_accounting()


def test_upkeep_follows_foreign_files_and_quarantine(harness: Harness) -> None:
    """The next step sees removed and grown files."""
    harness.cache.close()
    foreign_file = harness.dir / "notes.txt"
    foreign_file.write_bytes(b"x" * 100)
    (harness.dir / "quarantine" / "old").write_bytes(b"y" * 50)
    harness.open()
    assert harness.nonentry_bytes == 150
    foreign_file.write_bytes(b"x" * 300)
    harness.cache.run_cleanup()
    assert harness.nonentry_bytes == 350
    foreign_file.unlink()
    os.unlink(harness.dir / "quarantine" / "old")
    harness.cache.run_cleanup()
    harness.check_accounting()


def test_run_cleanup_before_the_start_is_done_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step before the load is done does nothing."""
    harness = Harness(tmp_path / "cache")
    timeline = harness.timeline()
    harness.seed(timeline)
    timeline.advance(LSN_B)
    with Gate() as gate:
        stop_before(monkeypatch, Store, "scan", gate)
        harness.open(wait=False)
        with harness.opened:
            gate.wait_for()
            harness.cache.run_cleanup()
            gate.open()
            assert harness.cache.wait_initialized(60)
            assert harness.holds(timeline)
            harness.cache.run_cleanup()
            assert not harness.holds(timeline)
