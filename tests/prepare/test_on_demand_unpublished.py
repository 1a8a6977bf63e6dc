"""An archive that must not be published is still returned, and its bytes count."""

from __future__ import annotations

import gc
import gzip
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import (
    LSN_A,
    LSN_B,
    LSN_C,
    Gate,
    Harness,
    Worker,
    fail_with,
    noise,
    stop_while_sending,
    tar_of,
)
from support.fill_helpers import fill, filled, fillers, fills, unpublished_bytes
from support.ledger import total_bytes
from support.seams import stand_still

from bbcache import FillError, FillTimeoutError
from bbcache.errors import CacheFullError
from bbcache.prepare.backoff import LONGEST_PAUSE_S
from bbcache.prepare.shared_file import SharedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline

KIB = 1024


@pytest.fixture
def make_harness(tmp_path: Path) -> Iterator[Callable[..., Harness]]:
    """Make a running cache of two workers with settings; closed at the end."""
    harnesses: list[Harness] = []

    def make(**settings: object) -> Harness:
        harnesses.append(Harness(tmp_path / "cache", prepare_concurrency=2, **settings))
        harnesses[0].open()
        return harnesses[0]

    yield make
    for harness in harnesses:
        harness.__exit__(None, None, None)


def noisy(harness: Harness, size_bytes: int, lsn: Lsn = LSN_A) -> MemoryTimeline:
    """A timeline with archives of slightly more than a number of bytes."""
    timeline = harness.timeline(lsn)
    timeline.tarball = lambda at: noise(size_bytes, int(at))
    return timeline


def _slots_are_full(harness: Harness) -> MemoryTimeline:
    harness.prepared()
    return harness.timeline()


def _bytes_are_full(harness: Harness) -> MemoryTimeline:
    harness.prepared(size_bytes=6 * KIB)
    return noisy(harness, 6 * KIB)


def _too_big(harness: Harness) -> MemoryTimeline:
    return noisy(harness, 9 * KIB)


def _tip_moved(harness: Harness) -> MemoryTimeline:
    return harness.timeline(LSN_B)


def _tip_moves_in_the_build(harness: Harness) -> MemoryTimeline:
    timeline = harness.timeline()

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        writer.write(timeline.tarball(lsn))
        timeline.advance(LSN_B)

    timeline.on_send = send
    return timeline


def _newer_is_held(harness: Harness) -> MemoryTimeline:
    timeline = harness.prepared(LSN_C)
    timeline.advance(LSN_A)  # as where a host attaches an older state
    return timeline


def _disabled(harness: Harness) -> MemoryTimeline:
    harness.tenant.is_cache_enabled = False
    return harness.timeline()


CASES = [
    pytest.param(_slots_are_full, {"max_size_entries": 1}, "declined", id="no slot"),
    pytest.param(_bytes_are_full, {"max_total_size_bytes": 10 * KIB}, "declined", id="no bytes"),
    pytest.param(
        _slots_are_full, {"max_size_entries": 1, "eviction": "none"}, "full", id="no slot for ever"
    ),
    pytest.param(_too_big, {"max_entry_size_bytes": 5 * KIB}, "too_big", id="too big"),
    pytest.param(_too_big, {"max_total_size_bytes": 5 * KIB}, "too_big", id="bigger than all"),
    pytest.param(_tip_moved, {}, "tip_moved", id="tip moved"),
    pytest.param(_tip_moves_in_the_build, {}, "tip_moved", id="tip moves in the build"),
    pytest.param(_newer_is_held, {}, "up_to_date", id="newer is held"),
    pytest.param(_disabled, {}, "disabled", id="disabled"),
]


@pytest.mark.parametrize(("case", "settings", "reason"), CASES)
def test_the_caller_gets_the_bytes_and_nothing_is_published(
    make_harness: Callable[..., Harness],
    case: Callable[[Harness], MemoryTimeline],
    settings: dict[str, Any],
    reason: str,
) -> None:
    """The file has no name and counts until it is closed; the prepare is a skip with its reason."""
    harness = make_harness(**settings)
    timeline = case(harness)
    entries, names = harness.cache.entries(), harness.entry_files()
    prepared_count = harness.counts().get("ok", 0)
    with fill(harness, timeline) as file:
        harness.wait_idle()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert unpublished_bytes(harness) == file.size_bytes
        assert (file.source, file.lsn) == ("built", LSN_A)
        assert gzip.decompress(file.read()) == timeline.tarball(LSN_A)
        harness.check_accounting()  # no limit is passed for it, and nothing is left in tmp/
    assert unpublished_bytes(harness) == 0
    assert (harness.cache.entries(), harness.entry_files()) == (entries, names)
    assert harness.skips == {reason: 1}
    assert harness.counts().get("ok", 0) == prepared_count
    harness.check_accounting()


