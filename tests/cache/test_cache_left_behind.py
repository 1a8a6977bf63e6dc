"""Threads that a close leaves behind: they change nothing any more."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import pytest
from support.cache_helpers import (
    DEADLINE_S,
    Gate,
    Rig,
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
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A running cache with two workers."""
    with Rig(tmp_path / "cache", prepare_concurrency=2) as opened:
        yield opened


def _owner(rig: Rig, timeline: MemoryTimeline, callback: str) -> object:
    return next(o for o in (rig.host, rig.tenant, timeline) if hasattr(o, callback))


def _tree(data_dir: Path) -> dict[str, int]:
    """Every path of the directory with its size."""
    return {str(path.relative_to(data_dir)): path.lstat().st_size for path in data_dir.rglob("*")}


def _at_call(number: int, then: Callable[[], object]) -> Callable[[], object]:
    """Something that does `then` at its call of this number, and nothing at others."""
    calls = itertools.count(1)
    return lambda: then() if next(calls) == number else None


@pytest.mark.parametrize(
    ("callback", "number"),
    [*((callback, 1) for callback in CALLBACKS), *(("get_last_record_lsn", n) for n in (2, 3))],
)
def test_a_thread_left_behind_changes_nothing_any_more(
    rig: Rig,
    callback: str,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is warned of by name; the directory is free, and nothing on it is the late thread's."""
    held, stuck = rig.prepared(), rig.timeline()
    with Gate() as gate:
        with monkeypatch.context() as patch:
            stop_before(patch, _owner(rig, stuck, callback), callback, _at_call(number, gate))
            rig.send(stuck)
            gate.wait_for()
        warning = _left_behind(rig, caplog)
        (late,) = rig.living()
        assert late.name in warning
        old_registry = rig.registry
        assert rig.counts() == {"ok": 1, "skip": 1}
        assert rig.skips == {"closing": 1}
        before_values = _counted(old_registry)
        rig.open()
        new = rig.prepared()
        before = _tree(rig.dir)
        gate.open()
        late.join(DEADLINE_S)
        assert not late.is_alive()
        assert _tree(rig.dir) == before
        assert _counted(old_registry) == before_values
    assert rig.get(held) == tar_of(held)
    assert rig.get(new) == tar_of(new)
    assert rig.get(stuck) is None
    rig.check_books()


def _counted(registry: CollectorRegistry) -> dict[str, float]:
    """All samples but those of how long things took."""
    found = samples(registry)
    return {name: found[name] for name in found if not name.startswith("bbcache_prepare_seconds")}


def _left_behind(rig: Rig, caplog: pytest.LogCaptureFixture) -> str:
    """Close without waiting for what is blocked; the warning about threads that are left."""
    rig.cache.close(0.2)
    (record,) = [r for r in caplog.records if "leaves threads behind" in r.getMessage()]
    assert record.levelname == "WARNING"
    return record.getMessage()


def test_a_build_left_behind_in_its_last_write_publishes_nothing(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """A host that has written all, and returns after the close, publishes nothing."""
    timeline = rig.timeline()
    with Gate() as gate:

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            writer.write(tar_of(timeline, lsn))
            gate()

        timeline.on_send = send
        rig.send(timeline)
        gate.wait_for()
        assert "bbcache-prepare" in _left_behind(rig, caplog)
        before = _tree(rig.dir)
        gate.open()
        wait_until(lambda: not rig.living())
        assert _tree(rig.dir) == before
    rig.open()
    assert rig.cache.entries() == []
    rig.check_books()


@pytest.mark.parametrize("step", ["patch", "sync"])
def test_a_build_left_behind_while_it_is_sealed_publishes_nothing(
    rig: Rig, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An fsync that takes longer than the close ends in nothing."""
    timeline = rig.timeline()
    with Gate() as gate, monkeypatch.context() as patch:
        stop_before(patch, TempFile, step, gate)
        rig.send(timeline)
        gate.wait_for()
        rig.cache.close(0.2)
        (late,) = rig.living()
        rig.open()
        gate.open()
        wait_until(lambda: not late.is_alive())
        assert rig.entry_files() == []
    rig.prepare(timeline)
    assert rig.get(timeline) == tar_of(timeline)


def test_a_clean_up_left_behind_removes_nothing(rig: Rig) -> None:
    """A step that gets its answer after the close leaves the next cache's entries alone."""
    timeline = rig.prepared()
    rows = rig.host.list()
    with Gate() as gate:

        def list_late() -> list[Any]:
            gate()
            return []

        put(rig.host, "list", list_late)
        step = Worker(rig.cache.run_cleanup)
        gate.wait_for()
        rig.cache.close(0)
        put(rig.host, "list", lambda: rows)
        rig.open()
        gate.open()
        step.result()
        assert rig.get(timeline) == tar_of(timeline)
        rig.check_books()


def test_a_disk_that_hangs_keeps_the_directory_locked(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A step on the disk that never ends could still hit a file: the lock stays then."""
    timeline = rig.timeline()
    with Gate() as gate, monkeypatch.context() as patch:
        stop_before(patch, Store, "rename_temp", gate)
        rig.send(timeline)
        gate.wait_for()
        rig.cache.close(0)
        assert "stays locked" in caplog.text
        with pytest.raises(DirectoryLockedError) as caught:
            Rig(rig.dir).open()
        assert caught.value.pid == os.getpid()
