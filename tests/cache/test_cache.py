"""The cache as its user sees it: spawn, waiting, entries, two in one process, metrics."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import socket
import stat
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from support.cache_helpers import (
    DEADLINE_S,
    ENTRY_NAME,
    LSN_A,
    LSN_B,
    Gate,
    Harness,
    Worker,
    fail_with,
    samples,
    stop_before,
    stop_while_sending,
    tar_of,
)
from support.helpers import run_threads
from support.locks import watched_locks

from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    DirectoryLockedError,
    EntryInfo,
    StoreError,
    TenantId,
    TimelineId,
)
from bbcache.storage.files import Store
from bbcache.testing import MemoryHost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.locks import WatchedLock


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache."""
    with Harness(tmp_path / "cache") as opened:
        yield opened


def test_three_rounds_of_start_and_stop(harness: Harness) -> None:
    """A timeline that stops and starts has a hit each time; once it has written, its file goes."""
    timeline = harness.timeline()
    tips = [LSN_A, LSN_A + 0x100, LSN_A + 0x200]
    for number, tip in enumerate(tips, start=1):
        timeline.advance(tip)
        harness.prepare(timeline, tip)
        assert harness.get(timeline, tip) == tar_of(timeline, tip)
        assert harness.counts() == {"ok": number}
        assert harness.reads == {"hit": number}
        assert harness.entry_files() == [harness.path(timeline, tip).name]
    timeline.advance(LSN_B)
    harness.cache.run_cleanup()
    assert harness.entry_files() == []
    assert harness.get(timeline, tips[-1]) is None
    assert harness.reads == {"hit": 3, "miss": 1}


def test_without_settings_the_cache_is_disabled(tmp_path: Path) -> None:
    """`spawn(config=None)` makes a cache that does nothing, touches nothing and waits for none."""
    before = set(threading.enumerate())
    registry = CollectorRegistry()
    with BasebackupCache.spawn(tmp_path / "none", None, MemoryHost(), registry) as cache:
        assert not cache.is_enabled
        assert cache.wait_initialized()
        assert cache.wait_idle()
        assert cache.get(TenantId.generate(), TimelineId.generate(), LSN_A) is None
        cache.send_prepare(None, None, None)  # type: ignore[arg-type]
        cache.run_cleanup()
        assert cache.entries() == []
    assert not (tmp_path / "none").exists()
    assert set(threading.enumerate()) <= before
    assert samples(registry) == {}


def test_entries_is_a_snapshot(harness: Harness) -> None:
    """It lists the published entries of the moment, in public types."""
    timeline = harness.prepared()
    size_bytes = harness.path(timeline).stat().st_size
    before = harness.cache.entries()
    expected = EntryInfo(harness.tenant.tenant_id, timeline.timeline_id, LSN_A, size_bytes)
    assert before == [expected]
    assert type(before[0].tenant_id) is TenantId
    assert type(before[0].timeline_id) is TimelineId
    harness.prepared()
    assert before == [expected]
    assert len(harness.cache.entries()) == 2


def test_names_and_modes_on_disk(tmp_path: Path) -> None:
    """Directories are 0700 and files 0600, whatever the umask; the names are Neon's."""
    old_umask = os.umask(0)
    try:
        with Harness(tmp_path / "deep" / "cache") as harness:
            timeline = harness.prepared()
            path = harness.path(timeline)
            expected = f"basebackup_{harness.tenant.tenant_id}_{timeline.timeline_id}_"
            assert path.name == f"{expected}0000000000001000.tar.gz"
            assert ENTRY_NAME.fullmatch(path.name)
            assert set(os.listdir(harness.dir)) == {path.name, "tmp", "quarantine", ".bbcache.lock"}
            for directory in (harness.dir, harness.dir / "tmp", harness.dir / "quarantine"):
                assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            for file in (path, harness.dir / ".bbcache.lock"):
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
    finally:
        os.umask(old_umask)


