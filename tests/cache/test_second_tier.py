"""A cache with a second tier: its offers, its fetches, and its life beside a bad tier."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from typing import TYPE_CHECKING, Any, Final

import pytest
from prometheus_client import CollectorRegistry
from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    LSN_B,
    LSN_C,
    MIB,
    Gate,
    Harness,
    Worker,
    noise,
    stop_while_sending,
    tar_of,
)
from support.fill_helpers import fill, filled, fillers, fills
from support.helpers import wait_until

from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    ConfigError,
    FillTimeoutError,
    TenantId,
    TenantShardId,
    TierConfig,
    TimelineId,
)
from bbcache.errors import ArgumentError
from bbcache.outcomes import FetchResult
from bbcache.prepare import fetch_line
from bbcache.testing import MemoryHost, MemoryTier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache.testing import MemoryTimeline

TIER: Final = TierConfig(
    url="file:///of-another-make", allow_unsigned=True, fetch_timeout=DEADLINE_S
)
HURRIED: Final = TierConfig(url=TIER.url, allow_unsigned=True, fetch_timeout=0.05)


@pytest.fixture
def tier() -> MemoryTier:
    """One tier for all caches of a test."""
    return MemoryTier()


@pytest.fixture
def old_node(tmp_path: Path, tier: MemoryTier) -> Iterator[Harness]:
    """The node that a tenant leaves."""
    node = Harness(tmp_path / "old", tier=TIER)
    node.tier = tier
    with node:
        yield node


@pytest.fixture
def node(tmp_path: Path, tier: MemoryTier, old_node: Harness) -> Iterator[Harness]:
    """The node that takes the tenant over: the same host, another directory, one worker."""
    node = Harness(tmp_path / "new", tier=TIER, prepare_concurrency=1)
    node.tier, node.host, node.tenant = tier, old_node.host, old_node.tenant
    with node:
        yield node


def warm(node: Harness, timeline: MemoryTimeline, **how: Any) -> None:
    """Ask for a fetch, and wait for its end."""
    node.cache.send_warm(node.shard_of(timeline), timeline.timeline_id, LSN_A, **how)
    node.wait_idle()


def note_fetches(tier: MemoryTier) -> list[object]:
    """Every fetch from now on."""
    asked: list[object] = []
    tier.on_fetch = lambda *place: asked.append(place)
    return asked


def test_a_published_archive_is_offered(old_node: Harness, tier: MemoryTier) -> None:
    """With the LSN that it has replaced, and as the bytes that are on the disk."""
    timeline = old_node.prepared()
    archive = old_node.get_archive(timeline)
    assert list(tier.objects.values()) == [archive]
    timeline.advance(LSN_B)
    old_node.prepare(timeline, LSN_B)
    assert [(info.lsn, replaced) for info, replaced in tier.offers] == [
        (LSN_A, None),
        (LSN_B, LSN_A),
    ]


def test_an_archive_that_is_evicted_or_cleaned_up_keeps_its_object(
    old_node: Harness, tier: MemoryTier
) -> None:
    """The tier is told of nothing but a newer archive."""
    old_node.prepared()
    old_node.host.tenants.clear()
    old_node.cache.run_cleanup()
    assert old_node.cache.entries() == []
    assert len(tier.objects) == 1


def test_a_miss_on_another_node_is_fetched(
    node: Harness, old_node: Harness, tier: MemoryTier
) -> None:
    """The host builds nothing, the archive is published, and the next call is a hit."""
    timeline = old_node.prepared(size_bytes=2 * MIB)
    timeline.on_send = lambda *_: pytest.fail("the host was asked to build")
    tar = noise(2 * MIB, int(LSN_A))
    assert filled(node, timeline) == ("fetched", tar)
    node.wait_idle()
    assert filled(node, timeline) == ("hit", tar)
    assert fills(node) == {"fetched": 1, "hit": 1}
    assert node.counts("bbcache_prepare_skips_total") == {"fetched": 1}
    assert node.get_archive(timeline) == old_node.get_archive(timeline)
    assert len(tier.offers) == 1  # a fetched archive is not offered again
    node.check_accounting()


def test_callers_share_one_fetch(node: Harness, old_node: Harness, tier: MemoryTier) -> None:
    """All of them wait for the single call, and one is the source."""
    timeline, fetches = old_node.prepared(), []
    with Gate() as gate:

        def on_fetch(*_: object) -> None:
            fetches.append(1)
            gate()

        tier.on_fetch = on_fetch
        workers = fillers(node, timeline, 20)
        gate.open()
        sources = sorted(str(worker.result()[0]) for worker in workers)  # type: ignore[index]
    assert sources == ["fetched"] + ["joined"] * 19
    assert len(fetches) == 1


@pytest.mark.parametrize("result", [each for each in FetchResult if each is not FetchResult.HIT])
def test_whatever_is_no_hit_is_built(node: Harness, tier: MemoryTier, result: FetchResult) -> None:
    """The caller sees a build, as without a tier."""
    timeline = node.timeline()
    tier.on_fetch = lambda *_: result
    assert filled(node, timeline) == ("built", tar_of(timeline))
    assert fills(node) == {"built": 1}
    node.wait_idle()
    node.check_accounting()


@pytest.mark.parametrize("error", [OSError("x"), RuntimeError("x"), SystemExit(1)], ids=repr)
def test_a_tier_that_raises_is_a_build(
    node: Harness, tier: MemoryTier, error: BaseException
) -> None:
    """No thread ends by it: the next fetch works."""
    timeline, other = node.timeline(), node.timeline()

    def on_fetch(*_: object) -> None:
        raise error

    tier.on_fetch = on_fetch
    assert filled(node, timeline)[0] == "built"
    tier.on_fetch = None
    before = len(node.living("fetch"))
    assert filled(node, other)[0] == "built"
    assert before == TIER.fetch_concurrency == len(node.living("fetch"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other", "more"])
def test_a_tier_that_lies_is_not_believed(
    node: Harness, old_node: Harness, tier: MemoryTier, damage: str
) -> None:
    """A hit whose bytes are not the archive is built; nothing of it is left on the disk."""
    timeline = old_node.prepared()
    other = old_node.prepared()
    place, other_place = tier.objects
    good = tier.objects[place]
    tier.objects[place] = {
        "flip": good[:-1] + bytes([good[-1] ^ 1]),
        "cut": good[:-1],
        "empty": b"",
        "other": tier.objects[other_place],
        "more": good + b"\0",
    }[damage]
    assert other is not timeline
    assert filled(node, timeline) == ("built", tar_of(timeline))
    assert not list((node.dir / "tmp").iterdir())
    node.wait_idle()
    node.check_accounting()


def test_a_tier_that_hangs_delays_a_caller_by_the_timeout_alone(
    tmp_path: Path, tier: MemoryTier
) -> None:
    """Also if all its threads hang; the archive is built, and a hit is never delayed."""
    node = Harness(tmp_path / "cache", tier=HURRIED)
    node.tier = tier
    with node, Gate() as gate:
        held = node.prepared()
        tier.on_fetch = lambda *_: gate()
        for _ in range(2):
            timelines = [node.timeline() for _ in range(HURRIED.fetch_concurrency)]
            workers = [Worker(filled, node, timeline) for timeline in timelines]
            assert filled(node, held)[0] == "hit"
            assert [worker.result()[0] for worker in workers] == ["built"] * len(workers)  # type: ignore[index]
        gate.open()
        node.wait_idle()
        node.check_accounting()
        assert fills(node)["built"] == 2 * HURRIED.fetch_concurrency


def test_an_archive_that_comes_too_late_is_dropped(
    tmp_path: Path, tier: MemoryTier, old_node: Harness
) -> None:
    """The build that has taken the fetch's turn is the entry, and the ledger is right."""
    timeline = old_node.prepared()
    node = Harness(tmp_path / "cache", tier=HURRIED)
    node.tier, node.host, node.tenant = tier, old_node.host, old_node.tenant
    with node, Gate() as gate:
        tier.on_fetch = lambda *_: gate()
        assert filled(node, timeline)[0] == "built"
        tier.objects.clear()
        tier.offer(old_node.cache.entries()[0], lambda: node.path(timeline).open("rb"), None)
        gate.open()
        node.wait_idle()
        node.check_accounting()
        assert filled(node, timeline)[0] == "hit"
        assert not list((node.dir / "tmp").iterdir())


