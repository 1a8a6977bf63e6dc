"""Limits: they hold while builds run, refreshes get through, nothing leaks."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    LSN_B,
    LSN_C,
    MIB,
    Gate,
    Rig,
    Worker,
    disk_bytes,
    fail_with,
    noise,
    stop_before,
    stop_while_sending,
)

from bbcache.errors import LimitError
from bbcache.storage import catalog as shelf_module

if TYPE_CHECKING:
    from pathlib import Path

    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline


OVERHEAD_BYTES = 4096  # at most, of one archive of incompressible bytes


def _shrinking(lsn: Lsn) -> bytes:
    """A tarball that does not compress, and gets a little smaller with the LSN."""
    return noise(50_000 - int(lsn) // 16, int(lsn))


def _books(rig: Rig) -> int:
    total: int = rig.engine.index.total_size_bytes
    return total


def _build_together(rig: Rig, timelines: list[MemoryTimeline], pieces: int) -> list[str]:
    """Build all timelines piece by piece in step; returns what was wrong at any step."""
    limit_bytes = rig.settings["max_total_size_bytes"]
    wrong: list[str] = []

    def check() -> None:
        on_disk, on_books = disk_bytes(rig.dir), _books(rig)
        if not on_disk <= on_books <= limit_bytes:
            wrong.append(f"{on_disk} bytes on disk, {on_books} on the books")

    in_step = threading.Barrier(len(timelines), check)

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        failure: LimitError | None = None
        for piece in range(pieces):
            try:
                if failure is None:
                    writer.write(noise(MIB, seed=piece + int(lsn)))
            except LimitError as error:
                failure = error
            in_step.wait(DEADLINE_S)
        if failure is not None:
            raise failure

    for timeline in timelines:
        timeline.on_send = send
        rig.send(timeline, timeline.get_last_record_lsn())
    rig.wait_idle()
    return wrong


def test_bytes_hold_while_four_workers_build(tmp_path: Path) -> None:
    """Four builds at once never pass the limit, on the books or on the disk, at any step."""
    rig = Rig(tmp_path / "cache", prepare_concurrency=4, max_total_size_bytes=12 * MIB)
    with rig:
        timelines = [rig.timeline() for _ in range(4)]
        assert _build_together(rig, timelines, pieces=6) == []
        assert rig.skips["full"] >= 3  # 24 MiB were wanted
        assert sum(rig.counts().values()) == 4
        rig.check_books()
        for timeline in timelines:
            timeline.advance(LSN_B)
        rig.cache.run_cleanup()
        assert _books(rig) == disk_bytes(rig.dir) == 0
        assert _build_together(rig, timelines, pieces=2) == []
        assert len(rig.cache.entries()) == 4
        rig.check_books()


def test_slots_hold_while_four_workers_build(tmp_path: Path) -> None:
    """A slot is taken before the build: of four at once as many are built as may stay."""
    rig = Rig(tmp_path / "cache", prepare_concurrency=4, max_size_entries=3)
    with rig, Gate() as gate:
        rig.prepared()
        timelines = [rig.timeline() for _ in range(4)]
        for timeline in timelines:
            stop_while_sending(timeline, gate)
            rig.send(timeline)
        gate.wait_for(2)
        assert rig.engine.index.total_count == 3
        gate.open()
        rig.wait_idle()
        assert rig.counts() == {"ok": 3, "skip": 2}
        assert rig.skips == {"full": 2}
        rig.check_books()


def test_a_full_cache_refreshes_what_it_holds(tmp_path: Path) -> None:
    """With no byte and no slot free, a held timeline still moves on to its next LSN."""
    with Rig(tmp_path / "cache") as rig:
        timelines = [rig.timeline() for _ in range(2)]
        for timeline in timelines:
            timeline.tarball = _shrinking
            rig.prepare(timeline)
        rig.reopen(max_total_size_bytes=disk_bytes(rig.dir), max_size_entries=2)
        rig.prepare(rig.timeline())
        assert rig.skips == {"full": 1}
        for lsn in (LSN_B, LSN_C):
            for timeline in timelines:
                timeline.advance(lsn)
                rig.prepare(timeline, lsn)
                assert rig.get(timeline, lsn) == _shrinking(lsn)
        assert rig.counts() == {"ok": 4, "skip": 1}
        rig.check_books()


def test_a_refresh_is_charged_for_what_exceeds_its_old_entry(tmp_path: Path) -> None:
    """A refresh that has grown beyond what is free is a skip, and the old entry stays."""
    with Rig(tmp_path / "cache", max_total_size_bytes=3 * MIB) as rig:
        other = rig.prepared(size_bytes=MIB)
        growing = rig.prepared(size_bytes=MIB)
        growing.advance(LSN_B)
        growing.tarball = lambda _at: noise(2 * MIB + MIB // 2)
        rig.prepare(growing, LSN_B)
        assert rig.skips == {"full": 1}
        assert rig.get(growing) == noise(MIB, int(LSN_A))
        growing.tarball = lambda _at: noise(2 * MIB - 2 * OVERHEAD_BYTES)
        rig.prepare(growing, LSN_B)
        assert rig.holds(growing, LSN_B)
        assert rig.holds(other)
        rig.check_books()


def test_the_old_file_is_on_no_books_only_until_its_unlink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replaced file that cannot be unlinked counts: there is no room for it twice."""
    rig = Rig(tmp_path / "cache", max_total_size_bytes=3 * MIB + MIB // 2)
    with rig:
        timeline = rig.prepared(size_bytes=MIB)
        timeline.advance(LSN_B)
        with monkeypatch.context() as patch:
            fail_with(patch, shelf_module, "unlink", OSError(errno.EACCES, "no", "x"))
            rig.prepare(timeline, LSN_B)
            assert _books(rig) == disk_bytes(rig.dir) > 2 * MIB
            newcomer = rig.timeline()
            newcomer.tarball = lambda _at: noise(2 * MIB)
            rig.prepare(newcomer)
            assert rig.skips == {"full": 1}
        rig.cache.run_cleanup()
        rig.cache.run_cleanup()  # what the failed build has left is gone too
        rig.prepare(newcomer)
        assert rig.holds(newcomer)
        rig.check_books()


def test_an_entry_that_can_never_fit_harms_no_other(tmp_path: Path) -> None:
    """It is a skip of its own kind; what is held stays, and the next build has all the room."""
    rig = Rig(tmp_path / "cache", max_total_size_bytes=4 * MIB)
    with rig:
        held = [rig.prepared(size_bytes=MIB // 2) for _ in range(2)]
        giant = rig.timeline()
        giant.tarball = lambda _at: noise(6 * MIB)
        for _ in range(3):
            rig.prepare(giant)
        assert sum(rig.skips.values()) == 3
        assert all(rig.get(timeline) for timeline in held)
        rig.check_books()
        big = rig.prepared(size_bytes=2 * MIB)
        assert rig.holds(big)


def test_an_entry_beyond_the_whole_limit_is_too_big_even_when_empty(tmp_path: Path) -> None:
    """An empty cache tells "never fits" from "no room now"."""
    with Rig(tmp_path / "cache", max_total_size_bytes=2 * MIB) as rig:
        giant = rig.timeline()
        giant.tarball = lambda _at: noise(4 * MIB)
        rig.prepare(giant)
        assert rig.skips == {"too_big": 1}
        assert _books(rig) == 0


@pytest.mark.parametrize("is_refresh", [False, True], ids=["new", "refresh"])
def test_max_entry_size_bytes(tmp_path: Path, is_refresh: bool) -> None:
    """An archive above the limit of one entry is a skip, also where it replaces one."""
    with Rig(tmp_path / "cache", max_entry_size_bytes=MIB) as rig:
        timeline = rig.prepared() if is_refresh else rig.timeline()
        timeline.advance(LSN_B)
        timeline.tarball = lambda _at: noise(MIB)
        rig.prepare(timeline, LSN_B)
        assert rig.skips == {"too_big": 1}
        assert rig.holds(timeline) == is_refresh
        timeline.tarball = lambda _at: noise(MIB - OVERHEAD_BYTES)
        rig.prepare(timeline, LSN_B)
        assert rig.holds(timeline, LSN_B)
        rig.check_books()


def test_a_limit_is_exact(tmp_path: Path) -> None:
    """An archive of just max_entry_size_bytes and max_total_size_bytes is admitted."""
    with Rig(tmp_path / "cache") as rig:
        timeline = rig.timeline()
        timeline.tarball = lambda _at: noise(5000)
        size_bytes = len(rig.sealed(timeline))
        rig.reopen(max_total_size_bytes=size_bytes, max_entry_size_bytes=size_bytes)
        rig.prepare(timeline)
        assert rig.holds(timeline)
        rig.reopen(max_total_size_bytes=size_bytes - 1, max_entry_size_bytes=None)
        timeline.advance(LSN_B)
        rig.cache.run_cleanup()
        rig.prepare(timeline, LSN_B)
        assert rig.skips == {"too_big": 1}


def _raise(_writer: TarballWriter, _lsn: Lsn) -> None:
    _writer.write(noise(2 * MIB))
    raise RuntimeError


def test_a_failed_build_gives_back_all_its_room(tmp_path: Path) -> None:
    """After any number of failures the cache has its slots and bytes."""
    rig = Rig(tmp_path / "cache", max_size_entries=1, max_total_size_bytes=4 * MIB)
    with rig:
        timeline = rig.timeline()
        timeline.on_send = _raise
        for _ in range(5):
            rig.prepare(timeline)
        assert rig.counts() == {"error": 5}
        assert _books(rig) == 0
        assert rig.engine.index.total_count == 0
        timeline.on_send = None
        timeline.tarball = lambda _at: noise(3 * MIB)
        rig.prepare(timeline)
        assert rig.holds(timeline)
        rig.check_books()


def test_the_temporary_file_of_a_failed_build_counts_until_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be unlinked stays on the books, and goes with a later clean-up."""
    with Rig(tmp_path / "cache", max_total_size_bytes=4 * MIB) as rig:
        timeline = rig.timeline()
        timeline.on_send = _raise
        with monkeypatch.context() as patch:
            fail_with(patch, shelf_module, "unlink", OSError(errno.EACCES, "no", "x"))
            rig.prepare(timeline)
        assert len(rig.temp_files()) == 1
        assert rig.value("bbcache_other_bytes") >= disk_bytes(rig.dir) > MIB
        assert rig.value("bbcache_unlink_failures_total") == 1
        assert rig.engine.index.total_count == 1
        rig.cache.run_cleanup()
        rig.check_books()


def test_quarantine_beside_a_refresh_keeps_the_limit(tmp_path: Path) -> None:
    """Where a refresh leaves no room for the evidence, the bad file is unlinked instead."""
    with Rig(tmp_path / "cache") as rig, Gate() as gate:
        timeline = rig.prepared(size_bytes=2 * MIB)
        limit_bytes = disk_bytes(rig.dir)
        rig.reopen(max_total_size_bytes=limit_bytes)
        path = rig.path(timeline)
        with path.open("r+b") as damaged:
            damaged.write(b"bad")

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            writer.write(noise(2 * MIB - OVERHEAD_BYTES))
            gate()

        timeline.on_send = send
        timeline.advance(LSN_B)
        rig.send(timeline, LSN_B)
        gate.wait_for()
        assert rig.get(timeline) is None
        assert rig.reads == {"error": 1}
        assert _books(rig) <= limit_bytes
        assert rig.quarantined() == []
        assert not path.exists()
        gate.open()
        rig.wait_idle()
        assert rig.holds(timeline, LSN_B)
        rig.check_books()


@pytest.mark.parametrize("how", ["cleanup", "ghost"])
def test_a_refresh_that_loses_its_entry_keeps_the_limit(tmp_path: Path, how: str) -> None:
    """A refresh whose entry goes meanwhile is charged in full, and nothing is over the limit."""
    with Rig(tmp_path / "cache") as rig, Gate() as gate:
        timeline = rig.prepared(size_bytes=MIB)
        limit_bytes = disk_bytes(rig.dir)
        rig.reopen(max_total_size_bytes=limit_bytes, max_size_entries=1)
        timeline.advance(LSN_B)

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            writer.write(noise(MIB // 2))
            gate()
            writer.write(noise(MIB // 4))

        timeline.on_send = send
        rig.send(timeline, LSN_B)
        gate.wait_for()
        if how == "cleanup":
            rig.cache.run_cleanup()
        else:
            rig.path(timeline).unlink()
            assert rig.get(timeline) is None
        assert _books(rig) <= limit_bytes
        assert rig.engine.index.total_count == 1
        newcomer = rig.timeline()
        rig.send(newcomer)  # by another worker, if there is one
        gate.open()
        rig.wait_idle()
        assert rig.skips == {"full": 1}
        assert rig.holds(timeline, LSN_B)
        rig.check_books()


def test_bytes_are_counted_while_an_unlink_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the index to the end of the unlink a removed file stays on the books."""
    with Rig(tmp_path / "cache") as rig, Gate() as gate:
        timeline = rig.prepared(size_bytes=MIB)
        before = _books(rig)
        timeline.advance(LSN_B)
        with monkeypatch.context() as patch:
            stop_before(patch, shelf_module, "unlink", gate)
            step = Worker(rig.cache.run_cleanup)
            gate.wait_for()
            assert rig.cache.entries() == []
            assert _books(rig) == disk_bytes(rig.dir) == before
            assert not rig.cache.wait_idle(0)
            gate.open()
            step.result()
        rig.check_books()