def test_the_lock_file_names_its_holder(harness: Harness) -> None:
    """It is one line of JSON for people and for errors, and never unlinked."""
    path = harness.dir / ".bbcache.lock"
    (line,) = path.read_text().splitlines()
    holder = json.loads(line)
    assert holder["pid"] == os.getpid()
    assert holder["host"] == socket.gethostname()
    since = datetime.fromisoformat(holder["since"])
    assert abs(datetime.now(UTC) - since) < timedelta(minutes=5)
    before = path.stat().st_ino
    harness.reopen()
    harness.cache.close()
    assert path.stat().st_ino == before


def test_a_temporary_file_has_a_random_name_and_mode_0600(harness: Harness) -> None:
    """Two builds of one LSN never share a name."""
    names = set()
    timeline = harness.timeline()
    for _ in range(2):
        with Gate() as gate:
            stop_while_sending(timeline, gate)
            harness.send(timeline)
            gate.wait_for()
            (name,) = harness.temp_files()
            assert stat.S_IMODE((harness.dir / "tmp" / name).stat().st_mode) == 0o600
            names.add(name)
            timeline.advance(LSN_B)
        harness.wait_idle()
        timeline.advance(LSN_A)
    assert len(names) == 2


def test_a_relative_directory_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that changes its working directory later does not move the cache."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.chdir(first)
    host = MemoryHost()
    tenant = host.add_tenant()
    timeline = tenant.add_timeline(LSN_A)
    config = BasebackupCacheConfig()
    with BasebackupCache.spawn("cache", config, host, CollectorRegistry()) as cache:
        monkeypatch.chdir(second)
        cache.send_prepare(tenant.tenant_shard_id, timeline.timeline_id, LSN_A)
        assert cache.wait_idle(DEADLINE_S)
        assert len(cache.entries()) == 1
    assert os.listdir(second) == []
    assert len(os.listdir(first / "cache")) == 4


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    """`spawn` raises StoreError, also an OSError, that names the path."""
    path = tmp_path / "cache"
    path.write_text("a file")
    with pytest.raises(StoreError, match=str(path)) as caught:
        BasebackupCache.spawn(path, BasebackupCacheConfig(), MemoryHost(), CollectorRegistry())
    assert isinstance(caught.value, OSError)
    assert caught.value.errno is not None


def test_a_relative_directory_of_a_process_that_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the working directory was removed, the error is a StoreError."""
    lost = tmp_path / "lost"
    lost.mkdir()
    monkeypatch.chdir(lost)
    lost.rmdir()
    with pytest.raises(StoreError, match=r"cache.*\nhint: ") as caught:
        BasebackupCache.spawn("cache", BasebackupCacheConfig(), MemoryHost())
    assert caught.value.errno == errno.ENOENT


def test_a_path_that_can_be_none(tmp_path: Path) -> None:
    """A path that Python refuses is a StoreError too."""
    with pytest.raises(StoreError, match="NUL"):
        BasebackupCache.spawn(f"{tmp_path}/a\0b", BasebackupCacheConfig(), MemoryHost())


def test_an_empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is not set must not make a cache of the working directory."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="is empty\nhint: Name a directory"):
        BasebackupCache.spawn("", BasebackupCacheConfig(), MemoryHost())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [os.mkdir, os.mkfifo])
def test_a_lock_file_that_is_none(tmp_path: Path, place: Callable[[Path], None]) -> None:
    """A folder or FIFO instead of the lock file is a StoreError with a hint."""
    place(tmp_path / ".bbcache.lock")
    with pytest.raises(StoreError, match="hint: "):
        BasebackupCache.spawn(tmp_path, BasebackupCacheConfig(), MemoryHost(), CollectorRegistry())


def test_a_linked_lock_file_is_not_followed(tmp_path: Path) -> None:
    """A symlink instead of the lock file is refused, and its target does not change."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    directory = tmp_path / "cache"
    directory.mkdir()
    (directory / ".bbcache.lock").symlink_to(victim)
    with pytest.raises(StoreError, match="lock"):
        BasebackupCache.spawn(directory, BasebackupCacheConfig(), MemoryHost(), CollectorRegistry())
    assert victim.read_text() == "precious"


