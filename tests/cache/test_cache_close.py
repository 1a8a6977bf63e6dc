"""Close: what it cancels, what it leaves behind, and that nothing happens after it."""

from __future__ import annotations

import errno
import gc
import itertools
import signal
import threading
import weakref
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    LSN_B,
    MIB,
    Gate,
    Harness,
    Worker,
    noise,
    samples,
    stop_before,
    stop_while_sending,
    tar_of,
)
from support.helpers import run_threads, wait_until
from support.interrupts import interruptible
from support.seams import start_close
from support.threads import is_waiting

from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    DirectoryLockedError,
    TenantShardId,
)
from bbcache.errors import ClosingError
from bbcache.storage.catalog import Catalog
from bbcache.storage.dirlock import DirectoryLock
from bbcache.testing import MemoryHost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline


CALLBACKS = [
    *("get_attached_tenant_shard", "basebackup_cache_enabled", "current_state"),
    *("get_timeline", "get_last_record_lsn", "wait_lsn", "send_basebackup_tarball"),
]


CLEANUP_CALLBACKS = ["list", "current_state", "list_timelines", "get_last_record_lsn"]


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


def test_close_cancels_what_waits_and_stops_what_runs(harness: Harness) -> None:
    """Queued prepares are skips, builds stop at their next write, waits at their next slice."""
    writing, waiting, *queued = (harness.timeline() for _ in range(5))
    endless = threading.Event()

    def send(writer: TarballWriter, _lsn: Lsn) -> None:
        writer.write(noise(1000))
        endless.set()
        while True:
            writer.write(b"y" * 1000)

    writing.on_send = send
    harness.send(writing)
    assert endless.wait(DEADLINE_S)
    harness.send(waiting, LSN_B)
    wait_until(lambda: harness.value("pageserver_basebackup_cache_prepare_queue_size") == 0)
    for timeline in queued:
        harness.send(timeline)
    harness.cache.close()
    assert harness.counts() == {"skip": 5}
    assert harness.skips == {"closing": 5}
    assert harness.temp_files() == harness.entry_files() == []
    assert harness.living() == []
    harness.open()
    harness.check_accounting()


def test_the_writer_says_why(harness: Harness) -> None:
    """A host that writes during the close gets ClosingError, in any of its threads."""
    timeline = harness.timeline()
    seen: list[str] = []
    with Gate() as gate:

        def send(writer: TarballWriter, _lsn: Lsn) -> None:
            gate()
            for data in (b"x", noise(2 * MIB)):
                try:
                    writer.write(data)
                except ClosingError as error:
                    seen.append(str(error))

        timeline.on_send = send
        harness.send(timeline)
        gate.wait_for()
        closing = start_close(harness)
        gate.open()
        closing.result()
    assert seen == ["the cache is closing"] * 2
    assert harness.skips == {"closing": 1}


def _at_call(number: int, then: Callable[[], object]) -> Callable[[], object]:
    """A function that calls `then` at its call with this number."""
    calls = itertools.count(1)
    return lambda: then() if next(calls) == number else None


