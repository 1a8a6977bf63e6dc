"""The threads of one cache, and the parts that they work with."""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from bbcache import lifecycle
from bbcache.errors import ArgumentError
from bbcache.ids import check_shard_ids
from bbcache.metrics import Metrics
from bbcache.outcomes import SkipReason
from bbcache.pacer import Pacer
from bbcache.prepare.backoff import Backoff
from bbcache.prepare.builder import Builder
from bbcache.prepare.ending import Ending, log_refused, log_skip
from bbcache.prepare.line import Line
from bbcache.prepare.on_demand import Filler
from bbcache.prepare.queue import PrepareQueue
from bbcache.prepare.request import Request
from bbcache.prepare.worker import Preparer
from bbcache.storage.accounting import Accounting
from bbcache.storage.catalog import Catalog
from bbcache.storage.files import Store
from bbcache.storage.index import Index, make_key
from bbcache.storage.reader import Reader
from bbcache.ticker import Ticker
from bbcache.upkeep.cleanup import Cleaner
from bbcache.upkeep.startup import announce, load
from bbcache.waiters import Waiters
from bbcache.work_counter import WorkCounter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry

    from bbcache.config import BasebackupCacheConfig
    from bbcache.host import TenantManager
    from bbcache.ids import Lsn, TenantShardId, TimelineId
    from bbcache.storage.dirlock import DirectoryLock
    from bbcache.storage.index import Entry

_FENCE_TIMEOUT_S: Final = 1.0  # the least that a close waits for a step on the disk

log = logging.getLogger(__name__)


