"""A full cache: what goes for a newcomer, when, and what never goes."""

from __future__ import annotations

import errno
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

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
    fail_with,
    noise,
    put,
    stop_before,
    stop_while_sending,
    tar_of,
)
from support.helpers import wait_until
from support.ledger import total_count
from support.locks import WatchedLock, watched_locks

from bbcache import TimelineId
from bbcache.eviction import ReturnRate
from bbcache.storage.files import TempFile
from bbcache.storage.index import make_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline

HOUR_S = 3600.0


def _age(harness: Harness, timeline: MemoryTimeline, age_s: float, lsn: Lsn = LSN_A) -> None:
    """Give an entry's file another age; a start takes it for the time of the stop."""
    at_s = time.time() - age_s
    os.utime(harness.path(timeline, lsn), (at_s, at_s))


def _filled(harness: Harness, count: int, **settings: Any) -> list[MemoryTimeline]:
    """Entries that stopped hours ago, the first one first, in a cache that is full of them."""
    timelines = [harness.prepared() for _ in range(count)]
    for number, timeline in enumerate(timelines):
        _age(harness, timeline, (count - number) * 10 * HOUR_S)
    harness.reopen(max_size_entries=count, **settings)
    harness.wait_idle()
    return timelines


def _never_asked(_writer: TarballWriter, _lsn: Lsn) -> None:
    pytest.fail("the basebackup was built")


@pytest.fixture
def harness(tmp_path: Path) -> Any:
    """A cache that is not full yet."""
    with Harness(tmp_path / "cache") as opened:
        yield opened


@pytest.mark.parametrize("eviction", ["return-rate", "oldest"])
def test_the_least_likely_goes(harness: Harness, eviction: str) -> None:
    """A newcomer takes the place of the entry that stopped first."""
    first, *others = _filled(harness, 3, eviction=eviction)
    newcomer = harness.timeline()
    harness.prepare(newcomer)
    assert harness.holds(newcomer)
    assert not harness.holds(first)
    assert all(harness.holds(other) for other in others)
    assert harness.counts("bbcache_removals_total") == {"newcomer": 1}
    (outcome,) = harness.cache.explain(harness.tenant.tenant_id, first.timeline_id).outcomes
    assert (outcome.what, outcome.result) == ("removal", "newcomer")
    assert str(newcomer.timeline_id) in outcome.text
    harness.check_accounting()


def test_a_newcomer_that_is_worth_least_is_declined(harness: Harness) -> None:
    """It is not built, and nothing goes."""
    timelines = _filled(harness, 3)
    for timeline in timelines:
        _age(harness, timeline, 0)
    harness.reopen()
    harness.wait_idle()
    newcomer = harness.timeline()
    newcomer.on_send = _never_asked
    harness.prepare(newcomer)
    assert harness.skips == {"declined": 1}
    assert all(map(harness.holds, timelines))


def test_a_cache_without_eviction_is_full(harness: Harness) -> None:
    """As Neon's, it skips the newcomer."""
    timelines = _filled(harness, 3, eviction="none")
    harness.prepare(harness.timeline())
    assert harness.skips == {"full": 1}
    assert all(map(harness.holds, timelines))


def test_the_decision_comes_after_the_lsn(harness: Harness) -> None:
    """Nothing goes for a prepare whose LSN is not reached, or that its timeline outgrows."""
    timelines = _filled(harness, 2, wait_lsn_timeout=0.01)
    ahead = harness.timeline()
    harness.prepare(ahead, LSN_B)
    outgrown = harness.timeline()
    outgrown.on_wait = lambda _lsn, _timeout: outgrown.advance(LSN_B)
    harness.prepare(outgrown)
    assert harness.counts() == {"error": 1, "skip": 1}
    assert all(map(harness.holds, timelines))