def test_a_caller_that_gives_up_leaves_the_fetch_running(
    node: Harness, old_node: Harness, tier: MemoryTier
) -> None:
    """The next caller has a hit."""
    timeline = old_node.prepared()
    with Gate() as gate:
        tier.on_fetch = lambda *_: gate()
        with pytest.raises(FillTimeoutError):
            fill(node, timeline, timeout_s=0)
    node.wait_idle()
    assert filled(node, timeline)[0] == "hit"


def test_a_caller_that_gives_up_before_a_fetch_leaves_a_build(
    node: Harness, tier: MemoryTier
) -> None:
    """While all threads for fetches hang, what its callers have left becomes a build, bounded."""
    with Gate() as gate:
        tier.on_fetch = lambda *_: gate()
        for _ in range(TIER.fetch_concurrency):
            timeline = node.timeline()
            node.cache.send_warm(node.shard_of(timeline), timeline.timeline_id, LSN_A)
        gate.wait_for(TIER.fetch_concurrency)
        left = node.timeline()
        with pytest.raises(FillTimeoutError):
            fill(node, left, timeout_s=0)
        wait_until(lambda: node.holds(left))
        gate.open()
    node.wait_idle()


def test_an_explanation_shows_a_fetch(node: Harness, old_node: Harness, tier: MemoryTier) -> None:
    """Under way while it runs, and among the last outcomes afterwards."""
    timeline = old_node.prepared()
    ids = node.tenant.tenant_id, timeline.timeline_id
    with Gate() as gate:
        tier.on_fetch = lambda *_: gate()
        node.cache.send_warm(node.shard_of(timeline), timeline.timeline_id, LSN_A)
        gate.wait_for()
        (under_way,) = node.cache.explain(*ids).under_way
        assert (under_way.lsn, under_way.state) == (LSN_A, "fetching")
        gate.open()
    node.wait_idle()
    assert "fetched" in str(node.cache.explain(*ids))


