"""Limits that are exceeded when a cache starts, and other files that fill it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import (
    LSN_A,
    LSN_B,
    Harness,
    noise,
)

if TYPE_CHECKING:
    from pathlib import Path

    from bbcache import Lsn
    from bbcache.testing import MemoryTimeline


def _shrinking(lsn: Lsn) -> bytes:
    """A tarball that does not compress, and gets a little smaller with the LSN."""
    return noise(50_000 - int(lsn) // 16, int(lsn))


def _seed_three(harness: Harness) -> list[MemoryTimeline]:
    timelines = [harness.timeline() for _ in range(3)]
    for timeline in timelines:
        timeline.tarball = _shrinking
        harness.seed(timeline)
    return timelines


@pytest.mark.parametrize("limit", [{"max_size_entries": 2}, {"max_total_size_bytes": 100_000}])
def test_over_the_limit_at_the_start(tmp_path: Path, limit: dict[str, int]) -> None:
    """Entries are served and refreshed; new ones come once the cache is below its limits."""
    harness = Harness(tmp_path / "cache", **limit)
    timelines = _seed_three(harness)
    newcomer = harness.timeline()
    with harness:
        assert [harness.get(timeline) for timeline in timelines] == [_shrinking(LSN_A)] * 3
        harness.prepare(newcomer)
        assert harness.skips == {"full": 1}
        timelines[0].advance(LSN_B)
        harness.prepare(timelines[0], LSN_B)
        assert harness.get(timelines[0], LSN_B) == _shrinking(LSN_B)
        for timeline in timelines[1:]:
            timeline.advance(LSN_B)
            harness.cache.run_cleanup()
            harness.prepare(newcomer)
        assert harness.holds(newcomer)
        assert harness.skips["full"] in {1, 2}
        harness.check_accounting()


def test_a_limit_lowered_at_a_restart_deletes_nothing(tmp_path: Path) -> None:
    """The cache comes down to a lower limit by clean-up alone, also below one entry."""
    with Harness(tmp_path / "cache") as harness:
        timelines = [harness.prepared(size_bytes=50_000) for _ in range(5)]
        harness.reopen(max_size_entries=1, max_total_size_bytes=1000, max_entry_size_bytes=10)
        assert all(harness.get(timeline) for timeline in timelines)
        harness.cache.run_cleanup()
        assert len(harness.cache.entries()) == 5
        for timeline in timelines:
            timeline.advance(LSN_B)
        harness.cache.run_cleanup()
        assert harness.cache.entries() == []
        harness.check_accounting()


def test_foreign_files_and_quarantine_count(tmp_path: Path) -> None:
    """Foreign files take slots and bytes, quarantine bytes alone; both can fill a cache."""
    harness = Harness(tmp_path / "cache", max_size_entries=2)
    harness.dir.mkdir()
    (harness.dir / "foreign file").write_bytes(b"x" * 1000)
    quarantine = harness.dir / "quarantine"
    quarantine.mkdir()
    (quarantine / "evidence").write_bytes(b"y" * 5000)
    with harness:
        harness.prepared()
        harness.prepare(harness.timeline())
        assert harness.skips == {"full": 1}
        harness.check_accounting()
        harness.reopen(max_size_entries=10, max_total_size_bytes=6500)
        timeline = harness.timeline()
        timeline.tarball = lambda _at: noise(1000)
        harness.prepare(timeline)
        assert harness.skips == {"full": 1}
        (quarantine / "evidence").unlink()
        harness.cache.run_cleanup()
        harness.prepare(timeline)
        assert harness.holds(timeline)
