"""`BasebackupCache.explain`: why a timeline has an entry, or has none."""

from __future__ import annotations

import dataclasses
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    LSN_B,
    Gate,
    Harness,
    Worker,
    put,
    stop_while_sending,
)
from support.fill_helpers import fill, fillers
from support.helpers import wait_until

from bbcache import BasebackupCache, Explanation, TenantId, TenantState, TimelineId
from bbcache.errors import ArgumentError, FillError
from bbcache.testing import MemoryHost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A cache, and a host with one tenant."""
    with Harness(tmp_path / "cache") as harness:
        yield harness


def explain(harness: Harness, timeline: MemoryTimeline, **options: Any) -> Explanation:
    """What the cache says of a timeline."""
    tenant_id = harness.shard_of(timeline).tenant_id
    return harness.cache.explain(tenant_id, timeline.timeline_id, **options)


def results(explanation: Explanation) -> list[tuple[str, str]]:
    """The outcomes of an explanation, newest first."""
    return [(each.what, each.result) for each in explanation.outcomes]


def test_an_entry(harness: Harness) -> None:
    """LSN, size, age and verification of an entry, and the prepare that has made it."""
    timeline = harness.prepared()
    explained = explain(harness, timeline)
    assert explained.entry is not None
    (listed,) = harness.cache.entries()
    assert (explained.entry.lsn, explained.entry.size_bytes) == (LSN_A, listed.size_bytes)
    assert explained.entry.age_s is not None
    assert 0 <= explained.entry.age_s < DEADLINE_S
    assert (explained.host.tenant_state, explained.host.is_enabled) == ("active", True)
    assert (explained.host.tip, explained.host.problem) == (LSN_A, "")
    assert results(explained) == [("prepare", "ok")]
    assert explained.history_since <= explained.outcomes[0].at <= explained.at
    text = str(explained)
    assert f"timeline {timeline.timeline_id} of tenant {explained.tenant_id}" in text
    assert f"entry: at {LSN_A}, " in text
    assert "under way: none" in text


def test_a_file_found_at_the_start_is_not_verified_before_a_read(harness: Harness) -> None:
    """`is_verified` tells whether the bytes were checked in this life of the cache."""
    timeline = harness.prepared()
    harness.reopen()
    before = explain(harness, timeline).entry
    harness.get(timeline)
    after = explain(harness, timeline).entry
    assert before is not None
    assert after is not None
    assert (before.is_verified, after.is_verified) == (False, True)


def test_a_timeline_that_was_skipped(harness: Harness) -> None:
    """Each skip is there with its reason and its LSN, the newest first."""
    timeline = harness.timeline(LSN_B)
    harness.prepare(timeline, LSN_A)
    harness.tenant.is_cache_enabled = False
    harness.prepare(timeline, LSN_B)
    explained = explain(harness, timeline)
    assert explained.entry is None
    assert results(explained) == [("prepare", "disabled"), ("prepare", "tip_moved")]
    assert [each.lsn for each in explained.outcomes] == [LSN_B, LSN_A]
    assert explained.host.is_enabled is False
    assert "its switch is off" in str(explained)


def test_a_limit_is_named(tmp_path: Path) -> None:
    """A timeline that finds no room is told which limit is in the way."""
    with Harness(tmp_path / "cache", max_size_entries=1, eviction="none") as harness:
        harness.prepared()
        timeline = harness.timeline()
        harness.prepare(timeline)
        (outcome,) = explain(harness, timeline).outcomes
    assert outcome.result == "full"
    assert "max_size_entries" in outcome.text


def test_where_timelines_stand_in_a_full_cache(tmp_path: Path) -> None:
    """The rank of an entry, and why a newcomer was declined: the scores are there to compare."""
    with Harness(tmp_path / "cache", max_size_entries=2) as harness:
        entries, declined = [harness.prepared() for _ in range(2)], harness.timeline()
        harness.prepare(declined)
        explained = explain(harness, declined)
        standings = [explain(harness, timeline).standing for timeline in entries]
        text = str(explain(harness, entries[1]))
    assert results(explained) == [("prepare", "declined")]
    assert explained.standing is not None
    assert explained.standing.rank is None
    assert explained.standing.lowest_score is not None
    assert explained.standing.score is not None
    assert 0 < explained.standing.score <= explained.standing.lowest_score
    assert [each.rank for each in standings if each is not None] == [0, 1]
    assert "number 2 from eviction; the lowest score is " in text
    assert "pinned: no" in text


def test_an_entry_whose_file_was_removed(harness: Harness) -> None:
    """The miss says what has become of the entry."""
    timeline = harness.prepared()
    harness.path(timeline).unlink()
    assert harness.get(timeline) is None
    outcome = explain(harness, timeline).outcomes[0]
    assert (outcome.result, outcome.text.rpartition(": ")[2]) == ("miss", "its file was gone")


def test_a_pinned_entry_has_no_rank(tmp_path: Path) -> None:
    """It is never evicted, so nothing says when it goes."""
    with Harness(tmp_path / "cache", max_size_entries=2) as harness:
        pinned, other = harness.prepared(), harness.prepared()
        put(harness.tenant, "pinned_timelines", lambda: [pinned.timeline_id])
        harness.cache.run_cleanup()
        standings = [explain(harness, each).standing for each in (pinned, other)]
    assert [each and each.rank for each in standings] == [None, 0]


def test_a_pinned_entry(harness: Harness) -> None:
    """A pin of the host is shown once clean-up has asked for it."""
    timeline = harness.prepared()
    put(harness.tenant, "pinned_timelines", lambda: [timeline.timeline_id])
    harness.cache.run_cleanup()
    explained = explain(harness, timeline)
    assert explained.standing is not None
    assert explained.standing.is_pinned
    assert "pinned: yes, so its entry is never evicted" in str(explained)
    assert explained.standing.score is None
    assert "score: entries are not ranked before the cache is nearly full" in str(explained)


def test_a_pin_that_is_refused(tmp_path: Path) -> None:
    """An operator who looks for the pin learns why it does not count."""
    with Harness(tmp_path / "cache", max_size_entries=2) as harness:
        timelines = [harness.prepared() for _ in range(2)]
        ids = sorted(each.timeline_id for each in timelines)
        put(harness.tenant, "pinned_timelines", lambda: ids)
        harness.cache.run_cleanup()
        tenant_id = harness.tenant.tenant_id
        pinned, refused = (harness.cache.explain(tenant_id, each) for each in ids)
    assert pinned.standing is not None
    assert (pinned.standing.is_pinned, pinned.standing.is_pin_refused) == (True, False)
    assert refused.standing is not None
    assert (refused.standing.is_pinned, refused.standing.is_pin_refused) == (False, True)
    assert "pinned: no, since the pins of the host would take more than half" in str(refused)


def test_the_habits_of_a_timeline(harness: Harness) -> None:
    """Its sleep until the first get after a stop is known, and that it runs since then."""
    timeline = harness.prepared()
    asleep = explain(harness, timeline).standing
    assert harness.get(timeline) is not None
    running = explain(harness, timeline)
    assert asleep is not None
    assert asleep.habits is not None
    assert (asleep.habits.sleeps_seen, asleep.habits.typical_sleep_s) == (0, None)
    assert asleep.habits.asleep_s is not None
    assert running.standing is not None
    assert running.standing.habits is not None
    assert (running.standing.habits.sleeps_seen, running.standing.habits.asleep_s) == (1, None)
    assert "1 seen; runs now" in str(running)


def test_a_failed_build_and_its_pause(harness: Harness) -> None:
    """The cause of a failure, and until when the next build waits."""
    timeline = harness.timeline()

    def fail(_writer: TarballWriter, _lsn: Lsn) -> None:
        raise RuntimeError("no pages\nfor you")

    timeline.on_send = fail
    with pytest.raises(FillError):
        fill(harness, timeline)
    explained = explain(harness, timeline)
    assert results(explained)[:2] == [("get_or_prepare", "error"), ("prepare", "error")]
    assert explained.outcomes[1].text.endswith("RuntimeError: no pages")
    (pause,) = explained.backing_off
    assert (pause.lsn, pause.failure_count, pause.cause) == (None, 1, "RuntimeError: no pages")
    assert pause.until > explained.outcomes[1].at
    assert "backing off:\n  the timeline until " in str(explained)


def test_misses_and_bad_copies_but_no_hits(harness: Harness) -> None:
    """Reads that found nothing or a bad file are there; hits would push all else out."""
    timeline = harness.prepared()
    assert harness.get(timeline, LSN_B) is None
    assert harness.get(timeline) is not None
    harness.path(timeline).write_bytes(b"bad")
    assert harness.get(timeline) is None
    harness.wait_idle()
    explained = explain(harness, timeline)
    assert sorted(results(explained)) == [
        ("get", "error"),
        ("get", "miss"),
        ("prepare", "ok"),
        ("prepare", "ok"),  # the rebuild
    ]
    (bad,) = (each for each in explained.outcomes if each.result == "error")
    assert "3 bytes" in bad.text


def test_an_entry_that_clean_up_has_removed(harness: Harness) -> None:
    """An outgrown entry is announced by the host's tip, and its removal is recorded."""
    timeline = harness.prepared()
    timeline.advance(LSN_B)
    assert "past the entry, which the next clean-up removes" in str(explain(harness, timeline))
    harness.cache.run_cleanup()
    assert results(explain(harness, timeline))[0] == ("removal", "outgrown")


