"""Entries that are never evicted, because their tenants say so."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import LSN_A, LSN_B, Harness, put

from bbcache import NotReadyError, PinningTenant, TimelineId

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache.testing import MemoryTimeline


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A cache that has room for four entries."""
    with Harness(tmp_path / "cache", max_size_entries=4) as opened:
        yield opened


def _pin(harness: Harness, *timelines: MemoryTimeline) -> None:
    ids = [timeline.timeline_id for timeline in timelines]
    put(harness.tenant, "pinned_timelines", lambda: ids)


def _filled(harness: Harness) -> list[MemoryTimeline]:
    """Four entries that stopped long ago, the first one first."""
    timelines = [harness.prepared() for _ in range(4)]
    for number, timeline in enumerate(timelines):
        at_s = time.time() - (9 - number) * 100_000
        os.utime(harness.path(timeline), (at_s, at_s))
    harness.reopen()
    harness.wait_idle()
    return timelines


def _raise() -> list[TimelineId]:
    raise RuntimeError("asked at a bad moment")


def test_a_pinned_entry_stays(harness: Harness) -> None:
    """The next one goes in its place, until the pin is taken back."""
    timelines = _filled(harness)
    _pin(harness, timelines[0])
    harness.prepared()
    assert list(map(harness.holds, timelines)) == [True, False, True, True]
    assert harness.value("bbcache_pinned_entries") == 1
    assert isinstance(harness.tenant, PinningTenant)
    _pin(harness)
    harness.cache.run_cleanup()
    assert harness.value("bbcache_pinned_entries") == 0
    harness.prepared()
    assert list(map(harness.holds, timelines)) == [False, False, True, True]


def test_each_tenant_is_asked_once_a_clean_up(harness: Harness) -> None:
    """Whatever must go then: a host may look its pins up in a slow place."""
    timelines, asked = _filled(harness), []

    def pinned_timelines() -> list[TimelineId]:
        asked.append(1)
        return [timelines[0].timeline_id]

    put(harness.tenant, "pinned_timelines", pinned_timelines)
    harness.cache.set_limits(dataclasses.replace(harness.config, max_size_entries=2))
    harness.cache.run_cleanup()
    assert len(asked) == 1
    harness.prepared()
    assert len(asked) == 1
    assert list(map(harness.holds, timelines)) == [True, False, False, False]


def test_what_cannot_fit_at_all_is_full(harness: Harness) -> None:
    """Foreign files and pins take all the room, so no entry is worth less than the newcomer."""
    timelines = _filled(harness)
    _pin(harness, *timelines[:2])
    for number in range(2):
        (harness.dir / f"foreign {number}").touch()
    harness.reopen()
    harness.wait_idle()
    for _ in range(2):
        harness.cache.run_cleanup()
    assert list(map(harness.holds, timelines)) == [True, True, False, False]
    harness.prepare(harness.timeline())
    assert harness.skips == {"full": 1}


def test_a_pinned_entry_that_is_outgrown_goes(harness: Harness) -> None:
    """It is of no use any more."""
    timelines = _filled(harness)
    _pin(harness, timelines[0])
    timelines[0].advance(LSN_B)
    harness.cache.run_cleanup()
    assert not harness.holds(timelines[0])


def test_unknown_keeps_the_pin(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """If the tenant raises, its last answer stands, and the failure is counted."""
    timelines = _filled(harness)
    _pin(harness, timelines[0])
    harness.cache.run_cleanup()
    put(harness.tenant, "pinned_timelines", _raise)
    harness.cache.run_cleanup()
    assert harness.value("bbcache_cleanup_errors_total") == 1
    assert "the pins of tenant" in caplog.text
    harness.prepared()
    assert list(map(harness.holds, timelines)) == [True, False, True, True]


def test_nothing_goes_before_the_pins_are_known(harness: Harness) -> None:
    """A host that is not ready may have pinned any entry."""
    timelines = _filled(harness)
    listed = harness.host.list
    put(harness.host, "list", _not_ready)
    harness.cache.set_limits(dataclasses.replace(harness.config, max_size_entries=2))
    harness.prepare(harness.timeline())
    harness.cache.run_cleanup()
    assert all(map(harness.holds, timelines))
    _pin(harness, timelines[0])
    put(harness.host, "list", listed)
    harness.cache.run_cleanup()
    assert list(map(harness.holds, timelines)) == [True, False, False, True]


def _not_ready() -> None:
    raise NotReadyError("later")


def test_pins_beyond_half_of_a_limit_are_refused(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """The cache keeps room for others; those that were accepted first stay accepted."""
    timelines = _filled(harness)
    _pin(harness, timelines[3])
    harness.cache.run_cleanup()
    assert "refused" not in caplog.text
    _pin(harness, *timelines)
    harness.cache.run_cleanup()
    assert harness.value("bbcache_pinned_entries") == 2
    assert "2 of 4 pinned timelines are refused" in caplog.text
    assert "\nhint: " in caplog.text
    for _ in range(2):
        harness.prepared()
    assert harness.holds(timelines[3])
    assert sum(map(harness.holds, timelines)) == 2


def test_pins_beyond_half_of_the_bytes_are_refused(harness: Harness) -> None:
    """Both limits count."""
    timelines = [harness.prepared(size_bytes=50_000) for _ in range(3)]
    harness.reopen(max_total_size_bytes=220_000)
    _pin(harness, *timelines)
    harness.cache.run_cleanup()
    assert harness.value("bbcache_pinned_entries") == 2


@pytest.mark.parametrize("answer", [None, 5, ["a text"], [LSN_A]])
def test_an_answer_that_makes_no_sense_is_an_error(harness: Harness, answer: object) -> None:
    """It is handled as a failure of the host."""
    timelines = _filled(harness)
    put(harness.tenant, "pinned_timelines", lambda: answer)
    harness.cache.run_cleanup()
    assert harness.value("bbcache_cleanup_errors_total") == 1
    assert all(map(harness.holds, timelines))