def test_a_build_that_outgrows_its_plan_evicts_more(harness: Harness) -> None:
    """The plan is the mean of all archives; a larger archive plans again while it is written."""
    timelines = [harness.prepared(size_bytes=MIB // 4) for _ in range(4)]
    for number, timeline in enumerate(timelines):
        _age(harness, timeline, (40 - number) * 10 * HOUR_S)
    harness.reopen(max_total_size_bytes=MIB + MIB // 20)
    harness.wait_idle()
    large = harness.prepared(size_bytes=3 * MIB // 4)
    assert [harness.holds(each) for each in timelines] == [False, False, False, True]
    assert harness.holds(large)
    assert harness.counts("bbcache_removals_total") == {"newcomer": 3}
    harness.check_accounting()


def test_an_archive_that_was_too_big_evicts_nothing_again(harness: Harness) -> None:
    """Its size is remembered, so the next build has the room that is free, and no more."""
    first, second = (harness.prepared(size_bytes=MIB // 4) for _ in range(2))
    for timeline in (first, second):
        _age(harness, timeline, 400 * HOUR_S)
    harness.reopen(max_total_size_bytes=MIB)
    harness.wait_idle()
    giant = harness.timeline()
    giant.tarball = lambda _at: noise(3 * MIB)
    harness.prepare(giant)
    assert harness.skips == {"too_big": 1}
    harness.prepare(first, LSN_A)
    held = len(harness.cache.entries())
    harness.prepare(giant)
    assert len(harness.cache.entries()) == held


def test_a_refresh_is_never_declined(harness: Harness) -> None:
    """Its timeline keeps its place, and what it has grown by goes from others."""
    timelines = [harness.prepared(size_bytes=MIB // 4) for _ in range(3)]
    harness.reopen(max_total_size_bytes=MIB)
    harness.wait_idle()
    refreshed = timelines[0]
    _age(harness, refreshed, 1000 * HOUR_S)
    refreshed.tarball = lambda at: noise(MIB // 2 + MIB // 8, int(at))
    refreshed.advance(LSN_B)
    harness.prepare(refreshed, LSN_B)
    assert harness.holds(refreshed, LSN_B)
    assert len(harness.cache.entries()) == 2
    harness.check_accounting()


def test_the_entry_of_a_refresh_is_no_candidate(harness: Harness) -> None:
    """While its timeline is built again, the next one goes in its place."""
    first, second = _filled(harness, 2, prepare_concurrency=2)
    with Gate() as gate:
        stop_while_sending(first, gate)
        first.advance(LSN_B)
        harness.send(first, LSN_B)
        gate.wait_for()
        newcomer = harness.timeline()
        harness.send(newcomer)
        wait_until(lambda: harness.holds(newcomer))
        assert harness.holds(first)
        assert not harness.holds(second)
        gate.open()
        harness.wait_idle()
    assert harness.holds(first, LSN_B)
    harness.check_accounting()


def test_a_get_or_prepare_never_evicts(harness: Harness) -> None:
    """Its timeline has just started: the archive is built for the caller alone."""
    timelines = _filled(harness, 2)
    newcomer = harness.timeline()
    ids = harness.tenant.tenant_shard_id, newcomer.timeline_id, LSN_A
    with harness.cache.get_or_prepare(*ids, DEADLINE_S) as file:
        assert file.is_unpublished
    harness.wait_idle()
    assert harness.skips == {"declined": 1}
    assert all(map(harness.holds, timelines))


def test_a_timeline_that_has_started_goes_first(harness: Harness) -> None:
    """A hit makes the archive useless, also for one that stopped last."""
    harness.reopen(max_size_entries=3)
    timelines = [harness.prepared() for _ in range(3)]
    assert harness.get(timelines[2]) is not None
    harness.prepared()
    assert list(map(harness.holds, timelines)) == [True, True, False]


@pytest.mark.parametrize("eviction", ["return-rate", "oldest"])
def test_a_start_soon_after_a_restart_counts(harness: Harness, eviction: str) -> None:
    """Also of an entry without saved habits, before the policy was told of it."""
    timelines = _filled(harness, 3, eviction=eviction)
    assert harness.get(timelines[2]) is not None
    harness.prepared()
    assert list(map(harness.holds, timelines)) == [True, True, False]


def test_a_stop_after_such_a_start_counts(harness: Harness) -> None:
    """The refreshed archive is wanted again, though its timeline had started."""
    timelines = _filled(harness, 3)
    assert harness.get(timelines[2]) is not None
    timelines[2].advance(LSN_B)
    harness.prepare(timelines[2], LSN_B)
    harness.prepared()
    assert list(map(harness.holds, timelines[:2])) == [False, True]
    assert harness.holds(timelines[2], LSN_B)


def test_a_rebuild_evicts_nothing(harness: Harness) -> None:
    """A bad archive was asked for, so its timeline has started."""
    timelines = _filled(harness, 2, verify_reads="always")
    foreign = harness.dir / "foreign file"
    harness.path(timelines[0]).write_bytes(b"bad")
    foreign.write_bytes(b"x")
    harness.reopen()
    assert harness.get(timelines[0]) is None
    harness.wait_idle()
    assert harness.holds(timelines[1])
    assert "newcomer" not in harness.counts("bbcache_removals_total")


def test_a_timeline_in_back_off_evicts_nothing(harness: Harness) -> None:
    """Its last build has failed: it would evict in vain."""
    timelines = _filled(harness, 2)
    failing = harness.timeline()
    fails = True

    def send(writer: TarballWriter, lsn: Lsn) -> None:
        if fails:
            raise RuntimeError("the build fails")
        writer.write(tar_of(failing, lsn))

    failing.on_send = send
    harness.prepare(failing)  # evicts the first one
    assert list(map(harness.holds, timelines)) == [False, True]
    harness.prepare(harness.timeline())
    fails = False
    harness.prepare(failing)
    assert harness.counts() == {"error": 1, "ok": 1, "skip": 1}
    assert harness.skips == {"declined": 1}
    assert harness.holds(timelines[1])


def test_a_disk_that_refuses_to_unlink_drains_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The entry stays, and nothing more is tried before the next clean-up."""
    timelines = _filled(harness, 3)
    with monkeypatch.context() as patch:
        path = harness.path(timelines[0])
        fail_with(patch, os, "unlink", OSError(errno.EACCES, "Permission denied", str(path)))
        for _ in range(3):
            harness.prepare(harness.timeline())
    assert harness.skips == {"full": 3}
    assert harness.value("bbcache_eviction_failures_total") == 1
    (line,) = [each for each in caplog.records if each.name == "bbcache.storage.evictor"]
    assert "Permission denied; nothing is evicted before the next clean-up" in line.getMessage()
    assert all(harness.get(timeline) for timeline in timelines)
    harness.prepare(harness.timeline())
    assert harness.skips == {"full": 4}
    harness.cache.run_cleanup()
    harness.prepared()
    harness.check_accounting()


def test_quarantine_goes_before_entries(harness: Harness) -> None:
    """The oldest quarantined archive makes room for bytes first."""
    timelines = [harness.prepared(size_bytes=MIB // 4) for _ in range(3)]
    for timeline in timelines:
        _age(harness, timeline, 100 * HOUR_S)
    harness.reopen(max_total_size_bytes=MIB)
    harness.wait_idle()
    bad = timelines[0]
    content = bytearray(harness.path(bad).read_bytes())
    content[-1] ^= 1
    harness.path(bad).write_bytes(content)
    bad.advance(LSN_B)  # so that it is not rebuilt
    assert harness.get(bad) is None
    harness.wait_idle()
    assert len(harness.quarantined()) == 1
    newcomers = [harness.prepared(size_bytes=MIB // 4) for _ in range(2)]
    assert harness.quarantined() == []
    assert all(map(harness.holds, [*timelines[1:], *newcomers]))
    assert harness.counts("bbcache_removals_total") == {}
    harness.check_accounting()


def test_locks_of_an_eviction(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file is removed under the locks that order removals; the log and the host wait for none.

    A decision holds the lock of the policy alone, so no read waits for it.
    """
    with watched_locks() as locks:
        timelines = _filled(harness, 2)
    put(harness.tenant, "pinned_timelines", lambda: look("pins") and [])
    held: dict[str, set[WatchedLock]] = {}

    def look(what: str) -> bool:
        held.setdefault(what, set()).update(lock for lock in locks if lock.is_mine)
        return True

    stop_before(monkeypatch, os, "unlink", lambda: look("unlink"))
    stop_before(monkeypatch, harness.host, "list", lambda: look("list"))
    stop_before(monkeypatch, ReturnRate, "cheaper", lambda: look("decision"))
    stop_before(monkeypatch, ReturnRate, "started", lambda: look("start"))
    caplog.set_level("DEBUG")
    monkeypatch.setattr(caplog.handler, "filters", [lambda _record: look("log")])
    assert harness.get(timelines[1]) is not None
    harness.prepared()
    assert not harness.holds(timelines[1])
    assert held.keys() == {"unlink", "list", "pins", "log", "decision", "start"}
    assert not held["log"] | held["list"] | held["pins"]
    assert len(held["unlink"]) == 2  # that of making room, and the file lock
    assert harness.engine.index.lock not in held["decision"] | held["start"]
    assert len(held["decision"]) == 2  # that of making room, and that of the policy


def test_no_read_waits_for_a_decision(harness: Harness) -> None:
    """A hit and a miss append to a queue, also while the policy is busy."""
    timeline = harness.prepared()
    with harness.engine.policy.asked():
        assert Worker(harness.get, timeline).result() is not None
        assert Worker(harness.get, timeline, LSN_B).result() is None


def test_limits_hold_while_four_workers_evict(harness: Harness) -> None:
    """Newcomers in parallel evict as many as they need, and no limit is passed."""
    _filled(harness, 8, prepare_concurrency=4)
    newcomers = [harness.timeline() for _ in range(8)]
    with Gate() as gate:
        for newcomer in newcomers:
            stop_while_sending(newcomer, gate)
            harness.send(newcomer)
        gate.wait_for(4)
        assert total_count(harness.engine.index) == 8
        gate.open()
        harness.wait_idle()
    assert all(map(harness.holds, newcomers))
    assert harness.counts("bbcache_removals_total") == {"newcomer": 8}
    harness.check_accounting()


def test_habits_survive_a_restart(harness: Harness) -> None:
    """They are saved with the period of clean-up, and taken at the next start."""
    harness.reopen(cleanup_period=0.02)
    timeline = harness.timeline()
    for lsn in (LSN_A, LSN_B, LSN_C):
        timeline.advance(lsn)
        harness.prepare(timeline, lsn)
        assert harness.get(timeline, lsn) is not None
    saved = harness.dir / ".bbcache.habits"
    wait_until(lambda: saved.exists() and _sleeps_seen(saved.read_bytes(), harness, timeline) == 3)
    harness.reopen(cleanup_period=3600.0)
    harness.wait_idle()
    standing = harness.engine.evictor.standing(_key(harness, timeline))
    assert standing.habits.sleeps_seen == 3
    assert harness.cache.entries()[0].timeline_id == timeline.timeline_id
    harness.check_accounting()


def test_reads_of_unknown_timelines_are_not_remembered(harness: Harness) -> None:
    """Only a prepare makes a record, so no client fills the memory with invented ids."""
    sizes = []
    harness.prepared()
    for read in (lambda: None, partial(_read_unknown, harness), harness.prepared):
        read()
        with harness.engine.policy.asked() as (policy, _):
            sizes.append(len(policy.save()))
    assert sizes[0] == sizes[1] < sizes[2]


@pytest.mark.parametrize("content", [b"", b"junk", b"bbcache habits 1\n" + bytes(100)])
def test_damaged_habits_are_a_slower_start(
    harness: Harness, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The cache starts without them, warns, and replaces them."""
    harness.cache.close(DEADLINE_S)
    saved = harness.dir / ".bbcache.habits"
    saved.write_bytes(content)
    harness.open(cleanup_period=0.02)
    harness.wait_idle()
    assert ("the saved habits are damaged" in caplog.text) == bool(content)
    timeline = harness.prepared()
    wait_until(lambda: saved.exists() and _sleeps_seen(saved.read_bytes(), harness, timeline) == 0)
    harness.reopen(cleanup_period=3600.0)
    harness.check_accounting()


def test_habits_that_are_huge_leave_room(harness: Harness) -> None:
    """A file that nobody could have saved is neither read nor kept: it would fill the limit."""
    harness.prepared()
    harness.cache.close()
    with (harness.dir / ".bbcache.habits").open("wb") as file:
        file.truncate(1 << 40)
    harness.open()
    harness.wait_idle()
    harness.cache.run_cleanup()
    assert len(harness.cache.entries()) == 1
    harness.prepared()


@pytest.mark.parametrize("policy", ["oldest", "none"])
def test_the_habits_of_another_policy_are_kept(
    harness: Harness, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator who compares policies loses nothing, and is told of no damage."""
    harness.prepared()
    harness.engine.cleaner.save_habits()
    saved = harness.dir / ".bbcache.habits"
    before = saved.read_bytes()
    harness.reopen(eviction=policy)
    harness.wait_idle()
    harness.engine.cleaner.save_habits()
    assert saved.read_bytes() == before
    assert "damaged" not in caplog.text


def test_habits_that_cannot_be_saved_are_counted(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure is an error of clean-up, and no temporary file is left."""
    harness.prepared()
    fail_with(monkeypatch, TempFile, "append", OSError(errno.EIO, os.strerror(errno.EIO)))
    harness.engine.cleaner.save_habits()
    assert harness.value("bbcache_cleanup_errors_total") == 1
    assert "cannot save the habits" in caplog.text
    assert harness.temp_files() == []


@pytest.mark.parametrize("fails_at", ["the save", "the next upkeep"])
def test_habits_that_cannot_be_examined_keep_their_size(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    """A file that is there counts, whatever cannot be asked about it."""
    harness.prepared()
    if fails_at == "the next upkeep":
        harness.engine.cleaner.save_habits()
    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", partial(_lstat_of_all_but_habits, os.lstat))
        harness.engine.cleaner.save_habits()
        if fails_at == "the next upkeep":
            harness.engine.cleaner.step()
    assert (harness.dir / ".bbcache.habits").exists()
    harness.check_accounting()


def test_habits_that_have_no_room_are_not_saved(harness: Harness) -> None:
    """The limit of bytes holds for them too."""
    harness.reopen(max_total_size_bytes=50)
    harness.cache.get(harness.tenant.tenant_id, harness.timeline().timeline_id, LSN_A)
    harness.engine.cleaner.save_habits()
    assert not (harness.dir / ".bbcache.habits").exists()
    harness.check_accounting()


def _read_unknown(harness: Harness) -> None:
    for _ in range(100):
        assert harness.cache.get(harness.tenant.tenant_id, TimelineId.generate(), LSN_A) is None


def _lstat_of_all_but_habits(
    really: Callable[..., os.stat_result], path: Any, **options: Any
) -> os.stat_result:
    if str(path).endswith(".bbcache.habits"):
        raise PermissionError(errno.EACCES, "closed")
    return really(path, **options)


def _key(harness: Harness, timeline: MemoryTimeline) -> bytes:
    return make_key(harness.tenant.tenant_id, timeline.timeline_id)


def _sleeps_seen(data: bytes, harness: Harness, timeline: MemoryTimeline) -> int:
    policy = ReturnRate(10)
    policy.load(data, time.time())
    habits = policy.habits(_key(harness, timeline), time.time())
    return -1 if habits is None else habits.sleeps_seen
