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
from support.cache_helpers import LSN_A, LSN_B, LSN_C, Rig, fail_with, tar_of
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
def rig(disk: Disk, tmp_path: Path) -> Iterator[Rig]:
    """A cache on that disk, not yet open."""
    aside = tmp_path / "aside"
    aside.mkdir()
    rig = Rig(disk.path / "cache", unpublished_dir=aside)
    yield rig
    rig.__exit__(None, None, None)


def reopen_read_only(disk: Disk, rig: Rig) -> None:
    """Close the cache, make its file system read-only, and start again."""
    rig.cache.close()
    disk.be_read_only()
    rig.open()


def listing(directory: Path) -> dict[str, tuple[int, int]]:
    """All files below, with inode and size."""
    return {
        str(path): ((status := path.lstat()).st_ino, status.st_size)
        for path in directory.rglob("*")
    }


def test_what_is_held_is_served_and_nothing_changes(
    disk: Disk, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """Hits, skipped prepares, fallbacks, clean-up: no file comes, goes or moves."""
    rig.open()
    held, outgrown = rig.prepared(), rig.prepared()
    superseded = rig.timeline(LSN_B)
    rig.cache.close()
    rig.seed(superseded, LSN_A)
    rig.seed(superseded, LSN_B)
    (rig.dir / "tmp" / f"{rig.path(held).name}.0123456789abcdef").write_bytes(b"half")
    (rig.dir / "stray").write_bytes(b"stray")
    before = listing(rig.dir)
    disk.be_read_only()
    rig.open()
    assert rig.get(held) == tar_of(held)
    assert rig.get(superseded, LSN_B) == tar_of(superseded, LSN_B)
    assert rig.get(superseded, LSN_A) is None
    outgrown.advance(LSN_B)
    missing = rig.timeline()
    for _ in range(3):
        rig.prepare(missing)
        rig.prepare(outgrown, LSN_B)
        rig.cache.run_cleanup()
    assert rig.skips == rig.counts("bbcache_prepare_skips_total") == {"read_only": 6}
    for timeline, lsn in ((missing, LSN_A), (outgrown, LSN_B)):
        assert filled(rig, timeline, lsn) == ("built", tar_of(timeline, lsn))
    assert filled(rig, held) == ("hit", tar_of(held))
    assert rig.skips == {"read_only": 8}
    assert rig.counts() == {"skip": 8}
    assert rig.value("bbcache_unlink_failures_total") == 0
    assert rig.value("bbcache_cleanup_errors_total") == 0
    assert listing(rig.dir) == before
    loud = [each for each in caplog.records if each.levelno >= logging.WARNING]
    said = [each.getMessage() for each in loud if "read-only" in each.getMessage()]
    assert len(said) == 1
    assert "hint: " in said[0]
    assert [each for each in loud if each.levelno >= logging.ERROR] == []
    assert "read-only file system" in (rig.cache.degraded_reason or "")
    rig.cache.close()
    assert listing(rig.dir) == before


def test_writes_resume_after_a_remount(
    disk: Disk, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """The lock is taken, what a kill has left goes, and what is missing is prepared."""
    rig.open()
    held, missing = rig.prepared(), rig.timeline()
    superseded = rig.timeline(LSN_B)
    rig.cache.close()
    rig.seed(superseded, LSN_A)
    rig.seed(superseded, LSN_B)
    (rig.dir / "tmp" / f"{rig.path(held).name}.0123456789abcdef").write_bytes(b"half")
    disk.be_read_only()
    rig.open()
    rig.prepare(missing)
    assert rig.skips == {"read_only": 1}
    disk.be_writable()
    rig.prepare(missing)
    assert rig.get(missing) == tar_of(missing)
    assert rig.get(superseded, LSN_B) == tar_of(superseded, LSN_B)
    assert not rig.path(superseded, LSN_A).exists()
    rig.cache.run_cleanup()
    rig.check_books()
    assert rig.cache.degraded_reason is None
    assert "writable again" in caplog.text
    with pytest.raises(DirectoryLockedError):
        DirectoryLock(str(rig.dir)).acquire()
    rig.reopen()
    assert rig.get(missing) == tar_of(missing)
    rig.check_books()


def test_a_clean_up_is_enough_to_resume(disk: Disk, rig: Rig) -> None:
    """No prepare has to come first; the step then does its work."""
    rig.open()
    outgrown = rig.prepared()
    reopen_read_only(disk, rig)
    outgrown.advance(LSN_B)
    rig.cache.run_cleanup()
    assert rig.path(outgrown).exists()
    disk.be_writable()
    rig.cache.run_cleanup()
    assert not rig.path(outgrown).exists()
    rig.check_books()


def test_a_cache_that_another_has_replaced_stays_read_only(
    disk: Disk, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """The directory is the other one's by the time of the remount: it is said once, and left."""
    rig.open()
    held, lost = rig.prepared(), rig.prepared()
    reopen_read_only(disk, rig)
    disk.be_writable()
    other = BasebackupCache.spawn(
        rig.dir, BasebackupCacheConfig(cleanup_period=3600.0), rig.host, rig.registry.__class__()
    )
    with other:
        assert other.wait_initialized(60)
        missing = rig.timeline()
        before = listing(rig.dir)
        for _ in range(3):
            rig.prepare(missing)
            rig.cache.run_cleanup()
        assert listing(rig.dir) == before
        assert rig.skips == {"read_only": 3}
        text = f"locked by the process with pid {os.getpid()}"
        assert text in (rig.cache.degraded_reason or "")
        assert caplog.text.count(text) == 1
        assert filled(rig, missing) == ("built", tar_of(missing))
        rig.path(lost).unlink()  # as the other cache may do at any time
        assert rig.get(lost) is None
        assert rig.reads["miss"] >= 1
        assert "error" not in rig.reads
        assert rig.get(held) == tar_of(held)
    rig.prepare(missing)  # the other one has gone
    assert rig.get(missing) == tar_of(missing)
    assert rig.cache.degraded_reason is None
    rig.check_books()


def test_a_bad_entry_is_not_served_again(
    disk: Disk, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot be moved, so its entry goes; after a remount it is found and moved."""
    rig.open()
    bad = rig.prepared()
    rig.cache.close()
    content = rig.path(bad).read_bytes()
    rig.path(bad).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    disk.be_read_only()
    rig.open()
    assert rig.get(bad) is None
    rig.wait_idle()
    assert rig.cache.entries() == []
    assert rig.get(bad) is None
    assert rig.reads == {"error": 1, "miss": 1}
    assert rig.value("bbcache_quarantined_total") == 1
    assert "is bad and was taken out" in caplog.text
    assert filled(rig, bad) == ("built", tar_of(bad))
    assert rig.path(bad).exists()
    disk.be_writable()
    rig.cache.run_cleanup()
    assert rig.get(bad) is None
    rig.wait_idle()
    assert len(rig.quarantined()) == 1
    assert rig.get(bad) == tar_of(bad)
    rig.check_books()


def test_an_empty_or_unwritten_directory_will_do(disk: Disk, rig: Rig) -> None:
    """There is neither a lock file nor `tmp/`; callers get their bytes."""
    rig.dir.mkdir()
    disk.be_read_only()
    rig.open()
    timeline = rig.timeline()
    assert filled(rig, timeline) == ("built", tar_of(timeline))
    assert os.listdir(rig.dir) == []
    disk.be_writable()
    rig.prepare(timeline)
    rig.check_books()


def test_a_directory_that_does_not_exist_is_an_error(disk: Disk, rig: Rig) -> None:
    """There is nothing to serve, and nothing can be made."""
    disk.be_read_only()
    with pytest.raises(StoreError) as caught:
        rig.open()
    assert caught.value.errno == errno.EROFS
    assert "hint: Remount" in str(caught.value)


def test_a_read_only_file_system_that_is_gone(disk: Disk, rig: Rig) -> None:
    """What is below its mount point is another directory: not locked, and not written to."""
    rig.open()
    held = rig.prepared()
    reopen_read_only(disk, rig)
    subprocess.run(["umount", disk.path], check=True)
    try:
        rig.dir.mkdir()
        missing = rig.timeline()
        rig.prepare(missing)
        rig.cache.run_cleanup()
        assert os.listdir(rig.dir) == []
        assert rig.get(held) is None
        assert rig.holds(held)
        assert filled(rig, missing) == ("built", tar_of(missing))
    finally:
        rig.dir.rmdir()
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
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """The lock is kept; all else is as after a read-only start."""
    rig.open(verify_reads="always")
    held, outgrown, bad = rig.prepared(), rig.prepared(), rig.prepared()
    missing = rig.timeline()
    content = rig.path(bad).read_bytes()
    rig.path(bad).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    outgrown.advance(LSN_C)
    before = listing(rig.dir)
    with _Flip(rig.dir):
        assert rig.get(held) == tar_of(held)
        assert rig.get(bad) is None
        rig.wait_idle()
        assert not rig.holds(bad)
        for _ in range(3):
            rig.prepare(missing)
            rig.cache.run_cleanup()
        for timeline in (missing, bad):
            assert filled(rig, timeline) == ("built", tar_of(timeline))
        assert listing(rig.dir) == before
        assert set(rig.skips) == {"read_only"}
        assert "error" not in rig.counts()
        assert rig.value("bbcache_unlink_failures_total") == 0
        assert caplog.text.count("on a read-only file system; ") == 1
    rig.cache.run_cleanup()
    assert not rig.path(outgrown).exists()
    rig.prepare(missing)
    assert rig.get(missing) == tar_of(missing)
    rig.prepare(bad)
    assert rig.get(bad) == tar_of(bad)
    assert rig.cache.degraded_reason is None
    rig.check_books()


def test_an_ext4_that_an_error_has_stopped(tmp_path: Path) -> None:
    """It calls itself writable and refuses every write: at the start, and in the middle."""
    image, path = tmp_path / "image", tmp_path / "ext4"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run([tool("mkfs.ext4"), "-q", image], check=True)
    path.mkdir()
    command = ["mount", "-o", "loop,errors=remount-ro", str(image), str(path)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no image of a file system can be mounted here")
    try:
        with Rig(path / "cache") as rig:
            held, missing = rig.prepared(), rig.timeline()
            _stop(path)
            for _ in range(2):
                rig.prepare(missing)
                rig.cache.run_cleanup()
                assert rig.get(held) == tar_of(held)
                assert filled(rig, missing) == ("built", tar_of(missing))
                assert rig.skips == {"read_only": 2}
                assert "read-only" in (rig.cache.degraded_reason or "")
                rig.reopen()
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
                Rig(tmp_path / "cache").open()


def test_stock_that_cannot_be_taken_after_a_remount_is_taken_later(
    disk: Disk, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is held by then; entries are served, and the next step looks again."""
    rig.open()
    held, missing = rig.prepared(), rig.timeline()
    reopen_read_only(disk, rig)
    disk.be_writable()
    with monkeypatch.context() as patch:
        fail_with(patch, Store, "scan", OSError(errno.EIO, "Input/output error"))
        rig.prepare(missing)
        assert rig.counts() == {"error": 1}
        assert rig.get(held) == tar_of(held)
    rig.prepare(missing)
    assert rig.get(missing) == tar_of(missing)
    rig.check_books()
