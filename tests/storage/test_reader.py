"""`get`: hits, misses, damage found by the checks, and what becomes of a bad file."""

from __future__ import annotations

import errno
import gzip
import io
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import (
    LSN_A,
    LSN_B,
    Rig,
    fail_with,
    put,
    tar_of,
)

from bbcache import BasebackupFile, TenantShardId, TenantTimelineId
from bbcache.archive import format as archive_module
from bbcache.storage.files import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache.testing import MemoryTimeline


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A running cache."""
    with Rig(tmp_path / "cache") as opened:
        yield opened


def test_a_hit_is_the_open_archive(rig: Rig) -> None:
    """A hit is a raw binary file at offset 0, with the sealed bytes, its LSN and size."""
    timeline = rig.prepared()
    file = rig.open_file(timeline)
    assert isinstance(file, BasebackupFile)
    assert isinstance(file, io.FileIO)
    with file:
        assert file.tell() == 0
        assert (file.readable(), file.writable(), file.mode) == (True, False, "rb")
        assert file.lsn == LSN_A
        content = file.read()
        assert len(content) == file.size_bytes == rig.path(timeline).stat().st_size
    assert gzip.decompress(content) == tar_of(timeline)
    assert rig.reads == {"hit": 1}


def test_a_hit_is_not_inherited(rig: Rig) -> None:
    """A program that the host starts does not get the descriptor."""
    timeline = rig.prepared()
    file = rig.open_file(timeline)
    assert file is not None
    with file:
        assert not os.get_inheritable(file.fileno())


def test_everything_else_is_a_miss(rig: Rig) -> None:
    """Another LSN, older or newer, timeline or tenant is a miss."""
    timeline = rig.prepared(LSN_B)
    other = rig.timeline()
    ids = TenantTimelineId(rig.tenant.tenant_id, timeline.timeline_id)
    assert rig.cache.get(*ids, LSN_A) is None
    assert rig.cache.get(*ids, LSN_B + 1) is None
    assert rig.cache.get(ids.tenant_id, other.timeline_id, LSN_B) is None
    assert rig.cache.get(rig.host.add_tenant().tenant_id, ids.timeline_id, LSN_B) is None
    assert rig.reads == {"miss": 4}


@pytest.mark.parametrize("how", ["replaced", "removed", "quarantined"])
def test_an_open_hit_keeps_its_bytes(rig: Rig, how: str) -> None:
    """What was handed out stays readable with the same bytes, whatever becomes of the entry."""
    timeline = rig.prepared()
    file = rig.open_file(timeline)
    assert file is not None
    timeline.advance(LSN_B)
    if how == "replaced":
        rig.prepare(timeline, LSN_B)
    elif how == "removed":
        rig.cache.run_cleanup()
    else:
        with rig.path(timeline).open("ab") as damaged:
            damaged.write(b"x")
        assert rig.get(timeline) is None
    assert not rig.path(timeline).exists()
    with file:
        assert gzip.decompress(file.read(file.size_bytes)) == tar_of(timeline)


def test_a_bad_entry_is_made_anew_where_the_tip_is_still_there(rig: Rig) -> None:
    """After quarantine a prepare is queued, and builds if the tip is exactly that LSN."""
    timeline = rig.prepared()
    path = rig.path(timeline)
    path.write_bytes(path.read_bytes()[:-1])
    assert rig.get(timeline) is None
    rig.wait_idle()
    assert rig.counts() == {"ok": 2}
    assert rig.get(timeline) == tar_of(timeline)
    assert rig.reads == {"hit": 1, "error": 1}
    rig.check_books()


def test_a_rebuild_finds_shard_zero_of_a_sharded_tenant(rig: Rig) -> None:
    """The worker asks the manager which shard of the tenant is shard zero."""
    tenant_id = rig.tenant.tenant_id
    sharded = rig.host.add_tenant(TenantShardId(tenant_id, 0, 4))
    rig.host.tenants = {
        TenantShardId(tenant_id, 1, 4): rig.host.add_tenant(),
        TenantShardId(tenant_id, 0, 2): None,
        sharded.tenant_shard_id: sharded,
    }
    timeline = rig.timeline(tenant=sharded)
    rig.prepare(timeline)
    rig.path(timeline).write_bytes(b"bad")
    assert rig.get(timeline) is None
    rig.wait_idle()
    assert rig.get(timeline) == tar_of(timeline)


def _tip_behind(_rig: Rig, timeline: MemoryTimeline) -> None:
    timeline.advance(LSN_A)


def _tip_past(_rig: Rig, timeline: MemoryTimeline) -> None:
    timeline.advance(LSN_B + 1)


def _gone(rig: Rig, _timeline: MemoryTimeline) -> None:
    rig.host.tenants.clear()


def _not_attached(rig: Rig, _timeline: MemoryTimeline) -> None:
    rig.host.tenants[rig.tenant.tenant_shard_id] = None


def _not_ready(rig: Rig, _timeline: MemoryTimeline) -> None:
    rig.host.is_ready = False


@pytest.mark.parametrize(
    ("change", "result"),
    [
        *((_tip_behind, "skip"), (_tip_past, "skip")),
        *((_gone, "error"), (_not_attached, "error"), (_not_ready, "error")),
    ],
)
def test_a_bad_entry_is_not_made_anew_elsewhere(
    rig: Rig, change: Callable[[Rig, MemoryTimeline], None], result: str
) -> None:
    """A rebuild is an ordinary prepare, and none where the tip is not exactly there."""
    timeline = rig.prepared(LSN_B)
    path = rig.path(timeline, LSN_B)
    path.write_bytes(b"bad")
    change(rig, timeline)
    assert rig.cache.get(rig.tenant.tenant_id, timeline.timeline_id, LSN_B) is None
    rig.wait_idle()
    assert rig.counts() == {"ok": 1, result: 1}
    assert rig.cache.entries() == []
    assert not path.exists()


def test_the_newest_bad_files_are_kept(rig: Rig) -> None:
    """The quarantine keeps eight files, the newest; their bytes are counted."""
    kept: list[bytes] = []
    for number in range(11):
        timeline = rig.prepared()
        timeline.advance(LSN_B)
        content = b"bad archive number %d" % number
        rig.path(timeline).write_bytes(content)
        assert rig.get(timeline) is None
        kept.append(content)
    directory = rig.dir / "quarantine"
    assert [(directory / name).read_bytes() for name in rig.quarantined()] == kept[-8:]
    assert rig.value("bbcache_other_bytes") == sum(map(len, kept[-8:]))
    assert rig.value("bbcache_quarantined_total") == 11
    rig.wait_idle()
    rig.check_books()


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
    rig: Rig,
    place: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A link is not followed, a FIFO not waited on; what lies there is moved away itself."""
    timeline = rig.prepared()
    timeline.advance(LSN_B)
    path = rig.path(timeline)
    path.unlink()
    monkeypatch.chdir(rig.dir)  # a socket's path must be short
    place(path if place is not _place_socket else rig.path(timeline).relative_to(rig.dir))
    assert rig.get(timeline) is None
    assert rig.reads == {"error": 1}
    assert not os.path.lexists(path)
    assert len(rig.quarantined()) == 1
    assert rig.cache.entries() == []
    if place is _place_symlink:
        assert (rig.dir.parent / "victim").read_bytes() == b"precious"


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOTCONN])
def test_a_read_that_fails_proves_nothing(
    rig: Rig, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An I/O error is counted and logged, and the entry stays."""
    timeline = rig.prepared()
    with monkeypatch.context() as patch:
        fail_with(patch, archive_module, "check_sealed", OSError(code, os.strerror(code)))
        patch.setattr("bbcache.storage.reader.check_sealed", archive_module.check_sealed)
        assert rig.get(timeline) is None
    assert rig.reads == {"error": 1}
    assert os.strerror(code) in caplog.text
    assert rig.get(timeline) == tar_of(timeline)
    assert rig.quarantined() == []


def test_failed_reads_are_logged_but_not_in_a_flood(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A line a second at the most: the metric has the number."""
    timeline, now_s = rig.prepared(), 100.0
    put(rig.engine.reader, "_clock", lambda: now_s)
    fail_with(monkeypatch, Store, "open", OSError(errno.EIO, "Input/output error"))
    for now_s, line_count in ((100.0, 1), (100.9, 1), (101.0, 2), (101.5, 2)):  # noqa: B007 - read by the clock
        assert rig.get(timeline) is None
        assert caplog.text.count("cannot read") == line_count
    assert rig.reads == {"error": 4}


def test_failed_reads_leak_no_descriptor(rig: Rig) -> None:
    """Whatever a read finds, its descriptor is closed."""
    before = set(os.listdir("/proc/self/fd"))
    for place in (os.mkfifo, os.mkdir, lambda path: path.write_bytes(b"bad")):
        timeline = rig.prepared()
        timeline.advance(LSN_B)
        rig.path(timeline).unlink()
        place(rig.path(timeline))
        assert rig.get(timeline) is None
    rig.wait_idle()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_bad_file_that_cannot_be_moved_stays_and_is_not_served(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entry stays on the books, unproven, until it can be taken out."""
    timeline = rig.prepared()
    timeline.advance(LSN_B)
    rig.path(timeline).write_bytes(b"bad")
    with monkeypatch.context() as patch:
        error = OSError(errno.EACCES, "Permission denied")
        fail_with(patch, type(rig.engine.store), "quarantine", error)
        for _ in range(2):
            assert rig.get(timeline) is None
        assert rig.holds(timeline)
    assert rig.reads == {"error": 2}
    assert rig.get(timeline) is None
    assert rig.cache.entries() == []
    rig.wait_idle()
    rig.check_books()


def test_a_missing_quarantine_is_made_anew(rig: Rig) -> None:
    """An operator may remove the quarantine while the cache runs."""
    timeline = rig.prepared()
    timeline.advance(LSN_B)
    (rig.dir / "quarantine").rmdir()
    rig.path(timeline).write_bytes(b"bad")
    assert rig.get(timeline) is None
    assert len(rig.quarantined()) == 1


def test_a_quarantine_that_cannot_be_listed_afterwards_is_one_all_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the bad file is moved the entry is out and made anew, whatever the books meet."""
    timeline = rig.prepared()
    rig.path(timeline).write_bytes(b"bad")
    real_quarantine = Store.quarantine
    with monkeypatch.context() as patch:

        def quarantine(*args: Any) -> None:
            real_quarantine(*args)
            fail_with(patch, Store, "quarantined", OSError(errno.EMFILE, "Too many open files"))

        patch.setattr(Store, "quarantine", quarantine)
        assert rig.get(timeline) is None
        rig.wait_idle()
    assert len(rig.quarantined()) == 1
    assert rig.value("bbcache_quarantined_total") == 1
    assert rig.get(timeline) == tar_of(timeline)
    rig.cache.run_cleanup()
    rig.check_books()
