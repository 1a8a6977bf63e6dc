"""`get` while the entry is replaced, removed or damaged: the old bytes or a miss."""

from __future__ import annotations

import functools
import gzip
import os
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import (
    LSN_A,
    LSN_B,
    Gate,
    Harness,
    Worker,
    noise,
    put,
    stop_before,
    stop_while_sending,
    tar_of,
)
from support.helpers import run_threads, wait_until
from support.shares import IS_NIGHTLY

from bbcache.archive import format as archive_format
from bbcache.storage.catalog import Catalog
from bbcache.storage.files import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache.testing import MemoryTimeline


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache."""
    with Harness(tmp_path / "cache") as opened:
        yield opened


def _replace(harness: Harness, timeline: MemoryTimeline) -> None:
    timeline.advance(LSN_B)
    harness.prepare(timeline, LSN_B)


def _remove(harness: Harness, timeline: MemoryTimeline) -> None:
    timeline.advance(LSN_B)
    harness.cache.run_cleanup()


def _remove_by_hand(harness: Harness, timeline: MemoryTimeline) -> None:
    harness.path(timeline).unlink()


@pytest.mark.parametrize("change", [_replace, _remove, _remove_by_hand])
def test_an_entry_gone_between_look_up_and_open_is_a_miss(
    harness: Harness, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`get` raises nothing, gives no wrong bytes, and leaves no ghost entry."""
    timeline = harness.prepared()
    with Gate() as gate:
        stop_before(monkeypatch, Store, "open", gate)
        reading = Worker(harness.get, timeline)
        gate.wait_for()  # the entry is looked up, its file not opened yet
        change(harness, timeline)
        gate.open()
        assert reading.result() is None
    assert harness.reads == {"miss": 1}
    harness.wait_idle()
    harness.check_accounting()