def test_get_and_send_prepare_never_ask_the_tier(node: Harness, tier: MemoryTier) -> None:
    """A miss touches no network, and a prepare builds."""
    asked = note_fetches(tier)
    timeline = node.timeline()
    assert node.get(timeline) is None
    node.prepare(timeline)
    assert node.get(timeline) == tar_of(timeline)
    assert (node.counts(), asked) == ({"ok": 1}, [])


def test_an_entry_that_is_bad_is_built_and_not_fetched(
    node: Harness, old_node: Harness, tier: MemoryTier
) -> None:
    """The rebuild of a bad archive goes to the host."""
    timeline = old_node.prepared()
    warm(node, timeline)
    node.path(timeline).write_bytes(b"x" * node.path(timeline).stat().st_size)
    asked = note_fetches(tier)
    assert node.get(timeline) is None
    node.wait_idle()
    assert node.get(timeline) == tar_of(timeline)
    assert asked == []


def test_a_fetch_holds_neither_worker_nor_slot(
    node: Harness, old_node: Harness, tier: MemoryTier
) -> None:
    """While fetches hang, other timelines and other LSNs of the same one are built."""
    timeline, other = old_node.prepared(), node.timeline()
    with Gate() as gate:
        tier.on_fetch = lambda *_: gate()
        waiting = Worker(filled, node, timeline)
        gate.wait_for()
        node.send(other)
        wait_until(lambda: node.holds(other))
        timeline.advance(LSN_B)
        node.send(timeline, LSN_B)
        wait_until(lambda: node.holds(timeline, LSN_B))
        gate.open()
        assert waiting.result() == ("fetched", tar_of(timeline))
    node.wait_idle()
    assert node.holds(timeline, LSN_B)  # the older one does not take its place
    node.check_accounting()


def test_a_fetch_does_not_publish_beside_a_build_of_its_timeline(
    node: Harness, old_node: Harness, tier: MemoryTier
) -> None:
    """The caller gets its archive, in a file without a name."""
    timeline = old_node.prepared()
    with Gate() as fetching, Gate() as building:
        tier.on_fetch = lambda *_: fetching()
        waiting = Worker(fill, node, timeline)
        fetching.wait_for()
        timeline.advance(LSN_B)
        stop_while_sending(timeline, building)
        node.send(timeline, LSN_B)
        building.wait_for()
        fetching.open()
        file: Any = waiting.result()
        with file:
            assert (file.source, file.is_unpublished, file.lsn) == ("fetched", True, LSN_A)
        building.open()
        node.wait_idle()
    assert node.holds(timeline, LSN_B)
    node.check_accounting()


