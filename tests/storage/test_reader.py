"""`get`: hits, misses, damage found by the checks, and what becomes of a bad file."""

from __future__ import annotations

import errno
import gzip
import io
import os
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import (
    LSN_A,
    LSN_B,
    Harness,
    fail_with,
    tar_of,
)
from support.helpers import open_below

from bbcache import BasebackupFile, TenantShardId, TenantTimelineId
from bbcache.archive import format as archive_format
from bbcache.storage.files import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache.testing import MemoryTimeline


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache."""
    with Harness(tmp_path / "cache") as opened:
        yield opened


def test_a_hit_is_the_open_archive(harness: Harness) -> None:
    """A hit is a raw binary file at offset 0, with the sealed bytes, its LSN and size."""
    timeline = harness.prepared()
    file = harness.open_file(timeline)
    assert isinstance(file, BasebackupFile)
    assert isinstance(file, io.FileIO)
    with file:
        assert file.tell() == 0
        assert (file.readable(), file.writable(), file.mode) == (True, False, "rb")
        assert file.lsn == LSN_A
        content = file.read()
        assert len(content) == file.size_bytes == harness.path(timeline).stat().st_size
    assert gzip.decompress(content) == tar_of(timeline)
    assert harness.reads == {"hit": 1}


def test_a_hit_is_not_inherited(harness: Harness) -> None:
    """A program that the host starts does not get the descriptor."""
    timeline = harness.prepared()
    file = harness.open_file(timeline)
    assert file is not None
    with file:
        assert not os.get_inheritable(file.fileno())


def test_everything_else_is_a_miss(harness: Harness) -> None:
    """Another LSN, older or newer, timeline or tenant is a miss."""
    timeline = harness.prepared(LSN_B)
    other = harness.timeline()
    ids = TenantTimelineId(harness.tenant.tenant_id, timeline.timeline_id)
    assert harness.cache.get(*ids, LSN_A) is None
    assert harness.cache.get(*ids, LSN_B + 1) is None
    assert harness.cache.get(ids.tenant_id, other.timeline_id, LSN_B) is None
    assert harness.cache.get(harness.host.add_tenant().tenant_id, ids.timeline_id, LSN_B) is None
    assert harness.reads == {"miss": 4}


@pytest.mark.parametrize("how", ["replaced", "removed", "quarantined"])
def test_an_open_hit_keeps_its_bytes(harness: Harness, how: str) -> None:
    """An open file keeps its bytes when its entry is replaced, removed or quarantined."""
    timeline = harness.prepared()
    file = harness.open_file(timeline)
    assert file is not None
    timeline.advance(LSN_B)
    if how == "replaced":
        harness.prepare(timeline, LSN_B)
    elif how == "removed":
        harness.cache.run_cleanup()
    else:
        with harness.path(timeline).open("ab") as damaged:
            damaged.write(b"x")
        assert harness.get(timeline) is None
    assert not harness.path(timeline).exists()
    with file:
        assert gzip.decompress(file.read(file.size_bytes)) == tar_of(timeline)


def test_a_bad_entry_is_rebuilt_where_the_tip_is_still_there(harness: Harness) -> None:
    """After quarantine a prepare is queued, and builds if the tip is exactly that LSN."""
    timeline = harness.prepared()
    path = harness.path(timeline)
    path.write_bytes(path.read_bytes()[:-1])
    assert harness.get(timeline) is None
    harness.wait_idle()
    assert harness.counts() == {"ok": 2}
    assert harness.get(timeline) == tar_of(timeline)
    assert harness.reads == {"hit": 1, "error": 1}
    harness.check_accounting()


def test_a_rebuild_finds_shard_zero_of_a_sharded_tenant(harness: Harness) -> None:
    """The worker asks the manager which shard of the tenant is shard zero."""
    tenant_id = harness.tenant.tenant_id
    sharded = harness.host.add_tenant(TenantShardId(tenant_id, 0, 4))
    harness.host.tenants = {
        TenantShardId(tenant_id, 1, 4): harness.host.add_tenant(),
        TenantShardId(tenant_id, 0, 2): None,
        sharded.tenant_shard_id: sharded,
    }
    timeline = harness.timeline(tenant=sharded)
    harness.prepare(timeline)
    harness.path(timeline).write_bytes(b"bad")
    assert harness.get(timeline) is None
    harness.wait_idle()
    assert harness.get(timeline) == tar_of(timeline)


def _tip_behind(_harness: Harness, timeline: MemoryTimeline) -> None:
    timeline.advance(LSN_A)


def _tip_past(_harness: Harness, timeline: MemoryTimeline) -> None:
    timeline.advance(LSN_B + 1)


def _gone(harness: Harness, _timeline: MemoryTimeline) -> None:
    harness.host.tenants.clear()


def _not_attached(harness: Harness, _timeline: MemoryTimeline) -> None:
    harness.host.tenants[harness.tenant.tenant_shard_id] = None


def _not_ready(harness: Harness, _timeline: MemoryTimeline) -> None:
    harness.host.is_ready = False


@pytest.mark.parametrize(
    ("change", "result"),
    [
        *((_tip_behind, "skip"), (_tip_past, "skip")),
        *((_gone, "error"), (_not_attached, "error"), (_not_ready, "error")),
    ],
)
def test_a_bad_entry_is_not_rebuilt_away_from_the_tip(
    harness: Harness, change: Callable[[Harness, MemoryTimeline], None], result: str
) -> None:
    """A rebuild is an ordinary prepare, and is skipped unless the tip is exactly at the LSN."""
    timeline = harness.prepared(LSN_B)
    path = harness.path(timeline, LSN_B)
    path.write_bytes(b"bad")
    change(harness, timeline)
    assert harness.cache.get(harness.tenant.tenant_id, timeline.timeline_id, LSN_B) is None
    harness.wait_idle()
    assert harness.counts() == {"ok": 1, result: 1}
    assert harness.cache.entries() == []
    assert not path.exists()


def test_the_newest_bad_files_are_kept(harness: Harness) -> None:
    """The quarantine keeps the eight newest files, and their bytes count."""
    kept: list[bytes] = []
    for number in range(11):
        timeline = harness.prepared()
        timeline.advance(LSN_B)
        content = b"bad archive number %d" % number
        harness.path(timeline).write_bytes(content)
        assert harness.get(timeline) is None
        kept.append(content)
    directory = harness.dir / "quarantine"
    assert [(directory / name).read_bytes() for name in harness.quarantined()] == kept[-8:]
    assert harness.value("bbcache_nonentry_bytes") == sum(map(len, kept[-8:]))
    assert harness.value("bbcache_quarantined_total") == 11
    harness.wait_idle()
    harness.check_accounting()


def _place_symlink(path: Path) -> None:
    victim = path.parent.parent / "victim"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)


def _place_folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_bytes(b"x")


def _place_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))


@pytest.mark.parametrize("place", [_place_symlink, os.mkfifo, _place_folder, _place_socket])
def test_what_is_no_regular_file_is_bad(
    harness: Harness,
    place: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A link is not followed, a FIFO not waited on; the file itself is moved."""
    timeline = harness.prepared()
    timeline.advance(LSN_B)
    path = harness.path(timeline)
    path.unlink()
    monkeypatch.chdir(harness.dir)  # a socket's path must be short
    place(path if place is not _place_socket else harness.path(timeline).relative_to(harness.dir))
    assert harness.get(timeline) is None
    assert harness.reads == {"error": 1}
    assert not os.path.lexists(path)
    assert len(harness.quarantined()) == 1
    assert harness.cache.entries() == []
    if place is _place_symlink:
        assert (harness.dir.parent / "victim").read_bytes() == b"precious"


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOTCONN])
def test_a_read_that_fails_proves_nothing(
    harness: Harness, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An I/O error is counted and logged, and the entry stays."""
    timeline = harness.prepared()
    with monkeypatch.context() as patch:
        fail_with(patch, archive_format, "check_sealed", OSError(code, os.strerror(code)))
        patch.setattr("bbcache.storage.reader.check_sealed", archive_format.check_sealed)
        assert harness.get(timeline) is None
    assert harness.reads == {"error": 1}
    assert os.strerror(code) in caplog.text
    assert harness.get(timeline) == tar_of(timeline)
    assert harness.quarantined() == []


def test_failed_reads_are_logged_but_not_in_a_flood(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At most one line per second is logged; the metric counts all."""
    timeline, now_s = harness.prepared(), 100.0
    clock = SimpleNamespace(monotonic=lambda: now_s, time=lambda: now_s)
    monkeypatch.setattr("bbcache.storage.reader.time", clock)
    fail_with(monkeypatch, Store, "open", OSError(errno.EIO, "Input/output error"))
    for now_s, line_count in ((100.0, 1), (100.9, 1), (101.0, 2), (101.5, 2)):  # noqa: B007 - read by the clock
        assert harness.get(timeline) is None
        assert caplog.text.count("cannot read") == line_count
    assert harness.reads == {"error": 4}


def test_failed_reads_leak_no_descriptor(harness: Harness) -> None:
    """Every failed read closes its descriptor."""
    before = open_below(harness.dir)
    for place in (os.mkfifo, os.mkdir, lambda path: path.write_bytes(b"bad")):
        timeline = harness.prepared()
        timeline.advance(LSN_B)
        harness.path(timeline).unlink()
        place(harness.path(timeline))
        assert harness.get(timeline) is None
    harness.wait_idle()
    assert open_below(harness.dir) == before


def test_a_bad_file_that_cannot_be_moved_is_not_served_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entry is gone: the next read is a miss, and clean-up removes the file."""
    timeline = harness.prepared()
    timeline.advance(LSN_B)
    harness.path(timeline).write_bytes(b"bad")
    with monkeypatch.context() as patch:
        error = OSError(errno.EACCES, "Permission denied")
        fail_with(patch, type(harness.engine.store), "quarantine", error)
        for _ in range(2):
            assert harness.get(timeline) is None
    assert harness.reads == {"error": 1, "miss": 1}
    assert harness.cache.entries() == []
    harness.wait_idle()
    harness.cache.run_cleanup()
    assert harness.quarantined() == []
    harness.check_accounting()


def test_a_missing_quarantine_is_made_again(harness: Harness) -> None:
    """An operator may remove the quarantine while the cache runs."""
    timeline = harness.prepared()
    timeline.advance(LSN_B)
    (harness.dir / "quarantine").rmdir()
    harness.path(timeline).write_bytes(b"bad")
    assert harness.get(timeline) is None
    assert len(harness.quarantined()) == 1


def test_a_quarantine_that_cannot_be_listed_afterwards_is_one_all_the_same(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The move counts, even if the quarantine cannot be listed after it."""
    timeline = harness.prepared()
    harness.path(timeline).write_bytes(b"bad")
    real_quarantine = Store.quarantine
    with monkeypatch.context() as patch:

        def quarantine(*args: Any) -> None:
            real_quarantine(*args)
            fail_with(patch, Store, "quarantined", OSError(errno.EMFILE, "Too many open files"))

        patch.setattr(Store, "quarantine", quarantine)
        assert harness.get(timeline) is None
        harness.wait_idle()
    assert len(harness.quarantined()) == 1
    assert harness.value("bbcache_quarantined_total") == 1
    assert harness.get(timeline) == tar_of(timeline)
    harness.cache.run_cleanup()
    harness.check_accounting()
