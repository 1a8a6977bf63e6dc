"""The status of a service agrees with what has happened to it."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import DEADLINE_S, LSN_A, LSN_B, Gate, noise, stop_while_sending
from support.fill_helpers import fill
from support.helpers import TENANT

from bbcache import TimelineId
from bbcache.http_service.status import MOST_ENTRIES, State, StatusReader
from bbcache.outcomes import SkipReason
from bbcache.pageserver.broken import Broken

if TYPE_CHECKING:
    from http_service.conftest import Whole

    from bbcache.http_service.status import Meter


def meter(whole: Whole, name: str) -> Meter:
    """One of the meters."""
    return next(each for each in whole.reader.read().meters if each.name == name)


def test_of_a_service_that_has_done_nothing(whole: Whole) -> None:
    """Everything is there, at zero, and there is no ratio of nothing."""
    status = whole.reader.read()
    assert status.state is State.READY
    assert status.hit_ratio is None
    assert status.started_at == "1970-01-12T13:46:40+00:00"
    assert status.listen == str(whole.bench.service.address)
    counts = (status.answers, status.failures, status.reads, status.fills, status.prepares)
    assert all(counts)
    assert {value for each in counts for value in each.values()} == {0}
    assert set(status.skips) == set(SkipReason)
    assert {each.used for each in status.meters} == {0}
    assert (status.entry_count, status.entries, status.errors) == (0, (), ())


def test_answers_and_their_ratio(whole: Whole) -> None:
    """By where archives came from, and what was not answered."""
    bench = whole.bench
    timeline = bench.harness.timeline()
    client = bench.logged_in()
    for _ in range(4):
        client.ask(bench.command(timeline, LSN_A, "gzip"))
    client.ask(f"basebackup {bench.harness.tenant.tenant_id} {TimelineId.generate()}")
    bench.wait_queries({"ok hit": 3, "ok built": 1, "error none": 1})
    status = whole.reader.read()
    assert status.answers == {"hit": 3, "joined": 0, "built": 1, "fetched": 0}
    assert status.failures == {"error": 1, "client_error": 0}
    assert status.hit_ratio == 0.75
    assert status.reads == {"hit": 3, "miss": 1, "error": 0}
    assert status.prepares == {"ok": 1, "skip": 0, "error": 0}
    assert status.fills["built"] == 1


def test_sizes_against_limits(whole: Whole) -> None:
    """The meters and the settings that limit them."""
    whole.bench.logged_in()
    used = {each.setting: (each.used, each.limit) for each in whole.reader.read().meters}
    assert used == {
        "max_total_size_bytes": (0, 1 << 20),
        "max_size_entries": (0, 10_000),
        "max_unpublished_size_bytes": (0, 1 << 30),
        "prepare_channel_size": (0, 100),
        "max_connections": (1, 20),
    }


def test_what_waits_and_what_is_not_published(whole: Whole) -> None:
    """A prepare behind a busy one is in the queue; an open archive without a name counts."""
    harness = whole.bench.harness
    busy = harness.timeline(LSN_A)
    with Gate() as gate:
        stop_while_sending(busy, gate)
        harness.send(busy, LSN_A)
        gate.wait_for()
        harness.send(busy, LSN_B)
        assert meter(whole, "prepares that wait").used == 1
        gate.open()
        harness.tenant.is_cache_enabled = False
        with fill(harness, harness.timeline()) as file:
            assert meter(whole, "bytes not published").used == file.size_bytes


def test_entries(whole: Whole) -> None:
    """The largest of them, and how many there are."""
    harness = whole.bench.harness
    timelines = [harness.prepared(size_bytes=1000 * (1 + number)) for number in range(3)]
    status = whole.reader.read()
    assert [each.timeline_id for each in status.entries] == [
        str(timeline.timeline_id) for timeline in reversed(timelines)
    ]
    assert status.entries[0].tenant_id == str(harness.tenant.tenant_id)
    assert status.entries[0].lsn == str(LSN_A)
    assert status.entries[0].size_bytes == harness.path(timelines[-1]).stat().st_size
    assert status.entry_count == 3
    assert meter(whole, "entries").used == 3
    total = sum(path.stat().st_size for path in map(harness.path, timelines))
    assert meter(whole, "bytes on disk").used == total


@pytest.mark.slow
def test_many_entries(whole: Whole) -> None:
    """So many are shown and no more."""
    for _ in range(MOST_ENTRIES + 5):
        whole.bench.harness.prepared()
    status = whole.reader.read()
    assert (len(status.entries), status.entry_count) == (MOST_ENTRIES, MOST_ENTRIES + 5)


def test_skips(whole: Whole) -> None:
    """Prepares are shown by the reason of their skip."""
    harness = whole.bench.harness
    harness.prepare(harness.timeline(LSN_B), LSN_A)
    harness.tenant.is_cache_enabled = False
    harness.prepare(harness.timeline(), LSN_A)
    skips = whole.reader.read().skips
    assert {reason: count for reason, count in skips.items() if count} == {
        "tip_moved": 1,
        "disabled": 1,
    }


def test_trouble(whole: Whole) -> None:
    """A bad archive shows."""
    timeline = whole.bench.harness.prepared()
    whole.bench.harness.path(timeline).write_bytes(
        noise(whole.bench.harness.path(timeline).stat().st_size)
    )
    assert whole.bench.harness.get(timeline) is None
    whole.bench.harness.wait_idle()
    trouble = whole.reader.read().trouble
    assert (trouble["archives_quarantined"], trouble["read_errors"]) == (1, 1)


def test_what_is_broken(whole: Whole) -> None:
    """It is counted in full and listed up to a limit; the reason is shown."""
    broken = [
        Broken(TENANT, None if number == 0 else TimelineId(bytes([number] * 16)), "it is cut")
        for number in range(150)
    ]
    reader = StatusReader(
        cache=whole.bench.harness.cache,
        cache_config=whole.bench.harness.config,
        service=whole.bench.service,
        registry=whole.bench.registry,
        errors=whole.errors,
        has_tokens=False,
        has_tls=False,
        broken=lambda: broken,
    )
    document = json.loads(json.dumps(reader.read().to_json()))
    assert document["trouble"]["broken_tenants_and_timelines"] == document["broken_count"] == 150
    assert len(document["broken"]) == 100
    assert document["broken"][:2] == [
        {"tenant_id": str(TENANT), "timeline_id": None, "reason": "it is cut"},
        {"tenant_id": str(TENANT), "timeline_id": "01" * 16, "reason": "it is cut"},
    ]
    assert whole.reader.read().broken_count == 0


def test_errors(whole: Whole) -> None:
    """The end of the log, newest first."""
    for number in range(5):
        whole.errors.handle(logging.makeLogRecord({"msg": f"number {number}", "levelno": 40}))
    assert [each.text for each in whole.reader.read().errors] == [
        f"number {number}" for number in (4, 3, 2)
    ]


def test_states(whole: Whole) -> None:
    """It is ready until it drains; the status of a closed service can still be read."""
    assert whole.reader.state() is State.READY
    whole.bench.service.drain(0)
    assert whole.reader.state() is State.DRAINING
    whole.bench.service.close(DEADLINE_S)
    whole.bench.harness.cache.close(DEADLINE_S)
    assert whole.reader.read().state is State.DRAINING


def test_before_the_cache_is_loaded(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is starting."""
    monkeypatch.setattr(whole.bench.harness.engine, "is_initialized", False)
    assert whole.reader.state() is State.STARTING


def test_as_json(whole: Whole) -> None:
    """All of it can be written, and says the same."""
    whole.bench.harness.prepared()
    whole.errors.handle(logging.makeLogRecord({"msg": "x", "levelno": 40}))
    status = whole.reader.read()
    document = json.loads(json.dumps(status.to_json()))
    assert document["state"] == "ready"
    assert document["entries"][0]["lsn"] == str(LSN_A)
    assert document["errors"][0]["text"] == "x"
    assert document["meters"][0]["limit"] == 1 << 20
