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
    Rig,
    Worker,
    fail_with,
    noise,
    put,
    stop_before,
    stop_while_sending,
    tar_of,
)
from support.helpers import run_threads, wait_until

from bbcache.storage import catalog as shelf_module
from bbcache.storage.files import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache import TenantShardId
    from bbcache.testing import MemoryTenant


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A running cache whose periodic clean-up does not come in a test's time."""
    with Rig(tmp_path / "cache") as opened:
        yield opened


def test_an_entry_published_while_the_host_is_asked_is_not_judged(rig: Rig) -> None:
    """Entries are snapshotted before the manager is asked: one born meanwhile stays."""
    old, refreshed = rig.prepared(), rig.prepared()
    born = rig.timeline()
    del rig.tenant.timelines[old.timeline_id]
    with Gate() as gate:

        def list_slowly() -> list[tuple[TenantShardId, MemoryTenant | None]]:
            gate()
            return []

        put(rig.host, "list", list_slowly)
        step = Worker(rig.cache.run_cleanup)
        gate.wait_for()
        refreshed.advance(LSN_B)
        rig.send(born)
        rig.send(refreshed, LSN_B)
        wait_until(lambda: rig.counts() == {"ok": 4})
        gate.open()
        step.result()
    assert rig.get(born) == tar_of(born)
    assert rig.get(refreshed, LSN_B) == tar_of(refreshed, LSN_B)
    assert not rig.holds(old)
    rig.check_books()


def test_removal_judges_the_entry_not_its_lsn(rig: Rig) -> None:
    """An entry made anew at the very LSN that was judged stays."""
    timeline = rig.prepared()
    rows = [*rig.host.tenants.items()]
    with Gate() as gate:

        def list_slowly() -> list[tuple[TenantShardId, MemoryTenant | None]]:
            gate()
            return []

        put(rig.host, "list", list_slowly)
        step = Worker(rig.cache.run_cleanup)
        gate.wait_for()
        rig.path(timeline).unlink()
        assert rig.get(timeline) is None  # the ghost is dropped
        rig.send(timeline)
        wait_until(lambda: rig.counts() == {"ok": 2})
        gate.open()
        step.result()
        put(rig.host, "list", lambda: rows)
    assert rig.get(timeline) == tar_of(timeline)
    rig.check_books()


