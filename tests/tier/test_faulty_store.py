"""A server that fails in every way: nothing bad is served, and the tier pauses for a while."""

from __future__ import annotations

import logging
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from support.helpers import wait_until

from bbcache import TimelineId
from bbcache.outcomes import FetchResult
from bbcache.tier import breaker
from bbcache.tier.breaker import FAILURES_TO_OPEN

if TYPE_CHECKING:
    from tier.lab import Lab
    from tier.object_store import ObjectStore

SHORT_S = 0.05
MIB = 1 << 20
FAULTS = {
    "hang": (FetchResult.TIMEOUT, {"first_byte_timeout": SHORT_S}),
    "stall": (FetchResult.TIMEOUT, {"first_byte_timeout": SHORT_S}),
    "drip": (FetchResult.TIMEOUT, {"fetch_timeout": 3 * SHORT_S}),
    "cut": (FetchResult.ERROR, {}),
    "close_at_once": (FetchResult.ERROR, {}),
    "nonsense": (FetchResult.ERROR, {}),
    "broken": (FetchResult.ERROR, {}),
    "slow_down": (FetchResult.ERROR, {}),
    "denied": (FetchResult.DENIED, {}),
    "no_bucket": (FetchResult.ERROR, {}),
    "huge": (FetchResult.BAD, {}),
    "empty": (FetchResult.BAD, {}),
    "short": (FetchResult.BAD, {}),
    "long": (FetchResult.BAD, {}),
    "garbage": (FetchResult.BAD, {}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_result(
    remote: Lab, store: ObjectStore, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is served, no error counts as absent, and one that says nothing bad passes again."""
    caplog.set_level(logging.CRITICAL)
    result, settings = FAULTS[fault]
    archive = remote.archive()
    remote.upload(remote.tier(), archive)
    tier = remote.tier(**settings)
    store.fault = fault
    assert remote.fetch(tier, archive)[0] is result
    assert remote.count("fetch_total", result=result) == 1
    assert remote.count("fetch_seconds_count") == 0


def test_three_failures_in_a_row_pause_the_fetches(
    remote: Lab,
    store: ObjectStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then no request is made, one error is logged, and the status says why."""
    monkeypatch.setattr(breaker, "FIRST_PAUSE_S", breaker.LONGEST_PAUSE_S)
    tier, archive = remote.tier(), remote.archive()
    store.fault = "broken"
    results = [remote.fetch(tier, archive)[0] for _ in range(FAILURES_TO_OPEN + 2)]
    assert results == [FetchResult.ERROR] * FAILURES_TO_OPEN + [FetchResult.SKIPPED] * 2
    assert [method for method, _ in store.requests].count("GET") == FAILURES_TO_OPEN
    assert [each.levelno for each in caplog.records].count(logging.ERROR) == 1
    assert (tier.problem, remote.count("fetch_breaker_open")) == (
        "fetches pause after failures in a row",
        1,
    )


def test_absent_and_bad_objects_pause_nothing(
    remote: Lab, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The server has answered, so the next fetch is made."""
    caplog.set_level(logging.CRITICAL)
    archive = remote.archive()
    tier = remote.tier()
    for _ in range(FAILURES_TO_OPEN + 1):
        assert remote.fetch(tier, archive)[0] is FetchResult.ABSENT
    remote.upload(tier, archive)
    store.fault = "garbage"
    for _ in range(FAILURES_TO_OPEN + 1):
        assert remote.fetch(tier, archive)[0] is FetchResult.BAD


def test_a_deadline_that_has_passed_ends_a_fetch(remote: Lab) -> None:
    """The wait for a thread counts, so less than `fetch_timeout` may be left."""
    tier, archive = remote.tier(), remote.archive(size_bytes=1 << 20)
    remote.upload(tier, archive)
    assert remote.fetch(tier, archive, timeout_s=-1.0)[0] is FetchResult.TIMEOUT


def test_an_upload_that_fails_is_tried_three_times(
    remote: Lab, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Then uploads pause, fetches do not, and the object that it was to replace stays."""
    caplog.set_level(logging.CRITICAL)
    tier, old, new = remote.tier(), remote.archive(0x1000), remote.archive(0x2000)
    remote.upload(tier, old)
    store.fault, store.faulty_methods = "slow_down", frozenset({"PUT"})
    remote.upload(tier, new, replaced=0x1000)
    puts = [name for method, name in store.requests if method == "PUT" and name.endswith("2000")]
    assert len(puts) == 1 + 2
    assert remote.count("upload_total", result="failed") == 1
    assert (remote.count("upload_breaker_open"), remote.count("fetch_breaker_open")) == (1, 0)
    assert tier.problem == "uploads pause after failures in a row"
    assert remote.fetch(tier, old)[0] is FetchResult.HIT


def test_uploads_and_fetches_go_on_after_a_pause(
    remote: Lab,
    store: ObjectStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first success ends it; an archive that waited meanwhile is uploaded."""
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(breaker, "FIRST_PAUSE_S", 0.01)
    tier, lost, kept = remote.tier(), remote.archive(0x1000), remote.archive(0x2000)
    store.fault = "broken"
    remote.upload(tier, lost)
    for _ in range(FAILURES_TO_OPEN):
        remote.fetch(tier, lost)
    assert (remote.count("upload_breaker_open"), remote.count("fetch_breaker_open")) == (1, 1)
    assert tier.problem == "fetches and uploads pause after failures in a row"
    store.fault = ""
    remote.upload(tier, kept)
    wait_until(lambda: remote.fetch(tier, kept)[0] is FetchResult.HIT)
    assert (remote.count("upload_breaker_open"), remote.count("fetch_breaker_open")) == (0, 0)
    assert tier.problem is None


def test_uploads_wait_bounded_while_the_server_hangs(
    remote: Lab, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest LSN of the timeline is kept; each offer is counted once, and none waits."""
    caplog.set_level(logging.CRITICAL)
    tier = remote.tier(upload_queue_size=2)
    archives = [remote.archive(lsn) for lsn in (0x1000, 0x2000, 0x3000)]
    store.fault, store.faulty_methods = "hang", frozenset({"PUT"})
    tier.offer(archives[0].info, archives[0].open, None)
    wait_until(lambda: any(method == "PUT" for method, _ in store.requests))
    for archive in archives[1:]:
        tier.offer(archive.info, archive.open, None)
    assert remote.count("upload_queue_size") == 1
    assert remote.count("upload_total", result="superseded") == 1
    store.fault = ""
    store.ends.set()
    assert tier.wait_idle()
    assert remote.fetch(tier, archives[-1])[0] is FetchResult.HIT


def test_uploads_that_wait_take_no_memory(
    remote: Lab, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    """An archive is read when its upload begins: so many as upload at once are in memory."""
    caplog.set_level(logging.CRITICAL)
    tier, template = remote.tier(), remote.archive(size_bytes=MIB)
    store.fault, store.faulty_methods = "hang", frozenset({"PUT"})
    tracemalloc.start()
    try:
        for _ in range(20):
            info = template.info._replace(timeline_id=TimelineId.generate())
            tier.offer(info, template.open, None)
        wait_until(lambda: any(method == "PUT" for method, _ in store.requests))
        waiting, peak_bytes = remote.count("upload_queue_size"), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert waiting == 19
    assert MIB < peak_bytes < 4 * MIB  # the object, and what our server has read of it


def test_a_close_leaves_an_upload_that_hangs(
    remote: Lab, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits for `flush_timeout` at most, drops what waits, and says so."""
    tier = remote.tier(flush_timeout=SHORT_S)
    archive = remote.archive()
    store.fault, store.faulty_methods = "hang", frozenset({"PUT"})
    tier.offer(archive.info, archive.open, None)
    wait_until(lambda: any(method == "PUT" for method, _ in store.requests))
    other = remote.archive(0x2000)
    tier.offer(other.info, other.open, None)
    tier.close()
    assert remote.count("upload_total", result="dropped") == 1
    assert "leaves an upload behind" in caplog.text


def test_what_waits_is_uploaded_at_a_close(remote: Lab, store: ObjectStore) -> None:
    """A close flushes: the object is there for the next node."""
    tier, archive = remote.tier(), remote.archive()
    tier.offer(archive.info, archive.open, None)
    tier.close()
    assert len(store.objects) == 1
    assert remote.fetch(remote.tier(), archive)[0] is FetchResult.HIT


@pytest.mark.parametrize("fault", ["denied", "broken", "close_at_once", "no_bucket"])
def test_a_bucket_that_cannot_be_listed_is_not_asked(
    remote: Lab, store: ObjectStore, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """To a GET a wrong bucket looks like one that lacks the object, so the start lists it."""
    store.fault = fault
    tier = remote.tier()
    assert remote.fetch(tier, remote.archive())[0] is FetchResult.SKIPPED
    assert "cannot be used" in (tier.problem or "")
    assert remote.count("fetch_breaker_open") == 1
    assert [each.levelno for each in caplog.records].count(logging.ERROR) == 1


def test_an_object_store_that_works_again_is_noticed(
    remote: Lab, store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The list is tried again until it succeeds."""
    caplog.set_level(logging.CRITICAL)
    store.fault = "broken"
    tier = remote.tier()
    store.fault = ""
    wait_until(lambda: tier.problem is None)
    assert remote.fetch(tier, remote.archive())[0] is FetchResult.ABSENT
