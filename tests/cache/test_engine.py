"""The engine: its threads, and how they survive failures."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import Histogram
from support.cache_helpers import (
    LSN_A,
    LSN_B,
    Gate,
    Harness,
    Worker,
    fail_with,
    put,
    stop_before,
    tar_of,
)
from support.helpers import wait_until

from bbcache import engine as engine_module
from bbcache.prepare.queue import PrepareQueue
from bbcache.storage.catalog import Catalog
from bbcache.upkeep.cleanup import Cleaner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("concurrency", [1, 3])
def test_the_threads_of_a_cache(tmp_path: Path, concurrency: int) -> None:
    """As many workers as configured and one more, all named, all gone after the close."""
    before = set(threading.enumerate())
    with Harness(tmp_path, prepare_concurrency=concurrency):
        new = {thread.name for thread in set(threading.enumerate()) - before}
        workers = {f"bbcache-prepare_{number}" for number in range(concurrency)}
        assert new == workers | {"bbcache-cleanup"}
    assert set(threading.enumerate()) <= before


def test_a_clean_up_step_that_fails_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Any exception of a step is logged, and the next step comes in its time."""
    steps = [MemoryError(), SystemExit(), RuntimeError("a defect")]
    real_step = Cleaner.step

    def step(cleaner: Cleaner) -> None:
        if steps:
            raise steps.pop()
        real_step(cleaner)

    monkeypatch.setattr(Cleaner, "step", step)
    with Harness(tmp_path, cleanup_period=0.01) as harness:
        timeline = harness.prepared()
        timeline.advance(LSN_B)
        wait_until(lambda: not harness.cache.entries())
    assert caplog.text.count("a clean-up step failed") == 3


class _Clock:
    """A clock that only a test and the engine's waits move."""

    def __init__(self, now_s: float, ends_at_s: float) -> None:
        self.now_s = now_s
        self.delays_s: list[float] = []
        self._ends_at_s = ends_at_s

    def monotonic(self) -> float:
        """The time."""
        return self.now_s

    def wait_for(self, _is_so: Callable[[], bool], timeout_s: float) -> bool:
        """Pass the time at once; True at the end of the test."""
        self.delays_s.append(timeout_s)
        self.now_s += timeout_s
        return self.now_s >= self._ends_at_s


def test_steps_come_at_whole_periods_and_those_that_were_missed_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is one period after the start; the others keep to the same grid."""
    clock = _Clock(now_s=1000, ends_at_s=1080)
    lengths_s = iter([1, 0, 34, 0])
    began_s = []

    def step(_cleaner: Cleaner) -> None:
        began_s.append(clock.now_s)
        clock.now_s += next(lengths_s)

    with Harness(tmp_path, cleanup_period=10) as harness:
        pass  # closed again, so that its own thread has ended
    monkeypatch.setattr(Cleaner, "step", step)
    monkeypatch.setattr(engine_module, "time", clock)
    monkeypatch.setattr(harness.engine, "_changed", clock)
    harness.engine._tick()
    assert began_s == [1010, 1020, 1030, 1070]


@pytest.mark.parametrize("period_s", [1e-9, 1e9])
def test_the_shortest_and_the_longest_period_can_be_waited_for(
    tmp_path: Path, period_s: float
) -> None:
    """Neither ends the thread that cleans up."""
    with Harness(tmp_path, cleanup_period=period_s) as harness:
        harness.prepared()
        assert harness.living("cleanup")


def test_a_load_that_fails_in_any_way_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A load that raises any exception is tried again."""
    fail_with(monkeypatch, Catalog, "load", RuntimeError("a surprise"), times=2)
    with Harness(tmp_path) as harness:
        harness.prepared()
    assert caplog.text.count("trying again") == 2


def test_a_defect_ends_no_call_that_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect of the cache is logged with the name of the function that the host has called."""
    with Harness(tmp_path) as harness:
        timeline = harness.timeline()
        with monkeypatch.context() as patch:
            fail_with(patch, PrepareQueue, "submit", RuntimeError("a defect"))
            harness.send(timeline)
            harness.cache.send_warm(
                harness.shard_of(timeline), timeline.timeline_id, LSN_A, build=True
            )
        assert "send_prepare could not queue a request" in caplog.text
        assert "send_warm could not queue a request" in caplog.text


def test_prepares_wait_for_the_whole_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker takes a request before the sweep and the scan are done."""
    harness = Harness(tmp_path)
    with harness.opened, Gate() as gate:
        stop_before(monkeypatch, Catalog, "load", gate)
        harness.open(wait=False)
        timeline = harness.timeline()
        asked: list[Any] = []
        real_get = harness.host.get_attached_tenant_shard

        def get(shard_id: Any) -> Any:
            asked.append(harness.cache.wait_initialized(0))
            return real_get(shard_id)

        put(harness.host, "get_attached_tenant_shard", get)
        harness.send(timeline)
        gate.wait_for()
        waiting = Worker(harness.cache.wait_initialized)
        assert asked == []
        assert harness.value("pageserver_basebackup_cache_prepare_queue_size") == 1
        gate.open()
        harness.wait_idle()
        assert waiting.result() is True
        assert asked == [True]
        assert harness.get(timeline, LSN_A) == tar_of(timeline)


def test_a_metric_that_fails_costs_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker survives a failure between two prepares."""
    with Harness(tmp_path, prepare_concurrency=1) as harness:
        with monkeypatch.context() as patch:
            fail_with(patch, Histogram, "observe", MemoryError(), times=1)
            harness.send(harness.timeline())
            assert harness.cache.wait_idle(60)
        assert len(harness.living()) == 1
        harness.prepared()
