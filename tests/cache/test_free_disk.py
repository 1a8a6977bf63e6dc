"""The floor of free space on the disk: nothing new below it, and clean-up shrinks the cache."""

from __future__ import annotations

import dataclasses
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import LSN_A, LSN_B, Harness, fail_with

from bbcache.storage.disk_space import missing_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GIB = 1 << 30
FLOOR_BYTES = 1_000_000


class Disk:
    """A file system with as much free space as a test says.

    Attributes:
        free_bytes: for plain users.
        total_bytes: all bytes.
    """

    def __init__(self) -> None:
        self.free_bytes = 2 * FLOOR_BYTES
        self.total_bytes = 100 * GIB

    def statvfs(self, _path: str) -> SimpleNamespace:
        """Answer for the operating system, in blocks of one byte."""
        return SimpleNamespace(f_frsize=1, f_bavail=self.free_bytes, f_blocks=self.total_bytes)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The file system of the cache."""
    disk = Disk()
    monkeypatch.setattr(os, "statvfs", disk.statvfs)
    return disk


@pytest.fixture
def harness(tmp_path: Path, disk: Disk) -> Iterator[Harness]:
    """A cache that leaves 1 MB to others."""
    assert disk.free_bytes
    with Harness(tmp_path / "cache", min_free_disk_bytes=FLOOR_BYTES) as opened:
        yield opened


@pytest.mark.parametrize(
    ("total_bytes", "floor_bytes"), [(100 * GIB, GIB), (20 * GIB, GIB), (10 * GIB, GIB // 2)]
)
def test_the_default_floor(disk: Disk, total_bytes: int, floor_bytes: int) -> None:
    """It is 1 GiB or 5 % of the file system, whichever is less."""
    disk.total_bytes, disk.free_bytes = total_bytes, floor_bytes
    assert missing_bytes("/", None) == 0
    disk.free_bytes -= 1
    assert missing_bytes("/", None) == 1
    assert missing_bytes("/", 0) == 0


def test_the_real_file_system(tmp_path: Path) -> None:
    """No file system has an exabyte free."""
    assert missing_bytes(str(tmp_path), 1 << 60) > 1 << 59
    assert missing_bytes(str(tmp_path), 1) == 0


def test_nothing_new_below_the_floor(harness: Harness, disk: Disk) -> None:
    """A new entry is skipped; refreshes and reads go on."""
    held = harness.prepared()
    disk.free_bytes = FLOOR_BYTES - 1
    newcomer = harness.timeline()
    harness.prepare(newcomer)
    assert harness.skips == {"low_disk": 1}
    assert harness.value("bbcache_free_disk_deficit_bytes") == 1
    assert harness.get(held) is not None
    held.advance(LSN_B)
    harness.prepare(held, LSN_B)
    assert harness.holds(held, LSN_B)
    disk.free_bytes = FLOOR_BYTES
    harness.prepare(newcomer)
    assert harness.holds(newcomer)
    assert harness.value("bbcache_free_disk_deficit_bytes") == 0


def test_a_caller_gets_its_archive_below_the_floor(harness: Harness, disk: Disk) -> None:
    """Below the floor a caller gets its archive from a file without a name."""
    disk.free_bytes = 0
    timeline = harness.timeline()
    ids = harness.tenant.tenant_shard_id, timeline.timeline_id, LSN_A
    with harness.cache.get_or_prepare(*ids, 60.0) as file:
        assert file.is_unpublished
    harness.wait_idle()
    assert harness.skips == {"low_disk": 1}


@pytest.mark.parametrize("eviction", ["return-rate", "oldest", "none"])
def test_clean_up_removes_the_deficit(harness: Harness, disk: Disk, eviction: str) -> None:
    """As few entries go as have the missing bytes; each clean-up measures again."""
    harness.reopen(eviction=eviction)
    for _ in range(6):
        harness.prepared(size_bytes=50_000)
    disk.free_bytes = FLOOR_BYTES - 120_000
    harness.cache.run_cleanup()
    assert len(harness.cache.entries()) == 3
    assert harness.counts("bbcache_removals_total") == {"low_disk": 3}
    disk.free_bytes = FLOOR_BYTES
    harness.cache.run_cleanup()
    assert len(harness.cache.entries()) == 3
    disk.free_bytes = 0
    harness.cache.run_cleanup()
    assert harness.cache.entries() == []
    assert harness.value("bbcache_free_disk_deficit_bytes") == FLOOR_BYTES
    harness.check_accounting()


def test_the_floor_can_be_lowered(harness: Harness, disk: Disk) -> None:
    """It is one of the limits that a running cache takes."""
    disk.free_bytes = FLOOR_BYTES - 1
    harness.prepare(harness.timeline())
    harness.cache.set_limits(dataclasses.replace(harness.config, min_free_disk_bytes=0))
    harness.prepared()
    assert harness.skips == {"low_disk": 1}


def test_a_file_system_that_does_not_answer(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a failing disk: an error of the prepare and of the clean-up, but of no caller."""
    timeline, wanted = harness.prepared(), harness.timeline()
    ids = harness.tenant.tenant_shard_id, wanted.timeline_id, LSN_A
    with monkeypatch.context() as patch:
        fail_with(patch, os, "statvfs", OSError(5, "Input/output error"))
        harness.prepare(harness.timeline())
        assert harness.counts() == {"ok": 1, "error": 1}
        assert "cannot examine the file system" in caplog.text
        with harness.cache.get_or_prepare(*ids, 60.0) as file:
            assert file.is_unpublished
        harness.cache.run_cleanup()
        assert harness.value("bbcache_cleanup_errors_total") == 1
    assert harness.holds(timeline)