def test_a_cache_without_room_serves_what_it_fetches(
    tmp_path: Path, tier: MemoryTier, old_node: Harness
) -> None:
    """It is admitted like a build: its caller gets it unpublished, a warm-up is skipped."""
    timeline = old_node.prepared(size_bytes=MIB)
    node = Harness(tmp_path / "cache", tier=TIER, max_total_size_bytes=MIB // 2)
    node.tier, node.host, node.tenant = tier, old_node.host, old_node.tenant
    with node:
        with fill(node, timeline) as file:
            assert (file.source, file.is_unpublished) == ("fetched", True)
        node.wait_idle()
        assert node.cache.entries() == []
        warm(node, timeline)
        assert node.counts("bbcache_prepare_skips_total") == {"too_big": 2}
        node.check_accounting()


def full_node(node: Harness) -> list[MemoryTimeline]:
    """Fill the cache with two entries that stopped long ago, the first one first."""
    held = [node.prepared() for _ in range(2)]
    for number, timeline in enumerate(held):
        at_s = time.time() - (2 - number) * 100_000
        os.utime(node.path(timeline), (at_s, at_s))
    node.reopen(max_size_entries=2)
    node.wait_idle()
    return held


def test_a_full_cache_fetches_nothing_for_a_warm_up_alone(
    node: Harness, old_node: Harness, tier: MemoryTier
) -> None:
    """It would evict for tenants that may never start; the archive is not even read."""
    timeline, held = old_node.prepared(), full_node(node)
    asked = note_fetches(tier)
    warm(node, timeline)
    assert (asked, node.skips) == ([], {"declined": 1})
    assert all(map(node.holds, held))
    held[0].advance(LSN_B)
    node.cache.send_warm(node.shard_of(held[0]), held[0].timeline_id, LSN_B)
    node.wait_idle()
    assert len(asked) == 1  # a refresh needs no room


def test_a_cache_without_bytes_fetches_nothing_for_a_warm_up_alone(
    node: Harness, old_node: Harness, tier: MemoryTier
) -> None:
    """The size is not known before the fetch, so the mean of all counts."""
    timeline = old_node.prepared(size_bytes=MIB // 4)
    for _ in range(2):
        node.prepared(size_bytes=MIB // 4)
    node.cache.set_limits(dataclasses.replace(node.config, max_total_size_bytes=5 * MIB // 8))
    asked = note_fetches(tier)
    warm(node, timeline)
    assert (asked, node.skips) == ([], {"declined": 1})


def test_a_full_cache_evicts_for_a_warm_up_that_may_build(node: Harness, old_node: Harness) -> None:
    """It is admitted as a prepare is, whether the archive is fetched or built."""
    timeline, held = old_node.prepared(), full_node(node)
    timeline.on_send = lambda *_: pytest.fail("the host was asked to build")
    warm(node, timeline, build=True)
    assert node.skips == {"fetched": 1}
    assert list(map(node.holds, [*held, timeline])) == [False, True, True]
    assert node.counts("bbcache_removals_total") == {"newcomer": 1}
    node.check_accounting()


def test_a_prepare_that_joins_a_fetch_may_evict(
    node: Harness, old_node: Harness, tier: MemoryTier
) -> None:
    """The cache has become full during the fetch, and the timeline has stopped meanwhile."""
    timeline = old_node.prepared()
    node.reopen(max_size_entries=1)
    with Gate() as gate:
        tier.on_fetch = lambda *_: gate()
        node.cache.send_warm(node.shard_of(timeline), timeline.timeline_id, LSN_A)
        gate.wait_for()
        other = node.timeline()
        node.send(other)
        wait_until(lambda: node.holds(other))
        assert node.get(other) is not None  # it has started, so its archive is worth nothing
        node.send(timeline)
        gate.open()
        node.wait_idle()
    assert node.holds(timeline)
    assert not node.holds(other)


def test_below_the_floor_of_the_disk_a_warm_up_fetches_nothing(
    node: Harness, old_node: Harness, tier: MemoryTier
) -> None:
    """The archive could not be published."""
    timeline, asked = old_node.prepared(), note_fetches(tier)
    node.reopen(min_free_disk_bytes=1 << 60)
    warm(node, timeline)
    assert (asked, node.skips) == ([], {"low_disk": 1})


def test_a_tenant_that_is_warmed_has_a_hit_at_its_first_start(
    node: Harness, old_node: Harness, tier: MemoryTier
) -> None:
    """`send_warm` at attach fetches before anyone waits."""
    timeline = old_node.prepared()
    warm(node, timeline)
    tier.objects.clear()
    assert filled(node, timeline) == ("hit", tar_of(timeline))
    assert node.counts("bbcache_prepare_skips_total") == {"fetched": 1}


@pytest.mark.parametrize("build", [False, True])
def test_what_the_tier_lacks_is_built_only_if_that_was_asked_for(
    node: Harness, build: bool
) -> None:
    """Without `build`, a warm-up of a thousand tenants costs the host nothing."""
    timeline = node.timeline()
    warm(node, timeline, build=build)
    assert node.holds(timeline) is build
    assert node.counts("bbcache_prepare_skips_total") == ({} if build else {"not_fetched": 1})


@pytest.mark.parametrize("build", [False, True])
def test_without_a_tier_a_warm_up_is_a_prepare_or_nothing(tmp_path: Path, build: bool) -> None:
    """A host calls it in any case."""
    with Harness(tmp_path / "cache") as node:
        timeline = node.timeline()
        warm(node, timeline, build=build)
        assert node.holds(timeline) is build
        assert sum(node.counts().values()) == 1


def test_a_warm_up_meets_prepares_and_callers(node: Harness, tier: MemoryTier) -> None:
    """A prepare that joins it builds what the tier lacks; a caller that joins it goes first."""
    timelines = [node.timeline() for _ in range(TIER.fetch_concurrency + 2)]
    with Gate() as gate:
        tier.on_fetch = lambda *_: gate()
        for timeline in timelines:
            node.cache.send_warm(node.shard_of(timeline), timeline.timeline_id, LSN_A)
        gate.wait_for(TIER.fetch_concurrency)
        node.send(timelines[0])
        waiting = Worker(filled, node, timelines[-1])
        node.cache.send_warm(node.shard_of(timelines[0]), timelines[0].timeline_id, LSN_A)
        gate.open()
        assert waiting.result() == ("joined", tar_of(timelines[-1]))
    node.wait_idle()
    held = [timeline for timeline in timelines if node.holds(timeline)]
    assert held == [timelines[0], timelines[-1]]
    assert node.counts("bbcache_prepare_skips_total")["coalesced"] == 2


def test_a_warm_up_that_builds_outlives_the_caller_that_it_has_joined(
    node: Harness, tier: MemoryTier
) -> None:
    """The request of a caller becomes one of the host: it is built after the caller has left."""
    timeline = node.timeline()
    with Gate() as gate:
        tier.on_fetch = lambda *_: gate()
        waiting = Worker(fill, node, timeline, LSN_B, 0.2)
        gate.wait_for()
        node.cache.send_warm(node.shard_of(timeline), timeline.timeline_id, LSN_B, build=True)
        with pytest.raises(FillTimeoutError):
            waiting.result()
        gate.open()
    ids = node.tenant.tenant_id, timeline.timeline_id

    def states() -> list[str]:
        return [str(each.state) for each in node.cache.explain(*ids).under_way]

    wait_until(lambda: states() in (["waiting_lsn"], []))
    other = node.timeline()
    node.send(other)  # the one worker has looked at the request before
    wait_until(lambda: node.holds(other))
    assert states() == ["waiting_lsn"]
    timeline.advance(LSN_B)
    node.wait_idle()
    assert node.holds(timeline, LSN_B)


def test_a_warm_up_is_checked_like_a_prepare(
    node: Harness, old_node: Harness, tier: MemoryTier, caplog: pytest.LogCaptureFixture
) -> None:
    """Not of another shard, not of a tenant that is unknown, and not past the tip."""
    caplog.set_level(logging.CRITICAL)
    timeline = old_node.prepared()
    tenant_id = node.tenant.tenant_id
    asked = note_fetches(tier)
    node.cache.send_warm(TenantShardId(tenant_id, 1, 2), timeline.timeline_id, LSN_A)
    node.cache.send_warm(TenantShardId(TenantId.generate()), timeline.timeline_id, LSN_A)
    node.cache.send_warm("x", timeline.timeline_id, LSN_A)  # type: ignore[arg-type]
    timeline.advance(LSN_C)
    warm(node, timeline)
    skips = node.counts("bbcache_prepare_skips_total")
    assert skips == {"not_shard_zero": 1, "not_fetched": 1, "tip_moved": 1}
    assert (node.counts(), asked) == ({"skip": 3, "error": 1}, [])


def test_a_warm_up_that_fails_says_why(node: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """In one warning and in the explanation, since no build follows that would."""
    timeline_id = TimelineId.generate()
    node.cache.send_warm(node.tenant.tenant_shard_id, timeline_id, LSN_A)
    node.wait_idle()
    (warning,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    outcome = node.cache.explain(node.tenant.tenant_id, timeline_id).outcomes[0]
    assert outcome.result == "not_fetched"
    for text in (warning.getMessage(), outcome.text):
        assert f"has no timeline {timeline_id}" in text


def test_too_many_warm_ups_are_named(
    node: Harness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is that of the fetches, not that of the prepares."""
    monkeypatch.setattr(fetch_line, "MOST_WARMS", 0)
    timeline = node.timeline()
    warm(node, timeline)
    assert node.skips == {"queue_full": 1}
    assert "fetches wait already" in caplog.text


def test_a_close_ends_fetches(node: Harness, old_node: Harness, tier: MemoryTier) -> None:
    """One under way ends at its next write; one that waits, and its caller, at once."""
    timelines = [old_node.prepared() for _ in range(TIER.fetch_concurrency + 1)]
    with Gate() as gate:
        tier.on_fetch = lambda *_: gate()
        for timeline in timelines:
            node.cache.send_warm(node.shard_of(timeline), timeline.timeline_id, LSN_A)
        gate.wait_for(TIER.fetch_concurrency)
        closing = Worker(node.cache.close, DEADLINE_S)
        wait_until(
            lambda: node.counts("bbcache_prepare_skips_total").get("closing") == len(timelines)
        )
        gate.open()
        closing.result()
    assert node.living("fetch") == []
    assert not list((node.dir / "tmp").iterdir())
    assert tier.is_closed


def test_a_tier_that_fails_to_take_an_offer_harms_no_build(
    node: Harness, tier: MemoryTier, caplog: pytest.LogCaptureFixture
) -> None:
    """The archive is published, and the failure is in the log."""
    timeline = node.timeline()
    tier.offer = lambda *_: 1 / 0  # type: ignore[method-assign,assignment]
    node.prepare(timeline)
    assert node.counts() == {"ok": 1}
    assert "the second tier has refused" in caplog.text


def test_a_tier_that_is_configured_must_be_given(tmp_path: Path) -> None:
    """The error says how; nothing on the disk was touched."""
    config = BasebackupCacheConfig(tier=TIER)
    with pytest.raises(ConfigError, match=r"have a tier, file:.*\nhint: Pass tier=ObjectTier"):
        BasebackupCache.spawn(tmp_path / "cache", config, MemoryHost(), CollectorRegistry())
    with pytest.raises(ArgumentError, match="tier"):
        BasebackupCache.spawn(
            tmp_path / "cache",
            config,
            MemoryHost(),
            CollectorRegistry(),
            tier=3,  # type: ignore[arg-type]
        )
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_does_not_start_closes_its_tier(tmp_path: Path, tier: MemoryTier) -> None:
    """So a tier that is made in the call is not left behind; nor by a cache that is disabled."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cache directory"):
        BasebackupCache.spawn(
            tmp_path / "file", BasebackupCacheConfig(), MemoryHost(), CollectorRegistry(), tier=tier
        )
    assert tier.is_closed
    tier.is_closed = False
    BasebackupCache.spawn(tmp_path / "cache", None, MemoryHost(), tier=tier).close()
    assert tier.is_closed


def test_a_fetch_has_its_deadline(node: Harness, tier: MemoryTier) -> None:
    """It counts from the call, so the wait for a thread is part of it."""
    deadlines: list[float] = []
    tier.on_fetch = lambda _, deadline_s: deadlines.append(deadline_s)
    before_s = time.monotonic()
    filled(node, node.timeline())
    after_s = time.monotonic()
    assert before_s <= deadlines[0] - TIER.fetch_timeout <= after_s
