"""A disk that is really full, because somebody else has filled it: a tmpfs of its own."""

from __future__ import annotations

import gc
import os
import subprocess
import threading
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
from support.cache_helpers import LSN_A, LSN_B, MIB, Harness, Worker, noise, tar_of
from support.disk_helpers import fill_disk, mount
from support.fill_helpers import filled
from support.helpers import file_names

from bbcache import FillError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline

_DISK: Final = "size=8m,nr_inodes=200"
_HELD_BYTES: Final = 200_000
_BUILT_BYTES: Final = 3 * MIB
_PIECE_BYTES: Final = MIB // 4


class SmallDisk:
    """A file system that somebody else can fill, and free again.

    Attributes:
        path: where it is mounted.
        cache_dir: for the cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cache_dir = path / "cache"
        self._other_dir = path / "other"
        self._other_dir.mkdir()

    def fill(self) -> None:
        """Write until nothing fits any more.

        A build that fails frees what it has written: less than the others still want.
        """
        fill_disk(self._other_dir)

    def use_up_inodes(self) -> None:
        """Make files until no more can be made."""
        for number in range(1000):
            try:
                (self._other_dir / str(number)).touch()
            except OSError:
                return

    def free(self) -> None:
        """Remove what was put there."""
        for path in self._other_dir.iterdir():
            path.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A tmpfs of 8 MiB; tests are skipped where it cannot be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    mount("-t", "tmpfs", "-o", _DISK, "bbcache-test", path)
    yield SmallDisk(path)
    gc.collect()  # a file still open would keep the file system busy
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def harness(disk: SmallDisk) -> Iterator[Harness]:
    """A cache on the small disk, not yet open."""
    harness = Harness(disk.cache_dir)
    yield harness
    harness.__exit__(None, None, None)


def build(disk: SmallDisk, timeline: MemoryTimeline) -> None:
    """Let somebody fill the disk in the middle of the timeline's next basebackup."""
    tar = noise(_BUILT_BYTES)

    def send(writer: TarballWriter, _: Lsn) -> None:
        for start in range(0, len(tar), _PIECE_BYTES):
            if start == len(tar) // 2:
                disk.fill()
            writer.write(tar[start : start + _PIECE_BYTES])

    timeline.on_send = send


