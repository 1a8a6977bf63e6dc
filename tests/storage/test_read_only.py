"""A cache on a file system that is read-only, at the start or later; on real mounts."""

from __future__ import annotations

import errno
import gc
import logging
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import LSN_A, LSN_B, LSN_C, Harness, fail_with, tar_of
from support.disk_helpers import mount, remount
from support.fill_helpers import filled
from support.helpers import tool

from bbcache import BasebackupCache, BasebackupCacheConfig, DirectoryLockedError, StoreError
from bbcache.storage.dirlock import DirectoryLock
from bbcache.storage.files import Store

if TYPE_CHECKING:
    from collections.abc import Iterator


class Disk:
    """A file system that can be made read-only.

    Attributes:
        path: where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def be_read_only(self) -> None:
        """As by `mount -o remount,ro`; no file may be open for writing."""
        remount("ro", self.path)

    def be_writable(self) -> None:
        """As by `mount -o remount,rw`."""
        remount("rw", self.path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A tmpfs of its own; tests are skipped where none can be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=8m", "bbcache-test", path)
    yield Disk(path)
    gc.collect()  # a file still open would keep the file system busy
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def harness(disk: Disk, tmp_path: Path) -> Iterator[Harness]:
    """A cache on that disk, not yet open."""
    aside = tmp_path / "aside"
    aside.mkdir()
    harness = Harness(disk.path / "cache", unpublished_dir=aside)
    yield harness
    harness.__exit__(None, None, None)


def reopen_read_only(disk: Disk, harness: Harness) -> None:
    """Close the cache, make its file system read-only, and start again."""
    harness.cache.close()
    disk.be_read_only()
    harness.open()


def listing(directory: Path) -> dict[str, tuple[int, int]]:
    """All files below, with inode and size."""
    return {
        str(path): ((status := path.lstat()).st_ino, status.st_size)
        for path in directory.rglob("*")
    }


def test_what_is_held_is_served_and_nothing_changes(
    disk: Disk, harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """Hits, skipped prepares, fallbacks and clean-up change no file."""
    harness.open()
    held, outgrown = harness.prepared(), harness.prepared()
    superseded = harness.timeline(LSN_B)
    harness.cache.close()
    harness.seed(superseded, LSN_A)
    harness.seed(superseded, LSN_B)
    (harness.dir / "tmp" / f"{harness.path(held).name}.0123456789abcdef").write_bytes(b"half")
    (harness.dir / "foreign file").write_bytes(b"foreign file")
    before = listing(harness.dir)
    disk.be_read_only()
    harness.open()
    assert harness.get(held) == tar_of(held)
    assert harness.get(superseded, LSN_B) == tar_of(superseded, LSN_B)
    assert harness.get(superseded, LSN_A) is None
    outgrown.advance(LSN_B)
    missing = harness.timeline()
    for _ in range(3):
        harness.prepare(missing)
        harness.prepare(outgrown, LSN_B)
        harness.cache.run_cleanup()
    assert harness.skips == harness.counts("bbcache_prepare_skips_total") == {"read_only": 6}
    for timeline, lsn in ((missing, LSN_A), (outgrown, LSN_B)):
        assert filled(harness, timeline, lsn) == ("built", tar_of(timeline, lsn))
    assert filled(harness, held) == ("hit", tar_of(held))
    assert harness.skips == {"read_only": 8}
    assert harness.counts() == {"skip": 8}
    assert harness.value("bbcache_unlink_failures_total") == 0
    assert harness.value("bbcache_cleanup_errors_total") == 0
    assert listing(harness.dir) == before
    loud = [each for each in caplog.records if each.levelno >= logging.WARNING]
    said = [each.getMessage() for each in loud if "read-only" in each.getMessage()]
    assert len(said) == 1
    assert "hint: " in said[0]
    assert [each for each in loud if each.levelno >= logging.ERROR] == []
    assert "read-only file system" in (harness.cache.degraded_reason or "")
    harness.cache.close()
    assert listing(harness.dir) == before


def test_a_read_only_start_says_so_at_once(disk: Disk, harness: Harness) -> None:
    """`degraded_reason` needs no prepare and no clean-up first."""
    harness.open()
    reopen_read_only(disk, harness)
    assert "read-only file system" in (harness.cache.degraded_reason or "")


def test_writes_resume_after_a_remount(
    disk: Disk, harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """The lock is taken, leftovers are removed, and prepares work."""
    harness.open()
    held, missing = harness.prepared(), harness.timeline()
    superseded = harness.timeline(LSN_B)
    harness.cache.close()
    harness.seed(superseded, LSN_A)
    harness.seed(superseded, LSN_B)
    (harness.dir / "tmp" / f"{harness.path(held).name}.0123456789abcdef").write_bytes(b"half")
    disk.be_read_only()
    harness.open()
    harness.prepare(missing)
    assert harness.skips == {"read_only": 1}
    disk.be_writable()
    harness.prepare(missing)
    assert harness.get(missing) == tar_of(missing)
    assert harness.get(superseded, LSN_B) == tar_of(superseded, LSN_B)
    assert not harness.path(superseded, LSN_A).exists()
    harness.cache.run_cleanup()
    harness.check_accounting()
    assert harness.cache.degraded_reason is None
    assert "writable again" in caplog.text
    with pytest.raises(DirectoryLockedError):
        DirectoryLock(str(harness.dir)).acquire()
    harness.reopen()
    assert harness.get(missing) == tar_of(missing)
    harness.check_accounting()


def test_a_clean_up_is_enough_to_resume(disk: Disk, harness: Harness) -> None:
    """A clean-up notices the remount itself, and does its work."""
    harness.open()
    outgrown = harness.prepared()
    reopen_read_only(disk, harness)
    outgrown.advance(LSN_B)
    harness.cache.run_cleanup()
    assert harness.path(outgrown).exists()
    disk.be_writable()
    harness.cache.run_cleanup()
    assert not harness.path(outgrown).exists()
    harness.check_accounting()


def test_a_cache_that_another_has_replaced_stays_read_only(
    disk: Disk, harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """After the remount another cache has the directory: this is logged once."""
    harness.open()
    held, lost = harness.prepared(), harness.prepared()
    reopen_read_only(disk, harness)
    disk.be_writable()
    other = BasebackupCache.spawn(
        harness.dir,
        BasebackupCacheConfig(cleanup_period=3600.0),
        harness.host,
        harness.registry.__class__(),
    )
    with other:
        assert other.wait_initialized(60)
        missing = harness.timeline()
        before = listing(harness.dir)
        for _ in range(3):
            harness.prepare(missing)
            harness.cache.run_cleanup()
        assert listing(harness.dir) == before
        assert harness.skips == {"read_only": 3}
        text = f"locked by the process with pid {os.getpid()}"
        assert text in (harness.cache.degraded_reason or "")
        assert caplog.text.count(text) == 1
        assert filled(harness, missing) == ("built", tar_of(missing))
        harness.path(lost).unlink()  # as the other cache may do at any time
        assert harness.get(lost) is None
        assert harness.reads["miss"] >= 1
        assert "error" not in harness.reads
        assert harness.get(held) == tar_of(held)
    harness.prepare(missing)  # the other one has gone
    assert harness.get(missing) == tar_of(missing)
    assert harness.cache.degraded_reason is None
    harness.check_accounting()


def test_a_bad_entry_is_not_served_again(
    disk: Disk, harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot be moved, so its entry goes; after a remount it is found and moved."""
    harness.open()
    bad = harness.prepared()
    harness.cache.close()
    content = harness.path(bad).read_bytes()
    harness.path(bad).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    disk.be_read_only()
    harness.open()
    assert harness.get(bad) is None
    harness.wait_idle()
    assert harness.cache.entries() == []
    assert harness.get(bad) is None
    assert harness.reads == {"error": 1, "miss": 1}
    assert harness.value("bbcache_quarantined_total") == 1
    assert "is bad and was removed" in caplog.text
    assert filled(harness, bad) == ("built", tar_of(bad))
    assert harness.path(bad).exists()
    disk.be_writable()
    harness.cache.run_cleanup()
    assert harness.get(bad) is None
    harness.wait_idle()
    assert len(harness.quarantined()) == 1
    assert harness.get(bad) == tar_of(bad)
    harness.check_accounting()


