"""Limits: they hold while builds run, refreshes get through, nothing leaks."""

from __future__ import annotations

import errno
import os
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
    Harness,
    Worker,
    disk_bytes,
    fail_with,
    noise,
    stop_before,
    stop_while_sending,
)
from support.helpers import wait_until
from support.ledger import total_bytes, total_count

from bbcache.errors import LimitError

if TYPE_CHECKING:
    from pathlib import Path

    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline


OVERHEAD_BYTES = 4096  # at most, of one archive of incompressible bytes


def _shrinking(lsn: Lsn) -> bytes:
    """A tarball that does not compress, and gets a little smaller with the LSN."""
    return noise(50_000 - int(lsn) // 16, int(lsn))


def _accounting(harness: Harness) -> int:
    total: int = total_bytes(harness.engine.index)
    return total


def _build_together(harness: Harness, timelines: list[MemoryTimeline], pieces: int) -> list[str]:
    """Build all timelines piece by piece in step; returns what was wrong at any step."""
    limit_bytes = harness.settings["max_total_size_bytes"]
    wrong: list[str] = []

    def check() -> None:
        on_disk, is_accounted = disk_bytes(harness.dir), _accounting(harness)
        if not on_disk <= is_accounted <= limit_bytes:
            wrong.append(f"{on_disk} bytes on disk, {is_accounted} accounted for")

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
        harness.send(timeline, timeline.get_last_record_lsn())
    harness.wait_idle()
    return wrong


def test_bytes_hold_while_four_workers_build(tmp_path: Path) -> None:
    """Four builds at once never pass the limit, accounted for or on the disk, at any step."""
    harness = Harness(tmp_path / "cache", prepare_concurrency=4, max_total_size_bytes=12 * MIB)
    with harness:
        timelines = [harness.timeline() for _ in range(4)]
        assert _build_together(harness, timelines, pieces=6) == []
        assert harness.skips["full"] >= 3  # 24 MiB were wanted
        assert sum(harness.counts().values()) == 4
        harness.check_accounting()
        for timeline in timelines:
            timeline.advance(LSN_B)
        harness.cache.run_cleanup()
        assert _accounting(harness) == disk_bytes(harness.dir) == 0
        assert _build_together(harness, timelines, pieces=2) == []
        assert len(harness.cache.entries()) == 4
        harness.check_accounting()


def test_slots_hold_while_four_workers_build(tmp_path: Path) -> None:
    """A slot is taken before the build: of four at once as many are built as may stay."""
    harness = Harness(
        tmp_path / "cache", prepare_concurrency=4, max_size_entries=3, eviction="none"
    )
    with harness, Gate() as gate:
        harness.prepared()
        timelines = [harness.timeline() for _ in range(4)]
        for timeline in timelines:
            stop_while_sending(timeline, gate)
            harness.send(timeline)
        gate.wait_for(2)
        assert total_count(harness.engine.index) == 3
        gate.open()
        harness.wait_idle()
        assert harness.counts() == {"ok": 3, "skip": 2}
        assert harness.skips == {"full": 2}
        harness.check_accounting()


def test_a_full_cache_refreshes_what_it_holds(tmp_path: Path) -> None:
    """With no byte and no slot free, a timeline with an entry still gets its next LSN."""
    with Harness(tmp_path / "cache", eviction="none") as harness:
        timelines = [harness.timeline() for _ in range(2)]
        for timeline in timelines:
            timeline.tarball = _shrinking
            harness.prepare(timeline)
        harness.reopen(max_total_size_bytes=disk_bytes(harness.dir), max_size_entries=2)
        harness.prepare(harness.timeline())
        assert harness.skips == {"full": 1}
        for lsn in (LSN_B, LSN_C):
            for timeline in timelines:
                timeline.advance(lsn)
                harness.prepare(timeline, lsn)
                assert harness.get(timeline, lsn) == _shrinking(lsn)
        assert harness.counts() == {"ok": 4, "skip": 1}
        harness.check_accounting()


def test_a_refresh_is_charged_for_what_exceeds_its_old_entry(tmp_path: Path) -> None:
    """A refresh that has grown beyond what is free is a skip, and the old entry stays."""
    limit_bytes = 3 * MIB
    harness = Harness(tmp_path / "cache", max_total_size_bytes=limit_bytes, eviction="none")
    with harness:
        other = harness.prepared(size_bytes=MIB)
        growing = harness.prepared(size_bytes=MIB)
        growing.advance(LSN_B)
        growing.tarball = lambda _at: noise(2 * MIB + MIB // 2)
        harness.prepare(growing, LSN_B)
        assert harness.skips == {"full": 1}
        assert harness.get(growing) == noise(MIB, int(LSN_A))
        growing.tarball = lambda _at: noise(2 * MIB - 2 * OVERHEAD_BYTES)
        harness.prepare(growing, LSN_B)
        assert harness.holds(growing, LSN_B)
        assert harness.holds(other)
        harness.check_accounting()


def test_a_replaced_file_that_cannot_be_unlinked_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replaced file that cannot be unlinked counts: there is no room for it twice."""
    limit_bytes = 3 * MIB + MIB // 2
    harness = Harness(tmp_path / "cache", max_total_size_bytes=limit_bytes, eviction="none")
    with harness:
        timeline = harness.prepared(size_bytes=MIB)
        timeline.advance(LSN_B)
        with monkeypatch.context() as patch:
            fail_with(patch, os, "unlink", OSError(errno.EACCES, "no", "x"))
            harness.prepare(timeline, LSN_B)
            assert _accounting(harness) == disk_bytes(harness.dir) > 2 * MIB
            newcomer = harness.timeline()
            newcomer.tarball = lambda _at: noise(2 * MIB)
            harness.prepare(newcomer)
            assert harness.skips == {"full": 1}
        harness.cache.run_cleanup()
        harness.cache.run_cleanup()  # what the failed build has left is gone too
        harness.prepare(newcomer)
        assert harness.holds(newcomer)
        harness.check_accounting()


def test_an_entry_that_can_never_fit_harms_no_other(tmp_path: Path) -> None:
    """It is a skip (`too_big`); entries stay, and the next build has all the room."""
    harness = Harness(tmp_path / "cache", max_total_size_bytes=4 * MIB)
    with harness:
        held = [harness.prepared(size_bytes=MIB // 2) for _ in range(2)]
        giant = harness.timeline()
        giant.tarball = lambda _at: noise(6 * MIB)
        for _ in range(3):
            harness.prepare(giant)
        assert sum(harness.skips.values()) == 3
        assert all(harness.get(timeline) for timeline in held)
        harness.check_accounting()
        big = harness.prepared(size_bytes=2 * MIB)
        assert harness.holds(big)


def test_an_entry_beyond_the_whole_limit_is_too_big_even_when_empty(tmp_path: Path) -> None:
    """An empty cache tells "never fits" from "no room now"."""
    with Harness(tmp_path / "cache", max_total_size_bytes=2 * MIB) as harness:
        giant = harness.timeline()
        giant.tarball = lambda _at: noise(4 * MIB)
        harness.prepare(giant)
        assert harness.skips == {"too_big": 1}
        assert _accounting(harness) == 0


@pytest.mark.parametrize("is_refresh", [False, True], ids=["new", "refresh"])
def test_max_entry_size_bytes(tmp_path: Path, is_refresh: bool) -> None:
    """An archive above the limit of one entry is a skip, also where it replaces one."""
    with Harness(tmp_path / "cache", max_entry_size_bytes=MIB) as harness:
        timeline = harness.prepared() if is_refresh else harness.timeline()
        timeline.advance(LSN_B)
        timeline.tarball = lambda _at: noise(MIB)
        harness.prepare(timeline, LSN_B)
        assert harness.skips == {"too_big": 1}
        assert harness.holds(timeline) == is_refresh
        timeline.tarball = lambda _at: noise(MIB - OVERHEAD_BYTES)
        harness.prepare(timeline, LSN_B)
        assert harness.holds(timeline, LSN_B)
        harness.check_accounting()


def test_a_limit_is_exact(tmp_path: Path) -> None:
    """An archive of just max_entry_size_bytes and max_total_size_bytes is admitted."""
    with Harness(tmp_path / "cache") as harness:
        timeline = harness.timeline()
        timeline.tarball = lambda _at: noise(5000)
        size_bytes = len(harness.sealed(timeline))
        harness.reopen(max_total_size_bytes=size_bytes, max_entry_size_bytes=size_bytes)
        harness.prepare(timeline)
        assert harness.holds(timeline)
        harness.reopen(max_total_size_bytes=size_bytes - 1, max_entry_size_bytes=None)
        timeline.advance(LSN_B)
        harness.cache.run_cleanup()
        harness.prepare(timeline, LSN_B)
        assert harness.skips == {"too_big": 1}


def _raise(_writer: TarballWriter, _lsn: Lsn) -> None:
    _writer.write(noise(2 * MIB))
    raise RuntimeError


def test_a_failed_build_gives_back_all_its_room(tmp_path: Path) -> None:
    """After any number of failures the cache has its slots and bytes."""
    harness = Harness(tmp_path / "cache", max_size_entries=1, max_total_size_bytes=4 * MIB)
    with harness:
        timeline = harness.timeline()
        timeline.on_send = _raise
        for _ in range(5):
            harness.prepare(timeline)
        assert harness.counts() == {"error": 5}
        assert _accounting(harness) == 0
        assert total_count(harness.engine.index) == 0
        timeline.on_send = None
        timeline.tarball = lambda _at: noise(3 * MIB)
        harness.prepare(timeline)
        assert harness.holds(timeline)
        harness.check_accounting()


def test_the_temporary_file_of_a_failed_build_counts_until_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary file that cannot be unlinked counts, and goes with a later clean-up."""
    with Harness(tmp_path / "cache", max_total_size_bytes=4 * MIB) as harness:
        timeline = harness.timeline()
        timeline.on_send = _raise
        with monkeypatch.context() as patch:
            fail_with(patch, os, "unlink", OSError(errno.EACCES, "no", "x"))
            harness.prepare(timeline)
        assert len(harness.temp_files()) == 1
        assert harness.value("bbcache_nonentry_bytes") >= disk_bytes(harness.dir) > MIB
        assert harness.value("bbcache_unlink_failures_total") == 1
        assert total_count(harness.engine.index) == 1
        harness.cache.run_cleanup()
        harness.check_accounting()


def test_quarantine_beside_a_refresh_keeps_the_limit(tmp_path: Path) -> None:
    """If a refresh leaves no room for the bad file, it is unlinked instead."""
    with Harness(tmp_path / "cache") as harness, Gate() as gate:
        timeline = harness.prepared(size_bytes=2 * MIB)
        limit_bytes = disk_bytes(harness.dir)
        harness.reopen(max_total_size_bytes=limit_bytes)
        path = harness.path(timeline)
        with path.open("r+b") as damaged:
            damaged.write(b"bad")

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            writer.write(noise(2 * MIB - OVERHEAD_BYTES))
            gate()

        timeline.on_send = send
        timeline.advance(LSN_B)
        harness.send(timeline, LSN_B)
        gate.wait_for()
        assert harness.get(timeline) is None
        assert harness.reads == {"error": 1}
        assert _accounting(harness) <= limit_bytes
        assert harness.quarantined() == []
        assert not path.exists()
        gate.open()
        harness.wait_idle()
        assert harness.holds(timeline, LSN_B)
        harness.check_accounting()


@pytest.mark.parametrize("how", ["cleanup", "ghost"])
def test_a_refresh_that_loses_its_entry_keeps_the_limit(tmp_path: Path, how: str) -> None:
    """A refresh whose entry goes meanwhile is charged in full, and nothing is over the limit."""
    with Harness(tmp_path / "cache") as harness, Gate() as gate:
        timeline = harness.prepared(size_bytes=MIB)
        limit_bytes = disk_bytes(harness.dir)
        harness.reopen(max_total_size_bytes=limit_bytes, max_size_entries=1)
        timeline.advance(LSN_B)

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            writer.write(noise(MIB // 2))
            gate()
            writer.write(noise(MIB // 4))

        timeline.on_send = send
        harness.send(timeline, LSN_B)
        gate.wait_for()
        if how == "cleanup":
            harness.cache.run_cleanup()
        else:
            harness.path(timeline).unlink()
            assert harness.get(timeline) is None
        assert _accounting(harness) <= limit_bytes
        assert total_count(harness.engine.index) == 1
        newcomer = harness.timeline()
        harness.send(newcomer)
        wait_until(lambda: harness.skips == {"full": 1})
        gate.open()
        harness.wait_idle()
        assert harness.holds(timeline, LSN_B)
        harness.check_accounting()


def test_bytes_are_counted_while_an_unlink_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removed file counts until the end of its unlink."""
    with Harness(tmp_path / "cache") as harness, Gate() as gate:
        timeline = harness.prepared(size_bytes=MIB)
        before = _accounting(harness)
        timeline.advance(LSN_B)
        with monkeypatch.context() as patch:
            stop_before(patch, os, "unlink", gate)
            step = Worker(harness.cache.run_cleanup)
            gate.wait_for()
            assert harness.cache.entries() == []
            assert _accounting(harness) == disk_bytes(harness.dir) == before
            assert not harness.cache.wait_idle(0)
            gate.open()
            step.result()
        harness.check_accounting()