def test_what_is_under_way(harness: Harness) -> None:
    """A build, a wait for the LSN, and a request behind them are told apart."""
    with Gate() as gate:
        building, early = harness.timeline(), harness.timeline()
        stop_while_sending(building, gate)
        workers = fillers(harness, building, 1)
        gate.wait_for()
        harness.send(early, LSN_B)
        (build,) = explain(harness, building).under_way
        assert (build.lsn, build.state, build.is_awaited) == (LSN_A, "building", True)
        wait_until(lambda: explain(harness, early).under_way[0].state == "waiting_lsn")
        harness.send(building, LSN_B)
        assert [each.lsn for each in explain(harness, building).under_way] == [LSN_A, LSN_B]
        assert f"prepare at {LSN_A}: the host writes" in str(explain(harness, building))
        early.advance(LSN_B)
        building.advance(LSN_B)
    for worker in workers:
        worker.result()
    harness.wait_idle()
    assert explain(harness, building).under_way == ()


class _HostError(BaseException):
    """Whatever a host may raise."""

    def __str__(self) -> str:
        return "\x1b[31mred\nand more"


def test_what_a_host_raises_is_shown(harness: Harness) -> None:
    """A host may raise anything: it is part of the explanation, as printable text."""
    timeline = harness.timeline()

    def fail() -> None:
        raise _HostError

    put(harness.host, "list", fail)
    explained = explain(harness, timeline)
    assert explained.host.problem == "it raised _HostError: \\x1b[31mred"
    assert explained.host.tip is None