def test_a_disk_filled_during_builds_costs_those_builds(
    disk: SmallDisk, harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """Entries are served throughout, no temp file stays, errors are counted with a hint."""
    harness.open(prepare_concurrency=2)
    held = [harness.prepared(LSN_A, _HELD_BYTES) for _ in range(3)]
    doomed = [harness.timeline() for _ in range(2)]
    for timeline in doomed:
        build(disk, timeline)
        harness.send(timeline)
    with serving(harness, held) as served:
        harness.wait_idle()
    assert served
    assert harness.counts() == {"ok": 3, "error": 2}
    assert caplog.text.count("Free space on the file system") == 2
    assert harness.temp_files() == []
    assert not any(map(harness.holds, doomed))
    harness.check_accounting()


def test_it_recovers_by_itself_when_space_returns(disk: SmallDisk, harness: Harness) -> None:
    """The prepares that failed work when they are asked for again."""
    harness.open()
    held, late = harness.prepared(LSN_A, _HELD_BYTES), harness.timeline()
    late.tarball = lambda at: noise(_HELD_BYTES, int(at))
    disk.fill()
    for _ in range(3):
        harness.prepare(late)
        harness.cache.run_cleanup()
        harness.check_accounting()
    assert harness.counts() == {"ok": 1, "error": 3}
    disk.free()
    harness.prepare(late)
    assert harness.get(late) == noise(_HELD_BYTES, LSN_A)
    assert harness.get(held) == noise(_HELD_BYTES, LSN_A)
    harness.check_accounting()


def test_a_refresh_that_fails_keeps_the_old_entry(disk: SmallDisk, harness: Harness) -> None:
    """The entry at the older LSN stays, is served, and is replaced when there is room."""
    harness.open()
    timeline = harness.prepared(LSN_A, _HELD_BYTES)
    timeline.tarball = lambda at: noise(_HELD_BYTES, int(at))
    disk.fill()
    timeline.advance(LSN_B)
    harness.prepare(timeline, LSN_B)
    assert harness.get(timeline, LSN_A) == noise(_HELD_BYTES, LSN_A)
    assert harness.get(timeline, LSN_B) is None
    harness.check_accounting()
    disk.free()
    harness.prepare(timeline, LSN_B)
    assert harness.get(timeline, LSN_B) == noise(_HELD_BYTES, LSN_B)
    assert len(harness.entry_files()) == 1
    harness.check_accounting()


def test_damage_is_taken_out_on_a_full_disk(disk: SmallDisk, harness: Harness) -> None:
    """A bad archive goes to quarantine; its rebuild fails, and works when there is room."""
    harness.open(verify_reads="always")
    timeline = harness.prepared(LSN_A, _HELD_BYTES)
    content = harness.path(timeline).read_bytes()
    harness.path(timeline).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    disk.fill()
    assert harness.get(timeline) is None
    harness.wait_idle()
    assert len(harness.quarantined()) == 1
    assert harness.counts() == {"ok": 1, "error": 1}
    disk.free()
    harness.prepare(timeline)
    assert harness.get(timeline) == noise(_HELD_BYTES, LSN_A)
    harness.check_accounting()


def test_a_disk_out_of_inodes_costs_the_prepares(disk: SmallDisk, harness: Harness) -> None:
    """Where no file can be made, prepares fail, gets work, and it recovers."""
    harness.open()
    held, late = harness.prepared(), harness.timeline()
    disk.use_up_inodes()
    harness.prepare(late)
    assert harness.counts() == {"ok": 1, "error": 1}
    assert harness.get(held) is not None
    disk.free()
    harness.prepare(late)
    assert harness.get(late) is not None
    harness.check_accounting()


@pytest.mark.parametrize("is_sent_before", [False, True])
def test_callers_get_their_bytes_from_a_full_disk(
    disk: SmallDisk, harness: Harness, tmp_path: Path, *, is_sent_before: bool
) -> None:
    """The disk fills in the middle of their archive, which is then built beside it."""
    (tmp_path / "aside").mkdir()
    harness.open(prepare_concurrency=2, unpublished_dir=tmp_path / "aside")
    held, timeline = harness.prepared(LSN_A, _HELD_BYTES), harness.timeline()
    build(disk, timeline)
    if is_sent_before:
        harness.send(timeline)  # most often they join it
    workers = [Worker(filled, harness, timeline) for _ in range(3)]
    assert {worker.result()[1] for worker in workers} == {noise(_BUILT_BYTES)}  # type: ignore[index]
    assert filled(harness, held) == ("hit", noise(_HELD_BYTES, LSN_A))
    assert not harness.holds(timeline)
    assert "No space left on device" in (harness.cache.degraded_reason or "")
    harness.wait_idle()
    harness.check_accounting()
    disk.free()
    timeline.on_send = None
    assert filled(harness, timeline) == ("built", tar_of(timeline))
    assert harness.cache.degraded_reason is None
    harness.check_accounting()


def test_callers_get_their_bytes_from_a_disk_out_of_inodes(
    disk: SmallDisk, harness: Harness, tmp_path: Path
) -> None:
    """No file can be made in the cache."""
    (tmp_path / "aside").mkdir()
    harness.open(unpublished_dir=tmp_path / "aside")
    timeline = harness.timeline()
    disk.use_up_inodes()
    assert filled(harness, timeline) == ("built", tar_of(timeline))
    disk.free()
    assert filled(harness, timeline) == ("built", tar_of(timeline))
    harness.check_accounting()


@pytest.mark.parametrize("both_on", ["the same disk", "a limit"])
def test_a_full_disk_without_another_is_named_twice(
    disk: SmallDisk, harness: Harness, both_on: str
) -> None:
    """`unpublished_dir` on the disk that is full, or no room within its limit."""
    aside = disk.path / "aside"
    aside.mkdir()
    limit = 1 if both_on == "a limit" else 1 << 30
    harness.open(unpublished_dir=aside, max_unpublished_size_bytes=limit)
    timeline = harness.timeline()
    build(disk, timeline)
    with pytest.raises(FillError) as caught:
        filled(harness, timeline)
    text = str(caught.value)
    assert text.count("No space left on device") == (2 if both_on == "the same disk" else 1)
    assert ("max_unpublished_size_bytes 1" in text) == (both_on == "a limit")
    assert os.listdir(aside) == []
    harness.wait_idle()
    harness.check_accounting()


@pytest.mark.parametrize("holder", [b"", b'{"pid": 1}\n'])
def test_a_start_on_a_full_disk_serves(disk: SmallDisk, harness: Harness, holder: bytes) -> None:
    """A start needs no room: entries on the disk are served, whatever the lock file has."""
    harness.open()
    timeline = harness.prepared(LSN_A, _HELD_BYTES)
    harness.cache.close()
    (disk.cache_dir / ".bbcache.lock").write_bytes(holder)
    (disk.cache_dir / "tmp" / f"{harness.path(timeline).name}.left").write_bytes(b"half")
    disk.fill()
    harness.open()
    assert harness.get(timeline) == noise(_HELD_BYTES, LSN_A)
    harness.check_accounting()


def test_a_first_start_on_a_full_disk_works_later(disk: SmallDisk, harness: Harness) -> None:
    """An empty cache starts on a full disk, and prepares as soon as there is room."""
    timeline = harness.timeline()
    disk.fill()
    harness.open()
    harness.prepare(timeline)
    assert harness.counts() == {"error": 1}
    disk.free()
    harness.prepare(timeline)
    assert harness.get(timeline) is not None
    harness.check_accounting()


def test_limits_hold_while_others_use_the_disk(disk: SmallDisk, harness: Harness) -> None:
    """The limit counts the cache's own bytes: others' files neither use it up nor free it."""
    limit_bytes = 2 * _HELD_BYTES + _HELD_BYTES // 2
    harness.open(max_total_size_bytes=limit_bytes, eviction="none")
    disk.fill()
    disk.free()
    timelines = [harness.prepared(LSN_A, _HELD_BYTES) for _ in range(2)]
    third = harness.timeline()
    third.tarball = partial(noise, _HELD_BYTES)
    harness.prepare(third)
    assert harness.skips == {"full": 1}
    assert all(harness.get(timeline) for timeline in timelines)
    assert file_names(disk.cache_dir) >= {"tmp", "quarantine"}
    harness.check_accounting()


class serving:  # noqa: N801 - reads as a verb in `with`
    """Get basebackups in a thread for the time of a block, each compared to the byte."""

    def __init__(self, harness: Harness, timelines: list[MemoryTimeline]) -> None:
        self._harness, self._timelines = harness, timelines
        self._is_over = threading.Event()
        self._served: list[bool] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> list[bool]:
        self._thread.start()
        return self._served

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        assert all(self._served)

    def _serve(self) -> None:
        while True:
            for timeline in self._timelines:
                self._served.append(self._harness.get(timeline) == noise(_HELD_BYTES, LSN_A))
            if self._is_over.is_set():
                return