def test_an_empty_or_unwritten_directory_will_do(disk: Disk, harness: Harness) -> None:
    """Callers get their bytes without a lock file and without `tmp/`."""
    harness.dir.mkdir()
    disk.be_read_only()
    harness.open()
    timeline = harness.timeline()
    assert filled(harness, timeline) == ("built", tar_of(timeline))
    assert os.listdir(harness.dir) == []
    disk.be_writable()
    harness.prepare(timeline)
    harness.check_accounting()


def test_a_directory_that_does_not_exist_is_an_error(disk: Disk, harness: Harness) -> None:
    """There is nothing to serve, and nothing can be made."""
    disk.be_read_only()
    with pytest.raises(StoreError) as caught:
        harness.open()
    assert caught.value.errno == errno.EROFS
    assert "hint: Remount" in str(caught.value)


def test_a_read_only_file_system_that_is_gone(disk: Disk, harness: Harness) -> None:
    """The directory below the mount point is neither locked nor written to."""
    harness.open()
    held = harness.prepared()
    reopen_read_only(disk, harness)
    subprocess.run(["umount", disk.path], check=True)
    try:
        harness.dir.mkdir()
        missing = harness.timeline()
        harness.prepare(missing)
        harness.cache.run_cleanup()
        assert os.listdir(harness.dir) == []
        assert harness.get(held) is None
        assert harness.holds(held)
        assert filled(harness, missing) == ("built", tar_of(missing))
    finally:
        harness.dir.rmdir()
        mount("-t", "tmpfs", "-o", "size=8m", "bbcache-test", disk.path)