@pytest.mark.parametrize("case", [_tip_moved, _tip_moves_in_the_build, _disabled])
def test_all_callers_share_an_unpublished_archive(
    make_harness: Callable[..., Harness], case: Callable[[Harness], MemoryTimeline]
) -> None:
    """There is one build, one file on the disk, and an offset each; the last close frees it."""
    harness = make_harness()
    timeline = case(harness)
    on_send, builds = timeline.on_send, []
    with Gate() as gate:

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            builds.append(lsn)
            gate()
            if on_send is None:
                writer.write(timeline.tarball(lsn))
            else:
                on_send(writer, lsn)

        timeline.on_send = send
        workers = [Worker(fill, harness, timeline, LSN_A, None) for _ in range(1)]
        gate.wait_for()
        others = fillers(harness, timeline, 20)
        gate.open()
        file = workers[0].result()
        results = {each.result() for each in others}
    tar = tar_of(timeline)
    assert results == {("joined", tar)}
    assert len(builds) == 1
    assert unpublished_bytes(harness) == file.size_bytes  # type: ignore[attr-defined]
    assert gzip.decompress(file.read()) == tar  # type: ignore[attr-defined]
    file.close()  # type: ignore[attr-defined]
    file.close()  # type: ignore[attr-defined]
    assert unpublished_bytes(harness) == 0
    assert harness.cache.entries() == []


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_file_that_is_dropped_gives_its_room_back(make_harness: Callable[..., Harness]) -> None:
    """Its bytes are given back when it is collected."""
    harness = make_harness()
    file = fill(harness, _tip_moved(harness))
    assert unpublished_bytes(harness) == file.size_bytes
    del file
    gc.collect()
    assert unpublished_bytes(harness) == 0


