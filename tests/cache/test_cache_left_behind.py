"""Threads that a close leaves behind: they change nothing any more."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import (
    DEADLINE_S,
    Gate,
    Harness,
    Worker,
    put,
    samples,
    stop_before,
    tar_of,
)
from support.helpers import wait_until

from bbcache import DirectoryLockedError
from bbcache.storage.files import Store, TempFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from prometheus_client import CollectorRegistry

    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline


CALLBACKS = [
    *("get_attached_tenant_shard", "basebackup_cache_enabled", "current_state"),
    *("get_timeline", "get_last_record_lsn", "wait_lsn", "send_basebackup_tarball"),
]


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache with two workers."""
    with Harness(tmp_path / "cache", prepare_concurrency=2) as opened:
        yield opened


def _owner(harness: Harness, timeline: MemoryTimeline, callback: str) -> object:
    return next(o for o in (harness.host, harness.tenant, timeline) if hasattr(o, callback))


def _tree(data_dir: Path) -> dict[str, int]:
    """Every path of the directory with its size."""
    return {str(path.relative_to(data_dir)): path.lstat().st_size for path in data_dir.rglob("*")}


def _at_call(number: int, then: Callable[[], object]) -> Callable[[], object]:
    """A function that calls `then` at its call with this number."""
    calls = itertools.count(1)
    return lambda: then() if next(calls) == number else None


@pytest.mark.parametrize(
    ("callback", "number"),
    [*((callback, 1) for callback in CALLBACKS), *(("get_last_record_lsn", n) for n in (2, 3))],
)
def test_a_thread_left_behind_changes_nothing_any_more(
    harness: Harness,
    callback: str,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The warning names it; the directory is free, and the late thread writes nothing there."""
    held, stuck = harness.prepared(), harness.timeline()
    with Gate() as gate:
        with monkeypatch.context() as patch:
            stop_before(patch, _owner(harness, stuck, callback), callback, _at_call(number, gate))
            harness.send(stuck)
            gate.wait_for()
        warning = _left_behind(harness, caplog)
        (late,) = harness.living()
        assert late.name in warning
        old_registry = harness.registry
        assert harness.counts() == {"ok": 1, "skip": 1}
        assert harness.skips == {"closing": 1}
        before_values = _counted(old_registry)
        harness.open()
        new = harness.prepared()
        before = _tree(harness.dir)
        gate.open()
        late.join(DEADLINE_S)
        assert not late.is_alive()
        assert _tree(harness.dir) == before
        assert _counted(old_registry) == before_values
    assert harness.get(held) == tar_of(held)
    assert harness.get(new) == tar_of(new)
    assert harness.get(stuck) is None
    harness.check_accounting()


def _counted(registry: CollectorRegistry) -> dict[str, float]:
    """All samples but those of durations."""
    found = samples(registry)
    return {name: found[name] for name in found if not name.startswith("bbcache_prepare_seconds")}


def _left_behind(harness: Harness, caplog: pytest.LogCaptureFixture) -> str:
    """Close without waiting for a blocked thread; returns the warning."""
    harness.cache.close(0.2)
    (record,) = [r for r in caplog.records if "leaves threads behind" in r.getMessage()]
    assert record.levelname == "WARNING"
    return record.getMessage()


def test_a_build_left_behind_in_its_last_write_publishes_nothing(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """A host that has written everything, and returns after the close, publishes nothing."""
    timeline = harness.timeline()
    with Gate() as gate:

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            writer.write(tar_of(timeline, lsn))
            gate()

        timeline.on_send = send
        harness.send(timeline)
        gate.wait_for()
        assert "bbcache-prepare" in _left_behind(harness, caplog)
        before = _tree(harness.dir)
        gate.open()
        wait_until(lambda: not harness.living())
        assert _tree(harness.dir) == before
    harness.open()
    assert harness.cache.entries() == []
    harness.check_accounting()


@pytest.mark.parametrize("step", ["patch", "sync"])
def test_a_build_left_behind_while_it_is_sealed_publishes_nothing(
    harness: Harness, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An fsync that takes longer than the close publishes nothing."""
    timeline = harness.timeline()
    with Gate() as gate, monkeypatch.context() as patch:
        stop_before(patch, TempFile, step, gate)
        harness.send(timeline)
        gate.wait_for()
        harness.cache.close(0.2)
        (late,) = harness.living()
        harness.open()
        gate.open()
        wait_until(lambda: not late.is_alive())
        assert harness.entry_files() == []
    harness.prepare(timeline)
    assert harness.get(timeline) == tar_of(timeline)


def test_a_clean_up_left_behind_removes_nothing(harness: Harness) -> None:
    """A step that gets its answer after the close leaves the next cache's entries alone."""
    timeline = harness.prepared()
    rows = harness.host.list()
    with Gate() as gate:

        def list_late() -> list[Any]:
            gate()
            return []

        put(harness.host, "list", list_late)
        step = Worker(harness.cache.run_cleanup)
        gate.wait_for()
        harness.cache.close(0)
        put(harness.host, "list", lambda: rows)
        harness.open()
        gate.open()
        step.result()
        assert harness.get(timeline) == tar_of(timeline)
        harness.check_accounting()


def test_a_disk_that_hangs_keeps_the_directory_locked(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A step on the disk that never ends could still change a file, so the lock stays."""
    timeline = harness.timeline()
    with Gate() as gate, monkeypatch.context() as patch:
        stop_before(patch, Store, "rename_temp", gate)
        harness.send(timeline)
        gate.wait_for()
        harness.cache.close(0)
        assert "stays locked" in caplog.text
        with pytest.raises(DirectoryLockedError) as caught:
            Harness(harness.dir).open()
        assert caught.value.pid == os.getpid()
