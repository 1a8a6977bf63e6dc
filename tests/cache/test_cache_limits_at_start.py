"""Limits that are exceeded when a cache starts, and other files that fill it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import (
    LSN_A,
    LSN_B,
    Harness,
    noise,
)

from bbcache import TenantState
from bbcache.errors import ArgumentError

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


@pytest.mark.parametrize("eviction", ["return-rate", "oldest", "none"])
@pytest.mark.parametrize("limit", [{"max_size_entries": 2}, {"max_total_size_bytes": 100_000}])
def test_over_the_limit_at_the_start(tmp_path: Path, limit: dict[str, int], eviction: str) -> None:
    """Entries are served and refreshed, nothing new is admitted, and clean-up shrinks the cache."""
    harness = Harness(tmp_path / "cache", eviction=eviction, **limit)
    timelines = _seed_three(harness)
    newcomer = harness.timeline()
    with harness:
        assert [harness.get(timeline) for timeline in timelines] == [_shrinking(LSN_A)] * 3
        harness.prepare(newcomer)
        assert harness.skips == {"full": 1}
        timelines[0].advance(LSN_B)
        harness.prepare(timelines[0], LSN_B)
        assert harness.get(timelines[0], LSN_B) == _shrinking(LSN_B)
        harness.cache.run_cleanup()
        assert len(harness.cache.entries()) == 2
        assert harness.counts("bbcache_removals_total") == {"over_limit": 1}
        harness.check_accounting()


def test_a_limit_lowered_at_a_restart_shrinks_the_cache(tmp_path: Path) -> None:
    """Clean-up removes the entries beyond a lower limit, also one below a single entry."""
    with Harness(tmp_path / "cache") as harness:
        timelines = [harness.prepared(size_bytes=50_000) for _ in range(5)]
        harness.reopen(max_size_entries=3)
        assert all(harness.get(timeline) for timeline in timelines)
        harness.cache.run_cleanup()
        assert len(harness.cache.entries()) == 3
        harness.reopen(max_total_size_bytes=1000, max_entry_size_bytes=10)
        harness.cache.run_cleanup()
        assert harness.cache.entries() == []
        harness.check_accounting()


def test_limits_lowered_at_a_reload_shrink_the_cache(tmp_path: Path) -> None:
    """`set_limits` holds for newcomers at once, and for entries from the next clean-up on."""
    with Harness(tmp_path / "cache") as harness:
        for _ in range(5):
            harness.prepared()
        harness.cache.set_limits(dataclasses.replace(harness.config, max_size_entries=2))
        assert len(harness.cache.entries()) == 5
        harness.prepare(harness.timeline())
        assert harness.skips == {"full": 1}
        harness.cache.run_cleanup()
        assert len(harness.cache.entries()) == 2
        harness.check_accounting()


@pytest.mark.parametrize(
    ("eviction", "skips", "other"),
    [("return-rate", {}, "none"), ("none", {"full": 1}, "return-rate")],
)
def test_a_reload_takes_the_limits_alone(
    tmp_path: Path, eviction: str, skips: dict[str, int], other: Any
) -> None:
    """A policy is for the next start: half of one would decide and the other half would evict."""
    with Harness(tmp_path / "cache", eviction=eviction, max_size_entries=2) as harness:
        held = [harness.prepared() for _ in range(2)]
        assert all(harness.get(timeline) for timeline in held)
        harness.cache.set_limits(dataclasses.replace(harness.config, eviction=other))
        harness.prepare(harness.timeline())
        assert harness.skips == skips


def test_limits_of_a_wrong_type_are_refused(tmp_path: Path) -> None:
    """The error says what to pass, and the limits from before hold."""
    with Harness(tmp_path / "cache", max_size_entries=1) as harness:
        harness.prepared()
        limits: Any = {"max_size_entries": 2}
        with pytest.raises(ArgumentError, match="config must be a BasebackupCacheConfig"):
            harness.cache.set_limits(limits)
        harness.prepare(harness.timeline())
        assert len(harness.cache.entries()) == 1


def test_a_cache_shrinks_at_a_bounded_rate(tmp_path: Path) -> None:
    """One clean-up removes at most 1,000 entries or a tenth of them, the next ones the rest."""
    harness = Harness(tmp_path / "cache", max_size_entries=5)
    content = harness.sealed(harness.timeline())
    harness.dir.mkdir()
    for number in range(1010):
        name = f"basebackup_{harness.tenant.tenant_id}_{number:032x}_0000000000001000.tar.gz"
        (harness.dir / name).write_bytes(content)
    harness.tenant.state = TenantState.ATTACHING
    with harness:
        counts = []
        for _ in range(3):
            harness.cache.run_cleanup()
            counts.append(len(harness.cache.entries()))
        assert counts == [10, 5, 5]


def test_foreign_files_and_quarantine_count(tmp_path: Path) -> None:
    """Foreign files take slots and bytes, quarantine bytes alone; both can fill a cache."""
    harness = Harness(tmp_path / "cache", max_size_entries=2, eviction="none")
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