class Engine:
    """Wires the parts of one cache and owns its threads. Thread-safe.

    The threads know the engine and not the `BasebackupCache` in front of it, so that
    a cache that is dropped without a close can be closed all the same.

    Args:
        data_dir: absolute path of the directory.
        config: the settings.
        tenants: the host.
        dirlock: the lock on the directory, already held.
        registry: for the metrics; None for the default one.

    Attributes:
        is_serving: False as soon as a close has begun; one read of memory.
    """

    def __init__(
        self,
        data_dir: str,
        config: BasebackupCacheConfig,
        tenants: TenantManager,
        dirlock: DirectoryLock,
        registry: CollectorRegistry | None,
    ) -> None:
        self.data_dir = data_dir
        self.is_serving = True
        self.index = Index(Accounting.from_config(config))
        self.work_counter = WorkCounter()
        self._config = config
        self._dirlock = dirlock
        line = Line(config.prepare_channel_size)
        self._metrics = Metrics(registry, self.index.accounting, line.__len__)
        self._queue = PrepareQueue(line, self._metrics, self.work_counter)
        self.store = Store(data_dir)
        self._catalog = Catalog(self.store, self.index, dirlock, self._metrics)
        pacer, backoff = Pacer(), Backoff()
        self.cleaner = Cleaner(
            tenants, self.index, self._catalog, self._metrics, self.work_counter, pacer
        )
        self.reader = self._make_reader(pacer)
        self._builder = self._make_builder()
        self._preparer = self._make_preparer(tenants, backoff)
        self.filler = self._make_filler(backoff)
        self._changed = Waiters()  # for a change of the next, or of is_serving
        self._is_initialized = self._is_abandoned = self._is_closed = False
        self._close_lock = threading.RLock()  # guards _has_closer
        self._has_closer = False
        self._own_threads: set[threading.Thread] = set()  # complete once start() returns
        self._ended_threads: set[threading.Thread] = set()
        self._entered: SimpleQueue[None] = SimpleQueue()
        self._executor = ThreadPoolExecutor(config.prepare_concurrency, "bbcache-prepare")
        self._background = threading.Thread(target=self._run, name="bbcache-cleanup")

    def _make_reader(self, pacer: Pacer) -> Reader:
        return Reader(
            self.index,
            self.store,
            self._catalog,
            self._metrics,
            self.work_counter,
            pacer,
            verify_reads=self._config.verify_reads,
            rebuild=self._rebuild,
        )

    def _make_builder(self) -> Builder:
        return Builder(
            self._config,
            self.index,
            store=self.store,
            catalog=self._catalog,
            metrics=self._metrics,
        )

    def _make_preparer(self, tenants: TenantManager, backoff: Backoff) -> Preparer:
        return Preparer(
            self._config,
            tenants,
            self.index,
            builder=self._builder,
            queue=self._queue,
            metrics=self._metrics,
            backoff=backoff,
        )

    def _make_filler(self, backoff: Backoff) -> Filler:
        return Filler(
            self.reader,
            self._queue,
            backoff=backoff,
            metrics=self._metrics,
            is_own_thread=lambda: threading.current_thread() in self._own_threads,
        )

    def start(self) -> None:
        """Start the threads; when that fails, everything is undone."""
        self._warn_of_settings()
        lifecycle.close_at_exit(self)
        try:
            for _ in range(self._config.prepare_concurrency):
                self._executor.submit(self._work)
                self._entered.get()
            self._background.start()
            self._entered.get()
        except BaseException:
            self.close(None)
            self._metrics.withdraw()
            raise

    def _warn_of_settings(self) -> None:
        path = self._config.unpublished_dir
        if path is not None and not os.path.isdir(path):
            log.warning(
                "unpublished_dir %s is no directory: get_or_prepare fails when the disk of the "
                "cache does\nhint: Make the directory; no restart is needed.",
                os.fspath(path),
            )

    @property
    def is_initialized(self) -> bool:
        """Whether the entries on disk are known."""
        return self._is_initialized

    @property
    def degraded_reason(self) -> str | None:
        """See `BasebackupCache.degraded_reason`."""
        return self._builder.degraded_reason

    def wait_initialized(self, timeout_s: float | None) -> bool:
        """Wait until the entries on disk are known; False when the cache closed before."""
        self._changed.wait_for(lambda: self._is_initialized or not self.is_serving, timeout_s)
        return self._is_initialized

    def wait_idle(self, timeout_s: float | None) -> bool:
        """See `BasebackupCache.wait_idle`."""
        return self.work_counter.wait_for(self._is_idle, timeout_s)

    def send_prepare(
        self, tenant_shard_id: TenantShardId, timeline_id: TimelineId, lsn: Lsn
    ) -> None:
        """Queue a prepare; whatever goes wrong is counted and logged."""
        try:
            check_shard_ids(tenant_shard_id, timeline_id, lsn)
            key = make_key(tenant_shard_id.tenant_id, timeline_id)
            if tenant_shard_id.is_shard_zero:
                self._queue.submit(Request(key, lsn, tenant_shard_id, time.monotonic()))
            else:
                ending = Ending.skip(SkipReason.NOT_SHARD_ZERO)
                ending.count_in(self._metrics)
                log_skip(key, lsn, ending)
        except ArgumentError as error:
            self._metrics.prepare_failed()
            log_refused(error)
        except Exception:
            log.exception("a prepare could not be queued")

    def begin_close(self) -> None:
        """Stop every thread soon, and cancel what waits; without waiting. Idempotent."""
        self._stop()
        self._queue.close()

    def close(self, timeout: float | None = None) -> None:
        """See `BasebackupCache.close`."""
        deadline_s = None if timeout is None else time.monotonic() + timeout
        self.begin_close()
        is_own_thread = threading.current_thread() in self._own_threads
        while not (self._try_to_close(deadline_s) or is_own_thread):
            left_s = _remaining_s(deadline_s)
            if not self._changed.wait_for(lambda: self._is_closed or not self._has_closer, left_s):
                break

    def _try_to_close(self, deadline_s: float | None) -> bool:
        """Finish a close; False where another thread is about to, which may be interrupted."""
        is_closer = False
        try:
            with self._close_lock:
                if self._is_closed:
                    return True
                is_closer, self._has_closer = not self._has_closer, True
            if is_closer:
                self._finish_close(deadline_s)
        except BaseException:
            if is_closer:
                self._has_closer = False
                self._changed.wake_all()
            raise
        return is_closer

    def abandon(self) -> None:
        """Close in the background, for a finaliser: it may wait for no thread and no lock."""
        self._is_abandoned = True
        self._catalog.stop()
        self._stop()

    def _stop(self) -> None:
        """Tell every thread. A finaliser may call it: no lock is taken."""
        self.is_serving = False
        self._preparer.stop()
        self._changed.wake_all()

    def _is_idle(self) -> bool:
        if not self.work_counter.is_idle():
            return False
        with suppress(OSError):  # a later look may succeed
            self._catalog.settle_doubt()
        return self._is_initialized and self._queue.is_idle()

    def _rebuild(self, entry: Entry) -> None:
        self._queue.submit(Request(entry.key, entry.lsn, None, time.monotonic()))

    def _work(self) -> None:
        with self._own_thread():
            self._preparer.work()

    @contextmanager
    def _own_thread(self) -> Iterator[None]:
        """Tell that the current thread has begun, and when it is about to end."""
        current = threading.current_thread()
        self._own_threads.add(current)
        self._entered.put(None)
        try:
            yield
        finally:
            self._ended_threads.add(current)
            self._changed.wake_all()

    def _run(self) -> None:
        """The life of the background thread."""
        with self._own_thread():
            self._load_and_tick()
        if self._is_abandoned:
            self.close(None)

    def _load_and_tick(self) -> None:
        """Load, then clean up period by period."""
        report = load(
            self._catalog,
            self.data_dir,
            is_stopped_in=self._is_stopped_in,
            on_failure=lambda: self._queue.open(for_fills_only=True),  # it must not stop a start
        )
        if report is not None:
            with suppress(BaseException):  # as in `startup.load`
                announce(report, self.data_dir)
            self._metrics.loaded_entries.set(report.entry_count)
            self._metrics.refresh()
            self._is_initialized = True
            self._changed.wake_all()
            self._queue.open()
            self.work_counter.changed()
        self._tick()

    def _tick(self) -> None:
        ticker = Ticker(self._config.cleanup_period, time.monotonic())
        while not self._is_stopped_in(ticker.delay_s(time.monotonic())):
            with suppress(BaseException):  # as in `startup.load`
                self._clean_up()
            ticker.advance(time.monotonic())

    def _clean_up(self) -> None:
        try:
            self.cleaner.step()
        except BaseException:
            log.exception("a clean-up step failed")

    def _is_stopped_in(self, timeout_s: float) -> bool:
        """Wait, and tell whether the cache has begun to close."""
        return self._changed.wait_for(lambda: not self.is_serving, timeout_s)

    def _finish_close(self, deadline_s: float | None) -> None:
        left = self._join(deadline_s)
        if left:
            log.warning(
                "closing the cache on %s leaves threads behind: %s; they change nothing any more",
                self.data_dir,
                ", ".join(left),
            )
        self._queue.abandon_running()
        remaining_s = _remaining_s(deadline_s)
        if self._catalog.fence(-1 if remaining_s is None else max(_FENCE_TIMEOUT_S, remaining_s)):
            self._unlock()
        else:
            log.error("a step on the disk hangs; %s stays locked", self.data_dir)
        self._metrics.close()
        self.work_counter.give_up()
        lifecycle.forget(self)
        self._is_closed = True
        self._changed.wake_all()

    def _unlock(self) -> None:
        try:
            self._dirlock.release()
        except OSError:
            log.exception("cannot unlock %s; it is free when this process ends", self.data_dir)

    def _join(self, deadline_s: float | None) -> list[str]:
        """Wait for all threads but the current one; returns the names of those left."""
        current = threading.current_thread()
        self._executor.shutdown(wait=False)
        others = self._own_threads - {current}
        # An interrupted join takes its thread for ended, so only those are joined that are.
        self._changed.wait_for(lambda: others <= self._ended_threads, _remaining_s(deadline_s))
        for thread in others & self._ended_threads:
            thread.join()
        return sorted(thread.name for thread in others - self._ended_threads)


def _remaining_s(deadline_s: float | None) -> float | None:
    return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