def test_a_tenant_or_timeline_that_the_host_does_not_know(harness: Harness) -> None:
    """A tenant that is not attached is told from a timeline that is gone."""
    nobody = harness.cache.explain(TenantId.generate(), TimelineId.generate())
    assert nobody.host.problem == "shard zero of the tenant is not attached here"
    harness.tenant.state = TenantState.STOPPING
    tenant_id = harness.tenant.tenant_shard_id.tenant_id
    gone = harness.cache.explain(tenant_id, TimelineId.generate())
    assert gone.host.tenant_state == "stopping"
    assert gone.host.problem.startswith("it raised ")


def test_the_host_is_asked_in_the_callers_thread_and_without_locks(harness: Harness) -> None:
    """While a callback of `explain` runs, every other call of the cache works."""
    timeline, other = harness.prepared(), harness.timeline()
    callers = []

    def use_the_cache() -> None:
        harness.prepare(other)
        assert harness.get(other) is not None
        assert explain(harness, other, memory_only=True).entry is not None
        harness.cache.run_cleanup()

    ask = timeline.get_last_record_lsn

    def asked() -> Lsn:
        caller = threading.current_thread()
        if not caller.name.startswith(("bbcache", "test-worker")):
            callers.append(caller)
            Worker(use_the_cache).result()
        return ask()

    put(timeline, "get_last_record_lsn", asked)
    assert explain(harness, timeline).host.tip == LSN_A
    assert callers == [threading.current_thread()]


def test_memory_only_asks_neither_host_nor_disk(harness: Harness) -> None:
    """A caller that must not wait gets what the cache has in memory."""
    timeline = harness.prepared()
    put(harness.host, "list", Gate())  # nobody opens it
    explained = explain(harness, timeline, memory_only=True)
    assert explained.host.problem == "it was not asked"
    assert explained.entry is not None
    assert explained.entry.age_s is None


def test_json(harness: Harness) -> None:
    """Every field is there, in values of JSON."""
    timeline = harness.prepared()
    explained = explain(harness, timeline)
    document = explained.as_dict()
    assert list(document) == [each.name for each in dataclasses.fields(Explanation)]
    assert json.loads(json.dumps(document)) == document
    assert document["timeline_id"] == str(timeline.timeline_id)
    assert document["entry"]["lsn"] == document["host"]["tip"] == str(LSN_A)
    assert document["outcomes"][0]["result"] == "ok"
    assert document["outcomes"][0]["at"] == explained.outcomes[0].at.isoformat(
        timespec="milliseconds"
    )


def test_a_cache_that_does_nothing(harness: Harness) -> None:
    """A disabled or closed cache says so, and asks nobody."""
    timeline = harness.prepared()
    harness.cache.close(DEADLINE_S)
    closed = explain(harness, timeline)
    assert (closed.entry, closed.notes) == (None, ("the cache is closed",))
    disabled = BasebackupCache.spawn("nowhere", None, MemoryHost())
    explained = disabled.explain(TenantId.generate(), TimelineId.generate())
    assert explained.notes == ("the cache is disabled and builds nothing",)
    assert "note: the cache is disabled" in str(explained)


def test_a_degraded_cache_is_noted(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps the whole cache from publishing is part of each explanation."""
    monkeypatch.setattr(type(harness.engine.builder), "degraded_reason", "no disk")
    assert explain(harness, harness.timeline()).notes == ("no disk",)


def test_arguments_of_a_wrong_type(harness: Harness) -> None:
    """Ids as texts are refused, with the way to make one."""
    with pytest.raises(ArgumentError, match=r"TenantId\.from_str"):
        harness.cache.explain("00" * 16, TimelineId.generate())  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="before the timeline's"):
        harness.cache.explain(TenantId.generate(), TenantId.generate())  # type: ignore[arg-type]
