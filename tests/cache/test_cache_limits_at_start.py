"""Limits that are passed already when a cache starts, and what else fills it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import (
    LSN_A,
    LSN_B,
    Rig,
    noise,
)

if TYPE_CHECKING:
    from pathlib import Path

    from bbcache import Lsn
    from bbcache.testing import MemoryTimeline


def _shrinking(lsn: Lsn) -> bytes:
    """A tarball that does not compress, and gets a little smaller with the LSN."""
    return noise(50_000 - int(lsn) // 16, int(lsn))


def _seed_three(rig: Rig) -> list[MemoryTimeline]:
    timelines = [rig.timeline() for _ in range(3)]
    for timeline in timelines:
        timeline.tarball = _shrinking
        rig.seed(timeline)
    return timelines


@pytest.mark.parametrize("limit", [{"max_size_entries": 2}, {"max_total_size_bytes": 100_000}])
def test_over_the_limit_at_the_start(tmp_path: Path, limit: dict[str, int]) -> None:
    """What is there is served, refreshed, and nothing new comes until it is below."""
    rig = Rig(tmp_path / "cache", **limit)
    timelines = _seed_three(rig)
    newcomer = rig.timeline()
    with rig:
        assert [rig.get(timeline) for timeline in timelines] == [_shrinking(LSN_A)] * 3
        rig.prepare(newcomer)
        assert rig.skips == {"full": 1}
        timelines[0].advance(LSN_B)
        rig.prepare(timelines[0], LSN_B)
        assert rig.get(timelines[0], LSN_B) == _shrinking(LSN_B)
        for timeline in timelines[1:]:
            timeline.advance(LSN_B)
            rig.cache.run_cleanup()
            rig.prepare(newcomer)
        assert rig.holds(newcomer)
        assert rig.skips["full"] in {1, 2}
        rig.check_books()


def test_a_limit_lowered_at_a_restart_deletes_nothing(tmp_path: Path) -> None:
    """The cache comes down to a lower limit by clean-up alone, also below one entry."""
    with Rig(tmp_path / "cache") as rig:
        timelines = [rig.prepared(size_bytes=50_000) for _ in range(5)]
        rig.reopen(max_size_entries=1, max_total_size_bytes=1000, max_entry_size_bytes=10)
        assert all(rig.get(timeline) for timeline in timelines)
        rig.cache.run_cleanup()
        assert len(rig.cache.entries()) == 5
        for timeline in timelines:
            timeline.advance(LSN_B)
        rig.cache.run_cleanup()
        assert rig.cache.entries() == []
        rig.check_books()


def test_strays_and_quarantine_count(tmp_path: Path) -> None:
    """Strays take slots and bytes, quarantine bytes alone; both can fill a cache."""
    rig = Rig(tmp_path / "cache", max_size_entries=2)
    rig.dir.mkdir()
    (rig.dir / "stray").write_bytes(b"x" * 1000)
    quarantine = rig.dir / "quarantine"
    quarantine.mkdir()
    (quarantine / "evidence").write_bytes(b"y" * 5000)
    with rig:
        rig.prepared()
        rig.prepare(rig.timeline())
        assert rig.skips == {"full": 1}
        rig.check_books()
        rig.reopen(max_size_entries=10, max_total_size_bytes=6500)
        timeline = rig.timeline()
        timeline.tarball = lambda _at: noise(1000)
        rig.prepare(timeline)
        assert rig.skips == {"full": 1}
        (quarantine / "evidence").unlink()
        rig.cache.run_cleanup()
        rig.prepare(timeline)
        assert rig.holds(timeline)
