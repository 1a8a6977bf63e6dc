"""Failing disks: counted, logged with a hint, survived, and over with their cause."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import (
    LSN_A,
    LSN_B,
    MIB,
    Harness,
    disk_bytes,
    fail_with,
    noise,
    run_child,
    tar_of,
)

from bbcache import StoreError
from bbcache.storage.files import Store, TempFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache."""
    with Harness(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; the test is skipped if none can be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "bbcache-test", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here; the limit of file sizes is tested")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_a_full_disk(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A build that fills the disk is an error with a hint; the old entry stays, room comes back."""
    with Harness(small_disk / "cache") as harness:
        held = harness.prepared(size_bytes=MIB // 4)
        held.advance(LSN_B)
        held.tarball = lambda _at: noise(MIB)
        newcomer = harness.timeline()
        newcomer.tarball = held.tarball
        harness.prepare(held, LSN_B)
        harness.prepare(newcomer)
        assert harness.counts() == {"ok": 1, "error": 2}
        assert "hint: Free space on the file system" in caplog.text
        assert harness.get(held) == noise(MIB // 4, int(LSN_A))
        harness.check_accounting()
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(MIB))
        harness.prepare(harness.timeline())
        assert harness.get(held) is not None
        filler.unlink()
        harness.prepared()
        harness.check_accounting()


def test_a_start_on_a_full_disk(small_disk: Path) -> None:
    """A cache with a full disk starts and serves its entries."""
    with Harness(small_disk / "cache") as harness:
        timeline = harness.prepared()
        harness.cache.close()
        with pytest.raises(OSError, match="No space"):
            (small_disk / "filler").write_bytes(bytes(MIB))
        harness.open()
        assert harness.get(timeline) == tar_of(timeline)
        timeline.advance(LSN_B)
        harness.cache.run_cleanup()
        harness.check_accounting()


def test_a_file_system_that_is_lost_and_found(small_disk: Path) -> None:
    """Without its mount the cache does not use the directory below; with the mount it goes on."""
    with Harness(small_disk) as harness:
        timeline = harness.prepared()
        namespace = small_disk.parent / "elsewhere"
        namespace.mkdir()
        subprocess.run(["mount", "--bind", small_disk, namespace], check=True)
        try:
            subprocess.run(["umount", "--lazy", small_disk], check=True)
            timeline.advance(LSN_B)
            harness.prepare(timeline, LSN_B)
            harness.cache.run_cleanup()
            assert harness.counts() == {"ok": 1, "error": 1}
            assert os.listdir(small_disk) == []
            assert harness.get(timeline) is None
            assert harness.reads == {"error": 1}
            subprocess.run(["mount", "--bind", namespace, small_disk], check=True)
            assert harness.get(timeline) == tar_of(timeline)
            harness.prepare(timeline, LSN_B)
            assert harness.get(timeline, LSN_B) == tar_of(timeline, LSN_B)
            harness.check_accounting()
        finally:
            subprocess.run(["umount", "--lazy", namespace], check=True)
            if not os.path.ismount(small_disk):
                subprocess.run(["mount", "-t", "tmpfs", "none", small_disk], check=True)


def test_a_limit_of_file_sizes() -> None:
    """A write refused by the system (EFBIG) is an error, and smaller archives go on."""
    run_child("support.cache_children:beyond_the_limit_of_file_sizes")


def test_out_of_descriptors() -> None:
    """Without descriptors reads and prepares are errors with a hint, and work again later."""
    run_child("support.cache_children:out_of_descriptors")


def test_out_of_descriptors_at_the_start() -> None:
    """A start that finds no descriptor is tried again; it is not an empty cache."""
    run_child("support.cache_children:out_of_descriptors_at_the_start")


def test_a_directory_that_becomes_read_only() -> None:
    """Prepares and removals are logged errors and reads go on until it is writable again."""
    run_child("support.cache_children:read_only_directory")


def test_a_directory_that_cannot_be_listed() -> None:
    """A start without permission to list is tried again until there is."""
    run_child("support.cache_children:unlistable_directory")


def test_a_directory_that_cannot_be_made_or_locked() -> None:
    """Without permission `spawn` raises StoreError with errno and a hint."""
    run_child("support.cache_children:no_permission_to_spawn")


def test_an_entry_that_cannot_be_read() -> None:
    """It is an error with a hint, and stays: no permission proves nothing of its bytes."""
    run_child("support.cache_children:unreadable_entry")


@pytest.mark.parametrize(
    ("owner", "step"),
    [
        *((TempFile, name) for name in ("append", "patch", "sync")),
        *((Store, name) for name in ("create_temp", "rename_temp")),
    ],
)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_every_step_of_a_prepare_may_fail(
    harness: Harness,
    owner: type,
    step: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the disk refuses any step, that is an error with a hint, and nothing is left."""
    timeline = harness.prepared()
    timeline.advance(LSN_B)
    with monkeypatch.context() as patch:
        fail_with(patch, owner, step, OSError(code, os.strerror(code)))
        harness.prepare(timeline, LSN_B)
    assert harness.counts() == {"ok": 1, "error": 1}
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert os.strerror(code) in record.getMessage()
    assert "\nhint: " in record.getMessage()
    assert harness.get(timeline) == tar_of(timeline)
    harness.check_accounting()
    harness.prepare(timeline, LSN_B)
    assert harness.get(timeline, LSN_B) == tar_of(timeline, LSN_B)
    harness.check_accounting()


def test_clean_up_that_cannot_look_at_the_directory(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A step with a failing upkeep still removes outgrown entries, and logs the failure."""
    timeline = harness.prepared()
    timeline.advance(LSN_B)
    with monkeypatch.context() as patch:
        fail_with(patch, Store, "quarantined", OSError(errno.EMFILE, "Too many open files"))
        harness.cache.run_cleanup()
    assert harness.cache.entries() == []
    assert "hint: Raise the limit of open files" in caplog.text
    assert harness.value("bbcache_cleanup_errors_total") == 1
    harness.cache.run_cleanup()
    harness.check_accounting()


def test_spawn_below_a_file(tmp_path: Path) -> None:
    """A path that leads through a file is a StoreError."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError) as caught:
        Harness(tmp_path / "file" / "cache").open()
    assert caught.value.errno == errno.ENOTDIR
    assert disk_bytes(tmp_path) == 1


def test_quarantined_files_that_cannot_be_looked_at_keep_their_bytes() -> None:
    """A file that a clean-up cannot stat keeps its size."""
    run_child("support.cache_children:quarantine_without_search_permission")