def test_a_late_unlink_never_hits_a_new_file(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publish at the path that is being unlinked waits, and its file is there afterwards."""
    timeline = rig.prepared()
    rows = rig.host.tenants.pop(rig.tenant.tenant_shard_id)
    with Gate() as gate:
        stop_before(monkeypatch, shelf_module, "unlink", gate)
        step = Worker(rig.cache.run_cleanup)
        gate.wait_for()  # dropped from the index, its file not unlinked yet
        rig.host.tenants[rig.tenant.tenant_shard_id] = rows
        renaming = threading.Event()
        real_rename = Store.rename_temp

        def rename(*args: Any) -> None:
            renaming.set()
            real_rename(*args)

        monkeypatch.setattr(Store, "rename_temp", rename)
        timeline.tarball = lambda _at: noise(2000)
        rig.send(timeline)
        wait_until(lambda: rig.value("bbcache_prepare_seconds_count{phase=wait_lsn}") == 2)
        assert not renaming.is_set()
        gate.open()
        step.result()
    rig.wait_idle()
    assert rig.get(timeline) == noise(2000)
    rig.check_books()


def test_clean_up_leaves_a_build_in_flight_alone(rig: Rig) -> None:
    """Neither a step nor its upkeep touches the temporary file of a build."""
    timeline = rig.timeline()
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        rig.send(timeline)
        gate.wait_for()
        before = rig.temp_files()
        assert len(before) == 1
        for _ in range(3):
            rig.cache.run_cleanup()
        assert rig.temp_files() == before
    rig.wait_idle()
    assert rig.get(timeline) == tar_of(timeline)


def test_a_failed_unlink_is_parked_and_tried_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its bytes count, it does not hold up `wait_idle`, and the next step tries again."""
    timeline = rig.prepared()
    path = rig.path(timeline)
    size_bytes = path.stat().st_size
    timeline.advance(LSN_B)
    with monkeypatch.context() as patch:
        fail_with(patch, shelf_module, "unlink", OSError(errno.EBUSY, "busy", str(path)))
        rig.cache.run_cleanup()
        rig.wait_idle()
        rig.cache.run_cleanup()
        assert rig.cache.entries() == []
        assert rig.get(timeline) is None
        assert path.exists()
        assert rig.value("bbcache_other_bytes") == size_bytes
        assert rig.value("pageserver_basebackup_cache_size_bytes") == 0
        assert rig.value("bbcache_unlink_failures_total") == 1  # once a file
        assert str(path) in caplog.text
    rig.cache.run_cleanup()
    assert not path.exists()
    rig.check_books()


def test_a_publish_takes_over_a_parked_path(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file published where one waits for its removal is counted once and never removed."""
    timeline = rig.prepared()
    rig.host.tenants[rig.tenant.tenant_shard_id] = None
    with monkeypatch.context() as patch:
        fail_with(patch, shelf_module, "unlink", OSError(errno.EACCES, "no", "x"))
        rig.cache.run_cleanup()
    rig.host.tenants[rig.tenant.tenant_shard_id] = rig.tenant
    rig.prepare(timeline)
    rig.cache.run_cleanup()
    assert rig.get(timeline) == tar_of(timeline)
    rig.check_books()


def test_a_replaced_file_that_cannot_go_is_parked(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refresh whose old file stays is served; the old one counts until it is gone."""
    timeline = rig.prepared()
    timeline.advance(LSN_B)
    with monkeypatch.context() as patch:
        fail_with(patch, shelf_module, "unlink", OSError(errno.EACCES, "no", "x"), times=1)
        rig.prepare(timeline, LSN_B)
    assert rig.get(timeline, LSN_B) == tar_of(timeline, LSN_B)
    assert rig.value("bbcache_other_bytes") == rig.path(timeline).stat().st_size
    rig.cache.run_cleanup()
    rig.check_books()


def test_two_steps_at_once_do_no_harm(rig: Rig) -> None:
    """Steps in several threads remove each entry once."""
    for _ in range(20):
        rig.prepared().advance(LSN_B)
    wanted = rig.prepared()
    run_threads([rig.cache.run_cleanup] * 4)
    assert [entry.timeline_id for entry in rig.cache.entries()] == [wanted.timeline_id]
    assert rig.value("bbcache_unlink_failures_total") == 0
    rig.check_books()


def test_upkeep_follows_strays_and_quarantine(rig: Rig) -> None:
    """What an operator removes, or what grows, is seen by the next step."""
    rig.cache.close()
    stray = rig.dir / "notes.txt"
    stray.write_bytes(b"x" * 100)
    (rig.dir / "quarantine" / "old").write_bytes(b"y" * 50)
    rig.open()
    assert rig.value("bbcache_other_bytes") == 150
    stray.write_bytes(b"x" * 300)
    rig.cache.run_cleanup()
    assert rig.value("bbcache_other_bytes") == 350
    stray.unlink()
    os.unlink(rig.dir / "quarantine" / "old")
    rig.cache.run_cleanup()
    rig.check_books()


def test_run_cleanup_before_the_start_is_done_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to judge until the entries are known."""
    rig = Rig(tmp_path / "cache")
    timeline = rig.timeline()
    rig.seed(timeline)
    timeline.advance(LSN_B)
    with Gate() as gate:
        stop_before(monkeypatch, Store, "scan", gate)
        rig.open(wait=False)
        with rig.opened:
            gate.wait_for()
            rig.cache.run_cleanup()
            gate.open()
            assert rig.cache.wait_initialized(60)
            assert rig.holds(timeline)
            rig.cache.run_cleanup()
            assert not rig.holds(timeline)