@pytest.mark.parametrize("size_bytes", [1000, 2000])
def test_an_entry_rebuilt_between_look_up_and_open(
    harness: Harness, size_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was published meanwhile at the same LSN is never removed."""
    timeline = harness.timeline()
    timeline.tarball = lambda _at: noise(1000)
    harness.prepare(timeline)
    old_size_bytes = harness.path(timeline).stat().st_size
    with Gate() as gate:
        with monkeypatch.context() as patch:
            stop_before(patch, Store, "open", gate)
            reading = Worker(harness.get, timeline)
            gate.wait_for()
        harness.path(timeline).unlink()
        assert harness.get(timeline) is None  # drops the ghost
        timeline.tarball = lambda _at: noise(size_bytes, seed=8)
        harness.prepare(timeline)
        has_same_size = harness.path(timeline).stat().st_size == old_size_bytes
        assert has_same_size == (size_bytes == 1000)
        gate.open()
        assert reading.result() == (noise(1000, seed=8) if has_same_size else None)
    assert harness.get(timeline) == noise(size_bytes, seed=8)
    assert harness.quarantined() == []
    harness.wait_idle()
    harness.check_accounting()


def test_a_reader_between_rename_and_index(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new file of another size than the old entry is a miss, and stays."""
    timeline = harness.timeline()
    timeline.tarball = lambda _at: noise(1000)
    harness.prepare(timeline)
    with Gate() as opening, Gate() as publishing, Gate() as judging:
        with monkeypatch.context() as patch:
            stop_before(patch, Store, "open", opening)
            reading = Worker(harness.get, timeline)
            opening.wait_for()
        harness.path(timeline).unlink()
        assert harness.get(timeline) is None  # drops the ghost
        stop_before(monkeypatch, harness.engine.index, "commit", publishing)
        timeline.tarball = lambda _at: noise(3000)
        harness.send(timeline)
        publishing.wait_for()  # renamed, not indexed
        judging.open()
        stop_before(monkeypatch, Catalog, "quarantine", judging)
        opening.open()
        judging.wait_for()  # the reader has found the size wrong
        publishing.open()
        assert reading.result() is None
    harness.wait_idle()
    assert harness.get(timeline) == noise(3000)
    assert harness.quarantined() == []
    harness.check_accounting()


def test_a_bad_archive_is_taken_out_once(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two readers that find one file bad, one removes it; the other gets a miss."""
    timeline = harness.prepared()
    harness.path(timeline).write_bytes(b"bad")
    with Gate() as gate, monkeypatch.context() as patch:
        stop_before(patch, Catalog, "quarantine", gate)
        readers = [Worker(harness.get, timeline) for _ in range(2)]
        gate.wait_for(2)
        gate.open()
        assert [reader.result() for reader in readers] == [None, None]
    harness.wait_idle()
    assert harness.reads == {"error": 1, "miss": 1}
    assert harness.counts() == {"ok": 2}
    assert len(harness.quarantined()) == 1
    assert harness.get(timeline) == tar_of(timeline)


def test_a_late_proof_of_badness_never_hits_the_rebuilt_file(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader with the bad file open gets a miss once the entry is rebuilt."""
    timeline = harness.prepared()
    harness.path(timeline).write_bytes(harness.path(timeline).read_bytes()[:-4] + b"evil")
    with Gate() as gate:
        with monkeypatch.context() as patch:
            stop_before(patch, archive_format, "xxh3_128", gate)
            late = Worker(harness.get, timeline)
            gate.wait_for()  # the bad file is open, its digest not computed
        assert harness.get(timeline) is None
        harness.wait_idle()
        assert harness.get(timeline) == tar_of(timeline)
        gate.open()
        assert late.result() is None
    assert harness.reads == {"hit": 1, "error": 1, "miss": 1}
    assert harness.get(timeline) == tar_of(timeline)
    assert len(harness.quarantined()) == 1
    harness.wait_idle()
    harness.check_accounting()


def test_a_bad_entry_outgrown_meanwhile_is_a_miss(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that finds a bad file changes nothing if clean-up has removed the entry."""
    timeline = harness.prepared()
    harness.path(timeline).write_bytes(b"bad")
    with Gate() as gate, monkeypatch.context() as patch:
        stop_before(patch, Catalog, "quarantine", gate)
        reading = Worker(harness.get, timeline)
        gate.wait_for()
        timeline.advance(LSN_B)
        harness.cache.run_cleanup()
        gate.open()
        assert reading.result() is None
    assert harness.reads == {"miss": 1}
    assert harness.quarantined() == []
    harness.wait_idle()
    harness.check_accounting()


def test_nothing_on_the_disk_holds_up_a_read(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hits and misses do not wait for an unlink that hangs."""
    wanted, gone = harness.prepared(), harness.prepared()
    gone.advance(LSN_B)
    with Gate() as gate, monkeypatch.context() as patch:
        stop_before(patch, os, "unlink", gate)
        step = Worker(harness.cache.run_cleanup)
        gate.wait_for()
        assert harness.get(wanted) == tar_of(wanted)
        assert harness.get(gone) is None
        assert harness.get(harness.timeline()) is None
        harness.path(wanted).rename(harness.dir.parent / "away")
        assert harness.get(wanted) is None  # also the miss that drops a ghost
        assert not harness.holds(wanted)
        gate.open()
        step.result()
    assert harness.reads == {"hit": 1, "miss": 3}


def test_no_callback_of_the_host_holds_up_a_read(harness: Harness) -> None:
    """Hits and misses do not wait for callbacks of the host."""
    wanted, built = harness.prepared(), harness.timeline()
    with Gate() as building, Gate() as judging:
        stop_while_sending(built, building)
        harness.send(built)
        building.wait_for()
        put(harness.tenant, "list_timelines", judging)
        step = Worker(harness.cache.run_cleanup)
        judging.wait_for()
        assert harness.get(wanted) == tar_of(wanted)
        assert harness.get(built) is None
        judging.open()
        step.result()


class _NoDisk:
    """Replaces the module os where it must not be used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"os.{name} was called")


def test_a_miss_touches_no_disk(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A miss makes no system call."""
    timeline = harness.prepared()
    with monkeypatch.context() as patch:
        for part in (
            "archive.format",
            "storage.dirlock",
            "storage.catalog",
            "storage.files",
        ):
            patch.setattr(f"bbcache.{part}.os", _NoDisk())
        assert harness.get(timeline, LSN_B) is None
        assert harness.get(harness.timeline()) is None
        with pytest.raises(AssertionError, match=r"os\..* was called"):
            harness.get(timeline)
    assert harness.reads == {"miss": 2}


def test_many_readers_of_what_is_being_replaced(harness: Harness) -> None:
    """Readers beside a timeline that goes on get the exact bytes of their LSN, or a miss."""
    timeline = harness.timeline()
    lsns = [LSN_A + step for step in range(40 if IS_NIGHTLY else 12)]
    expected = {lsn: timeline.tarball(lsn) for lsn in lsns}
    is_over = False
    hits = []

    def read() -> None:
        while not is_over:
            for lsn in lsns:
                file = harness.open_file(timeline, lsn)
                if file is not None:
                    with file:
                        assert gzip.decompress(file.read()) == expected[lsn]
                    hits.append(lsn)

    def seen_since(count: int) -> bool:
        return len(hits) > count

    def check_cancelled() -> None:
        nonlocal is_over
        try:
            for lsn in lsns:
                timeline.advance(lsn)
                harness.prepare(timeline, lsn)
                wait_until(functools.partial(seen_since, len(hits)))
                harness.cache.run_cleanup()
        finally:
            is_over = True

    run_threads([read, read, read, check_cancelled])
    assert set(hits) == set(lsns)
    assert harness.reads.keys() == {"hit", "miss"}
    harness.check_accounting()