def test_unpublished_archives_have_their_own_limit(
    make_harness: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds and open files never pass it; the error names it, and closing gives room back."""
    harness = make_harness(max_unpublished_size_bytes=10 * KIB)
    now_s = stand_still(monkeypatch, harness)
    first, second = noisy(harness, 6 * KIB, LSN_B), noisy(harness, 6 * KIB, LSN_B)
    with fill(harness, first) as file:
        with pytest.raises(FillError, match="max_unpublished_size_bytes 10240") as caught:
            fill(harness, second)
        assert isinstance(caught.value.__cause__, CacheFullError)
        assert str(caught.value).count("\nhint: ") == 1
        harness.wait_idle()
        assert unpublished_bytes(harness) == file.size_bytes
        harness.check_accounting()
    now_s[0] += LONGEST_PAUSE_S
    assert filled(harness, second)[0] == "built"
    assert harness.skips == {"tip_moved": 2, "full": 1}


def test_no_limit_is_passed_while_builds_spill(make_harness: Callable[..., Harness]) -> None:
    """A build that finds the cache full counts all its bytes as unpublished, or fails."""
    harness = make_harness(max_total_size_bytes=1500 * KIB, max_unpublished_size_bytes=6200 * KIB)
    timeline = harness.timeline()
    most: list[tuple[int, float]] = []

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        for seed in range(60):
            writer.write(noise(100 * KIB, int(lsn) + seed))
            most.append((total_bytes(harness.engine.index), unpublished_bytes(harness)))

    timeline.on_send = send
    source, tar = filled(harness, timeline)
    assert (source, len(tar)) == ("built", 6000 * KIB)
    assert all(total <= 1500 * KIB and rest <= 6200 * KIB for total, rest in most)
    assert any(total for total, _ in most)  # it has begun as one to be published
    assert any(rest for _, rest in most)
    assert harness.skips == {"too_big": 1}
    harness.wait_idle()
    harness.check_accounting()


def test_an_unpublished_build_without_callers_is_a_skip(
    make_harness: Callable[..., Harness],
) -> None:
    """A build without callers that must not be published is a skip; no bytes stay."""
    harness = make_harness()
    timeline = _tip_moves_in_the_build(harness)
    on_send = timeline.on_send
    assert on_send is not None
    with Gate() as gate:

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            gate()
            on_send(writer, lsn)

        timeline.on_send = send
        with pytest.raises(FillTimeoutError):
            fill(harness, timeline, timeout_s=0)
        gate.wait_for()
        gate.open()
        harness.wait_idle()
    assert harness.skips == {"tip_moved": 1}
    assert unpublished_bytes(harness) == 0
    harness.check_accounting()


def test_a_prepare_that_nobody_waits_for_is_skipped_as_ever(
    make_harness: Callable[..., Harness],
) -> None:
    """Without a caller nothing is built as unpublished."""
    harness = make_harness(max_entry_size_bytes=5 * KIB)
    for case in (_too_big, _tip_moved, _disabled):
        harness.prepare(case(harness))
    assert harness.skips == {"too_big": 1, "tip_moved": 1, "disabled": 1}
    assert unpublished_bytes(harness) == 0
    harness.check_accounting()


def test_a_prepare_that_is_joined_spills_for_the_caller(
    make_harness: Callable[..., Harness],
) -> None:
    """A prepare that turns out too big while a caller joins is not built twice."""
    harness = make_harness(max_entry_size_bytes=5 * KIB)
    timeline, builds = _too_big(harness), []
    with Gate() as gate:

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            builds.append(lsn)
            gate()
            writer.write(timeline.tarball(lsn))

        timeline.on_send = send
        harness.send(timeline)
        gate.wait_for()
        (worker,) = fillers(harness, timeline, 1)
        gate.open()
        assert worker.result() == ("joined", timeline.tarball(LSN_A))
    assert len(builds) == 1


def test_a_full_cache_refreshes_for_a_caller(make_harness: Callable[..., Harness]) -> None:
    """A timeline with an entry has its room, so the build is published."""
    harness = make_harness(max_size_entries=1)
    timeline = harness.prepared()
    timeline.advance(LSN_B)
    assert filled(harness, timeline, LSN_B) == ("built", tar_of(timeline, LSN_B))
    assert harness.holds(timeline, LSN_B)
    harness.check_accounting()


def test_a_file_that_cannot_be_unlinked_counts(
    make_harness: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller still reads it, and a later clean-up removes it."""
    harness = make_harness()
    timeline = _tip_moved(harness)
    with monkeypatch.context() as patch:
        fail_with(patch, os, "unlink", PermissionError(13, os.strerror(13), "x"))
        source, tar = filled(harness, timeline)
    assert (source, tar) == ("built", tar_of(timeline))
    harness.wait_idle()
    (name,) = harness.temp_files()
    assert harness.value("bbcache_nonentry_bytes") == (harness.dir / "tmp" / name).stat().st_size
    assert harness.value("bbcache_unlink_failures_total") == 1
    harness.cache.run_cleanup()
    harness.check_accounting()


@pytest.mark.parametrize("verify_reads", ["always", "first", "never"])
def test_a_returned_archive_is_checked(
    make_harness: Callable[..., Harness], verify_reads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that keeps other bytes than it was given fails the build, before it is published."""
    harness = make_harness(verify_reads=verify_reads)
    timeline = harness.timeline()
    made = SharedFile.__init__

    def damaged(self: SharedFile, path: str, *args: object, **kwargs: object) -> None:
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"?")
        made(self, path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(SharedFile, "__init__", damaged)
    if verify_reads == "never":
        with fill(harness, timeline) as file:
            assert file.read()[-1:] == b"?"
        return
    with pytest.raises(FillError, match="digest"):
        fill(harness, timeline)
    assert harness.cache.entries() == []
    harness.wait_idle()
    harness.check_accounting()


@pytest.mark.parametrize("verify_reads", ["always", "first"])
def test_every_caller_checks_if_every_open_is_checked(
    make_harness: Callable[..., Harness], verify_reads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`always` finds damage between the build and the caller's open."""
    harness = make_harness(verify_reads=verify_reads)
    timeline = harness.timeline(LSN_B)
    open_file = SharedFile.open_file

    def damaged(self: SharedFile, source: object) -> object:
        fd = os.open(f"/proc/self/fd/{self.fileno()}", os.O_WRONLY)
        os.pwrite(fd, b"?", self.entry.size_bytes - 1)
        os.close(fd)
        return open_file(self, source)  # type: ignore[arg-type]

    monkeypatch.setattr(SharedFile, "open_file", damaged)
    if verify_reads == "always":
        with pytest.raises(FillError, match="digest"):
            fill(harness, timeline)
    else:
        fill(harness, timeline).close()
    assert unpublished_bytes(harness) == 0


def test_a_taker_without_a_descriptor_harms_no_other(
    make_harness: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others get their bytes, no descriptor is lost, and the host is not asked again."""
    harness = make_harness()
    timeline = harness.timeline(LSN_B)
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        workers = fillers(harness, timeline, 5)
        gate.wait_for()
        assert len(_open_archives(harness)) == 1
        real_open = os.open
        left = iter([True])

        def failing_open(path: str, *args: int, **kwargs: int) -> int:
            is_taker = threading.current_thread() in workers
            if str(path).startswith("/proc/self/fd/") and is_taker and next(left, False):
                raise OSError(24, os.strerror(24))
            return real_open(path, *args, **kwargs)

        monkeypatch.setattr(os, "open", failing_open)
        gate.open()
        results = [_outcome(worker) for worker in workers]
    assert results.count("It takes /proc, and a free descriptor (ulimit -n).") == 1
    assert len([each for each in results if each in {"built", "joined"}]) == 4
    harness.wait_idle()
    assert _open_archives(harness) == []
    assert unpublished_bytes(harness) == 0
    assert fills(harness)["error"] == 1
    assert harness.counts("bbcache_fallback_builds_total") == {}


def _open_archives(harness: Harness) -> list[str]:
    """The archives of a cache that this process has open, with a name or without."""
    names = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the list itself
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in names if name.startswith(f"{harness.dir}/") and "basebackup_" in name]


def _outcome(worker: Worker) -> str:
    try:
        return str(worker.result()[0])  # type: ignore[index]
    except FillError as error:
        return str(error).partition("\nhint: ")[2]


def test_a_restart_finds_nothing_of_it(make_harness: Callable[..., Harness]) -> None:
    """An unpublished archive can be read after a close, and is gone after a start."""
    harness = make_harness()
    timeline = _tip_moved(harness)
    with fill(harness, timeline) as file:
        harness.reopen()
        assert gzip.decompress(file.read()) == tar_of(timeline)
    assert harness.cache.entries() == []
    harness.check_accounting()