def test_a_second_cache_on_the_directory_is_refused(harness: Harness) -> None:
    """The error names the holder's pid, in any thread, and the first cache goes on."""
    other = Harness(harness.dir)

    def open_other() -> None:
        with pytest.raises(DirectoryLockedError) as caught:
            other.open()
        assert caught.value.pid == os.getpid()
        assert str(os.getpid()) in str(caught.value)
        assert caught.value.data_dir == str(harness.dir)
        assert isinstance(caught.value, StoreError)

    open_other()
    Worker(open_other).result()
    timeline = harness.prepared()
    assert harness.get(timeline) == tar_of(timeline)
    assert samples(other.registry) == {}


def test_two_caches_in_one_process(tmp_path: Path) -> None:
    """With directories and registries of their own they do not clash."""
    with Harness(tmp_path / "one") as one, Harness(tmp_path / "two") as two:
        first, second = one.prepared(), two.prepared()
        two.cache.send_prepare(one.tenant.tenant_shard_id, first.timeline_id, LSN_A)
        two.wait_idle()
        assert one.get(first) == tar_of(first)
        assert two.get(second) == tar_of(second)
        assert two.cache.get(one.tenant.tenant_id, first.timeline_id, LSN_A) is None
        assert one.counts() == {"ok": 1}
        assert two.counts() == {"ok": 1, "error": 1}
        one.cache.close()
        assert two.get(second) == tar_of(second)
        two.check_accounting()


CALLBACKS = {
    "MemoryHost": ["list", "get_attached_tenant_shard"],
    "MemoryTenant": [
        *("current_state", "basebackup_cache_enabled", "get_timeline", "list_timelines")
    ],
    "MemoryTimeline": ["get_last_record_lsn", "wait_lsn", "send_basebackup_tarball"],
}