class _Flip:
    """Make the directory of a running cache read-only, for the time of a block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        mount("--bind", self._path, self._path)
        remount("bind,ro", self._path)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", self._path], check=True)


def test_a_directory_that_becomes_read_only_later(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """The lock is kept; the rest is as after a read-only start."""
    harness.open(verify_reads="always")
    held, outgrown, bad = harness.prepared(), harness.prepared(), harness.prepared()
    missing = harness.timeline()
    content = harness.path(bad).read_bytes()
    harness.path(bad).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    outgrown.advance(LSN_C)
    before = listing(harness.dir)
    with _Flip(harness.dir):
        assert harness.get(held) == tar_of(held)
        assert harness.get(bad) is None
        harness.wait_idle()
        assert not harness.holds(bad)
        for _ in range(3):
            harness.prepare(missing)
            harness.cache.run_cleanup()
        for timeline in (missing, bad):
            assert filled(harness, timeline) == ("built", tar_of(timeline))
        assert listing(harness.dir) == before
        assert set(harness.skips) == {"read_only"}
        assert "error" not in harness.counts()
        assert harness.value("bbcache_unlink_failures_total") == 0
        assert caplog.text.count("on a read-only file system; ") == 1
    harness.cache.run_cleanup()
    assert not harness.path(outgrown).exists()
    harness.prepare(missing)
    assert harness.get(missing) == tar_of(missing)
    harness.prepare(bad)
    assert harness.get(bad) == tar_of(bad)
    assert harness.cache.degraded_reason is None
    harness.check_accounting()


def test_an_ext4_that_an_error_has_stopped(tmp_path: Path) -> None:
    """Linux calls it writable, but every write fails, at the start or later."""
    image, path = tmp_path / "image", tmp_path / "ext4"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run([tool("mkfs.ext4"), "-q", image], check=True)
    path.mkdir()
    command = ["mount", "-o", "loop,errors=remount-ro", str(image), str(path)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no image of a file system can be mounted here")
    try:
        with Harness(path / "cache") as harness:
            held, missing = harness.prepared(), harness.timeline()
            _stop(path)
            for _ in range(2):
                harness.prepare(missing)
                harness.cache.run_cleanup()
                assert harness.get(held) == tar_of(held)
                assert filled(harness, missing) == ("built", tar_of(missing))
                assert harness.skips == {"read_only": 2}
                assert "read-only" in (harness.cache.degraded_reason or "")
                harness.reopen()
    finally:
        gc.collect()
        subprocess.run(["umount", path], check=True)


def _stop(path: Path) -> None:
    """Let the kernel meet an error in the file system."""
    found = subprocess.run(
        ["findmnt", "-no", "SOURCE", path], check=True, capture_output=True, text=True
    )
    trigger = Path("/sys/fs/ext4") / Path(found.stdout.strip()).name / "trigger_fs_error"
    try:
        trigger.write_text("a test of bbcache")
    except OSError as error:
        pytest.skip(f"ext4 cannot be made to meet an error here: {error}")


def test_other_refusals_to_lock_stay_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a read-only file system is served without the lock."""
    for code in (errno.EACCES, errno.EIO, errno.ENOSPC):
        error = StoreError("no lock", errno=code)
        with monkeypatch.context() as patch:
            fail_with(patch, DirectoryLock, "acquire", error)
            with pytest.raises(StoreError, match="no lock"):
                Harness(tmp_path / "cache").open()


def test_a_scan_that_fails_after_a_remount_is_repeated(
    disk: Disk, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is taken, entries are served, and the next step scans again."""
    harness.open()
    held, missing = harness.prepared(), harness.timeline()
    reopen_read_only(disk, harness)
    disk.be_writable()
    with monkeypatch.context() as patch:
        fail_with(patch, Store, "scan", OSError(errno.EIO, "Input/output error"))
        harness.prepare(missing)
        assert harness.counts() == {"error": 1}
        assert harness.get(held) == tar_of(held)
    harness.prepare(missing)
    assert harness.get(missing) == tar_of(missing)
    harness.check_accounting()