@pytest.mark.parametrize(
    ("callback", "number"),
    [*((callback, 1) for callback in CALLBACKS), *(("get_last_record_lsn", n) for n in (2, 3))],
)
def test_close_from_a_callback_of_a_prepare(
    harness: Harness, callback: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback is not waited for; nothing is published, and the directory is free."""
    timeline = harness.timeline()
    with monkeypatch.context() as patch:
        owner, close = _owner(harness, timeline, callback), harness.cache.close
        stop_before(patch, owner, callback, _at_call(number, close))
        harness.send(timeline)
        wait_until(lambda: not harness.living())
    assert harness.skips == {"closing": 1}
    assert harness.entry_files() == []
    harness.open()
    harness.check_accounting()


def test_close_from_two_workers_at_once(harness: Harness) -> None:
    """Workers that close at the same moment do not wait for each other for ever."""
    both = threading.Barrier(2)
    timelines = [harness.timeline() for _ in range(2)]

    def close(_writer: TarballWriter, _lsn: Lsn) -> None:
        both.wait(DEADLINE_S)
        harness.cache.close()

    for timeline in timelines:
        timeline.on_send = close
        harness.send(timeline)
    wait_until(lambda: not harness.living())
    assert harness.skips == {"closing": 2}
    harness.open()
    harness.check_accounting()


def test_close_from_a_callback_and_from_outside(harness: Harness) -> None:
    """A callback that closes while the host closes too delays neither."""
    timeline = harness.timeline()
    with Gate() as gate:

        def close(_writer: TarballWriter, _lsn: Lsn) -> None:
            gate()
            harness.cache.close()

        timeline.on_send = close
        harness.send(timeline)
        gate.wait_for()
        closing = start_close(harness)
        gate.open()
        closing.result()
    assert harness.living() == []
    harness.open()


@pytest.mark.parametrize("callback", CLEANUP_CALLBACKS)
@pytest.mark.parametrize("is_periodic", [True, False], ids=["periodic", "run_cleanup"])
def test_close_from_a_callback_of_clean_up(
    harness: Harness, callback: str, is_periodic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clean-up thread may close the cache; its step then removes nothing."""
    timeline = harness.prepared()
    timeline.advance(LSN_B)
    with monkeypatch.context() as patch, Gate() as gate:

        def close() -> None:
            gate()
            harness.cache.close(DEADLINE_S)

        stop_before(patch, _owner(harness, timeline, callback), callback, close)
        if is_periodic:
            harness.cache.close()
            harness.open(wait=False, cleanup_period=0.01)
            gate.open()
            wait_until(lambda: not harness.living("cleanup"))
        else:
            gate.open()
            harness.cache.run_cleanup()
            harness.cache.close()  # below run_cleanup it was done in the background
    harness.open(cleanup_period=3600.0)
    assert harness.holds(timeline)
    harness.check_accounting()


def test_close_twice_and_from_two_threads(harness: Harness) -> None:
    """Every close returns once the cache is closed, the first one and the others."""
    harness.prepared()
    run_threads([harness.cache.close] * 4)
    assert harness.living() == []
    harness.cache.close()
    harness.cache.close(0)
    with harness.cache as same:
        assert same is harness.cache
    harness.open()


def test_a_second_close_waits_for_the_first(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a close returns, the directory is free for the next cache."""
    with Gate() as gate:
        stop_before(monkeypatch, Catalog, "fence", gate)
        first = Worker(harness.cache.close)
        gate.wait_for()
        second = Worker(harness.cache.close)
        second.join(0.2)
        assert second.is_alive()
        gate.open()
        second.result()
        harness.open()
        first.result()


def test_a_second_close_waits_no_longer_than_it_was_told(harness: Harness) -> None:
    """While the first waits for a blocked host, the second gives up after its timeout."""
    timeline = harness.timeline()
    with Gate() as gate:
        timeline.on_send = gate
        harness.send(timeline)
        gate.wait_for()
        first = start_close(harness)
        harness.cache.close(0.05)
        assert first.is_alive()
        with pytest.raises(DirectoryLockedError):
            Harness(harness.dir).open()
        gate.open()
        first.result()
    harness.open()


def test_a_close_that_is_interrupted_can_be_finished(harness: Harness) -> None:
    """After a Ctrl-C while it waited, another close ends what the first has begun."""
    timeline, main = harness.timeline(), threading.main_thread()

    def interrupt() -> None:
        wait_until(lambda: is_waiting(main, "close"))
        signal.raise_signal(signal.SIGINT)  # the main thread handles it

    with Gate() as gate:
        stop_while_sending(timeline, gate)
        harness.send(timeline)
        gate.wait_for()
        interrupting = Worker(interrupt)
        with interruptible(), pytest.raises(KeyboardInterrupt):
            harness.cache.close()
        interrupting.result()
        gate.open()
    harness.cache.close()
    harness.open()
    harness.check_accounting()


def test_a_lock_that_cannot_be_freed_is_told_and_the_close_ends(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk error at the end of a close is logged, not raised."""
    locks: list[DirectoryLock] = []

    def fail(lock: DirectoryLock) -> None:
        locks.append(lock)
        raise OSError(errno.EIO, "the disk fails")

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryLock, "release", fail)
        harness.cache.close()
    assert "cannot unlock" in caplog.text
    locks[0].release()
    assert _can_open(harness.dir)


def test_use_after_close(harness: Harness) -> None:
    """Every method is harmless then, and nothing is counted."""
    timeline = harness.prepared()
    cache = harness.cache
    cache.close()
    before, tree = samples(harness.registry), _tree(harness.dir)
    assert cache.get(harness.tenant.tenant_id, timeline.timeline_id, LSN_A) is None
    harness.send(timeline, LSN_B)
    cache.send_prepare(TenantShardId(harness.tenant.tenant_id, 1, 2), timeline.timeline_id, LSN_A)
    cache.send_prepare(None, None, None)  # type: ignore[arg-type]
    cache.run_cleanup()
    assert cache.entries() == []
    assert cache.is_enabled
    assert not cache.wait_idle()
    assert not cache.wait_initialized()
    assert samples(harness.registry) == before
    assert _tree(harness.dir) == tree


def test_leaving_the_block_waits_ten_seconds_at_most(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`with` closes with a timeout, also when the block raises, and lets its error through."""
    timeouts_s: list[float] = []
    real_close: Callable[[float], None] = harness.engine.close

    def close(timeout_s: float) -> None:
        timeouts_s.append(timeout_s)
        real_close(timeout_s)

    monkeypatch.setattr(harness.engine, "close", close)
    with pytest.raises(LookupError), harness.cache:
        raise LookupError
    assert timeouts_s == [10.0]
    harness.open()


def test_waiting_threads_are_told(harness: Harness) -> None:
    """A close wakes callers of `wait_idle`."""
    timeline = harness.timeline()
    with Gate() as gate:
        timeline.on_send = gate
        harness.send(timeline)
        gate.wait_for()
        waiters = [Worker(harness.cache.wait_idle) for _ in range(2)]
        harness.cache.close(0)
        assert all(waiter.result() in {True, False} for waiter in waiters)


def test_close_beside_use_in_many_threads(harness: Harness) -> None:
    """Requests and reads at the moment of the close end well, each counted at most once."""
    timelines = [harness.prepared() for _ in range(3)]
    sent: list[None] = []
    closing = threading.Event()

    def use() -> None:
        while not closing.is_set():
            for timeline in timelines:
                assert harness.get(timeline) in {None, tar_of(timeline)}
                harness.send(timeline, LSN_A)
                sent.append(None)
                harness.cache.run_cleanup()
                harness.cache.entries()

    def close() -> None:
        wait_until(lambda: len(sent) > 50)
        harness.cache.close()
        closing.set()

    run_threads([use, use, use, close])
    assert sum(harness.counts().values()) <= 3 + len(sent)
    harness.open()
    assert len(harness.cache.entries()) == 3
    harness.check_accounting()


def test_a_dropped_cache_is_closed_in_the_background(tmp_path: Path) -> None:
    """It gives a ResourceWarning, its threads end, and the directory is free."""
    host = MemoryHost()
    tenant = host.add_tenant()
    timeline = tenant.add_timeline(LSN_A)
    registry = CollectorRegistry()
    before = set(threading.enumerate())
    cache = BasebackupCache.spawn(tmp_path, BasebackupCacheConfig(), host, registry)
    assert cache.wait_initialized(DEADLINE_S)
    threads = set(threading.enumerate()) - before
    assert threads
    kept = weakref.ref(host)  # by the cache alone
    del host
    with Gate() as gate:
        stop_while_sending(timeline, gate)
        cache.send_prepare(tenant.tenant_shard_id, timeline.timeline_id, LSN_A)
        gate.wait_for()
        with pytest.warns(ResourceWarning, match=str(tmp_path)):
            del cache
    wait_until(lambda: not any(thread.is_alive() for thread in threads))
    wait_until(lambda: _can_open(tmp_path))
    wait_until(lambda: gc.collect() >= 0 and kept() is None)


def _can_open(data_dir: Path) -> bool:
    try:
        with Harness(data_dir) as harness:
            assert harness.entry_files() == []
            assert harness.temp_files() == []
    except DirectoryLockedError:
        return False
    return True