def test_wait_idle_covers_queue_build_and_removal(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is False while anything is queued, built, or unlinked for the first time."""
    timeline = harness.prepared()
    assert harness.cache.wait_idle(0)
    with Gate() as gate, monkeypatch.context() as patch:
        timeline.advance(LSN_B)
        stop_while_sending(timeline, gate)
        harness.send(timeline, LSN_B)
        gate.wait_for()
        assert not harness.cache.wait_idle(0)
        unlinking = Gate()
        with unlinking:
            stop_before(patch, os, "unlink", unlinking)
            gate.open()
            unlinking.wait_for()
            assert harness.holds(timeline, LSN_B)  # published, the old file still there
            assert not harness.cache.wait_idle(0.01)
        waiter = Worker(harness.cache.wait_idle)
        assert waiter.result() is True


def test_wait_idle_covers_a_clean_up(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is False from the start of a step until outgrown files are unlinked."""
    for owner, name in ((harness.host, "list"), (os, "unlink")):
        harness.prepared().advance(LSN_B)
        with Gate() as gate, monkeypatch.context() as patch:
            stop_before(patch, owner, name, gate)
            cleaning = Worker(harness.cache.run_cleanup)
            gate.wait_for()
            assert not harness.cache.wait_idle(0)
            gate.open()
            cleaning.result()
        assert harness.cache.wait_idle(0)


def test_wait_idle_covers_a_quarantine(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is False from the failed check until the file is moved and the rebuild has ended."""
    timeline = harness.prepared()
    harness.path(timeline).write_bytes(b"bad")
    with Gate() as gate, monkeypatch.context() as patch:
        stop_before(patch, Store, "quarantine", gate)
        reading = Worker(harness.get, timeline)
        gate.wait_for()
        assert not harness.cache.wait_idle(0)
        gate.open()
        reading.result()
    harness.wait_idle()
    assert harness.counts() == {"ok": 2}


@pytest.mark.parametrize("timeout_s", [math.inf, 1e300, 1e10])
def test_any_timeout_can_be_waited_for(harness: Harness, timeout_s: float) -> None:
    """A timeout that is longer than the system can wait means no limit."""
    with Gate() as gate:
        timeline = harness.timeline()
        stop_while_sending(timeline, gate)
        harness.send(timeline)
        gate.wait_for()
        idle = Worker(harness.cache.wait_idle, timeout_s)
        assert harness.cache.wait_initialized(timeout_s)
        gate.open()
        assert idle.result() is True
    harness.cache.close(timeout_s)
    assert harness.living() == []


def test_waiting_threads_are_all_woken(harness: Harness) -> None:
    """Any number of threads may wait for the same idle moment."""
    timeline = harness.timeline()
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        harness.send(timeline)
        gate.wait_for()
        waiters = [Worker(harness.cache.wait_idle, DEADLINE_S) for _ in range(5)]
        gate.open()
        assert [waiter.result() for waiter in waiters] == [True] * 5


def test_a_start_that_fails_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a thread cannot be started, spawn raises, and nothing is left behind."""
    harness, registry = Harness(tmp_path), CollectorRegistry()
    real_start = threading.Thread.start
    for name in ("bbcache-cleanup", "bbcache-prepare"):
        with monkeypatch.context() as patch:

            def start(thread: Any, name: str = name) -> None:
                if thread.name.startswith(name):
                    raise RuntimeError("can't start new thread")
                real_start(thread)

            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="can't start"):
                BasebackupCache.spawn(tmp_path, BasebackupCacheConfig(), harness.host, registry)
        assert list(registry.collect()) == []
    with harness:
        harness.prepared()


def test_use_from_many_threads_at_once(harness: Harness) -> None:
    """Every method may be called from any thread at any time."""
    timelines = [harness.timeline() for _ in range(6)]

    def use() -> None:
        for timeline in timelines * 4:
            harness.send(timeline)
            found = harness.get(timeline)
            assert found in {None, tar_of(timeline)}
            harness.cache.run_cleanup()
            harness.cache.entries()
            harness.cache.wait_idle(0)

    run_threads([use] * 4)
    harness.wait_idle()
    harness.check_accounting()
    assert sum(harness.counts().values()) == 4 * 24


def test_the_disk_alone_is_touched_under_a_lock_and_that_is_one(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`get` waits for nothing: all other locks are held for changes of memory alone."""
    with watched_locks() as locks:
        harness.reopen()
    held: dict[str, set[WatchedLock]] = {}  # under which locks something was done

    def look(what: str) -> bool:
        mine = {lock for lock in locks if lock.is_mine}
        held.setdefault(what, set()).update(mine)
        return True

    class WatchedOs:
        def __getattr__(self, name: str) -> Any:
            look(name)
            return getattr(os, name)

    for name, module in list(sys.modules.items()):
        if name.startswith("bbcache.") and getattr(module, "os", None) is os:
            monkeypatch.setattr(module, "os", WatchedOs())
    caplog.set_level("DEBUG")
    monkeypatch.setattr(caplog.handler, "filters", [lambda _record: look("log")])
    timeline = harness.prepared()
    for owner in (harness.host, harness.tenant, timeline):
        for name in CALLBACKS[type(owner).__name__]:
            stop_before(monkeypatch, owner, name, functools.partial(look, name))
    timeline.advance(LSN_B)
    harness.prepare(timeline, LSN_B)
    harness.path(timeline, LSN_B).write_bytes(b"bad")
    assert harness.get(timeline, LSN_B) is None
    harness.wait_idle()
    harness.path(timeline, LSN_B).unlink()
    assert harness.get(timeline, LSN_B) is None
    with monkeypatch.context() as patch:
        fail_with(patch, os, "unlink", OSError(13, "no", "x"))
        harness.prepared().advance(LSN_B)
        harness.cache.run_cleanup()
    harness.cache.run_cleanup()
    (file_lock,) = held["rename"]
    callbacks = {name for names in CALLBACKS.values() for name in names}
    assert callbacks | {"log", "fsync", "write", "unlink"} <= held.keys()
    assert all(not held[what] for what in callbacks | {"log", "fsync", "write"})
    assert held["unlink"] == {file_lock}
    assert {lock for each in held.values() for lock in each} == {file_lock}
