"""The threads of one cache, and the parts that they work with."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from bbcache import lifecycle
from bbcache.explain import Explainer
from bbcache.history import History
from bbcache.metrics import Metrics
from bbcache.pacer import Pacer
from bbcache.prepare.backoff import Backoff
from bbcache.prepare.builder import Builder
from bbcache.prepare.fetcher import Fetcher
from bbcache.prepare.offer import offer
from bbcache.prepare.on_demand import Filler
from bbcache.prepare.queue import PrepareQueue
from bbcache.prepare.sender import Sender
from bbcache.prepare.worker import Preparer
from bbcache.storage.catalog import Catalog
from bbcache.storage.evictor import Evictor
from bbcache.storage.files import Store
from bbcache.storage.index import Index
from bbcache.storage.locked_policy import LockedPolicy
from bbcache.storage.pins import Pins
from bbcache.storage.reader import Reader
from bbcache.storage.saved_habits import SavedHabits
from bbcache.tier_config import TierConfig
from bbcache.upkeep.cleanup import Cleaner
from bbcache.upkeep.startup import announce, load
from bbcache.waiters import Waiters
from bbcache.work_counter import WorkCounter

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from bbcache.config import BasebackupCacheConfig
    from bbcache.host import TenantManager
    from bbcache.second_tier import Tier
    from bbcache.storage.dirlock import DirectoryLock

_FENCE_TIMEOUT_S: Final = 1.0  # the least that a close waits for a step on the disk
_LEAST_PAUSE_S: Final = 0.001  # between clean-ups, so that waiters for an idle cache find one

# For a tier of another make, whose settings the cache does not know.
_NO_CONFIG: Final = TierConfig(url="file:///nowhere", allow_unsigned=True)

log = logging.getLogger(__name__)


class Engine:
    """Wires the parts of one cache and owns its threads. Thread-safe.

    The threads know the engine and not the `BasebackupCache` in front of it, so that a cache
    that is dropped without a close can still be closed. The path of the directory is absolute,
    and its lock is held unless the file system is read-only.

    Attributes:
        is_serving: False as soon as a close has begun, and in a forked child.
        is_initialized: whether the entries on disk are known.
    """

    def __init__(
        self,
        data_dir: str,
        config: BasebackupCacheConfig,
        tenants: TenantManager,
        dirlock: DirectoryLock,
        registry: CollectorRegistry | None,
        clock: Callable[[], float],
        tier: Tier | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.is_serving = True
        self.is_initialized = False
        self.index = Index(config)
        self.work_counter = WorkCounter()
        self._config = config
        self._dirlock = dirlock
        self._metrics = Metrics(registry)
        history = History()
        self._queue = PrepareQueue(
            config.prepare_channel_size, self._metrics, history, self.work_counter
        )
        tier_config = config.tier or _NO_CONFIG
        fetch_timeout_s = None if tier is None else tier_config.fetch_timeout
        self.sender = Sender(self._queue, fetch_timeout_s)
        self.store = Store(data_dir)
        self._catalog = Catalog(self.store, self.index, dirlock, self._metrics)
        pacer = Pacer()
        self.policy = LockedPolicy(config, self.index, self.store)
        self._metrics.pinned_entries.read_from(self.policy.pinned_count)
        pins = Pins(config, self.index, self.policy)
        self.evictor = Evictor(
            config,
            self.index,
            self.store,
            self._catalog,
            self.policy,
            pins,
            self._metrics,
            history,
            pacer,
        )
        self._saved_habits = SavedHabits(self.store, self.index, self._catalog, self.policy)
        self.cleaner = Cleaner(
            tenants,
            self.index,
            self._catalog,
            self.evictor,
            pins,
            self._saved_habits,
            self._metrics,
            history,
            self.work_counter,
            pacer,
        )
        self.reader = Reader(
            self.index,
            self.store,
            self._catalog,
            self._metrics,
            history,
            self.work_counter,
            pacer,
            verify_reads=config.verify_reads,
            note_start=self.policy.note_start,
            rebuild=self.sender.rebuild,
        )
        self.builder = Builder(
            config,
            self.index,
            self.store,
            self._catalog,
            self.evictor,
            self._metrics,
            None if tier is None else partial(offer, tier, self.store),
        )
        backoff = Backoff(clock)
        self._preparer = Preparer(
            config, tenants, self.index, pins, self.builder, self._queue, self._metrics, backoff
        )
        self._tier = tier
        self.filler = Filler(
            self.reader,
            self._queue,
            backoff,
            self._metrics,
            history,
            self._is_in_own_thread,
            fetch_timeout_s,
        )
        self.explainer = Explainer(
            tenants,
            self.index,
            self.evictor,
            self.store,
            self._queue,
            backoff,
            history,
            self._notes,
        )
        self._changed = Waiters()  # for changes of the flags
        self._is_abandoned = self._is_closed = False
        self._close_lock = threading.RLock()  # guards _has_closer
        self._has_closer = False
        self._threads = [
            threading.Thread(target=self._work, name=f"bbcache-prepare_{number}")
            for number in range(config.prepare_concurrency)
        ]
        self._threads.append(threading.Thread(target=self._run, name="bbcache-cleanup"))
        if tier is not None:
            self._fetcher = Fetcher(tier, self._preparer, self.builder, self._queue, backoff)
            self._threads += [
                threading.Thread(target=self._fetch, name=f"bbcache-fetch_{number}")
                for number in range(tier_config.fetch_concurrency)
            ]
        self._ended_threads: set[threading.Thread] = set()

    def start(self) -> None:
        """Start the threads; if that fails, undo everything."""
        self._warn_of_settings()
        lifecycle.close_in_children(self)
        lifecycle.close_at_exit(self)
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.close(None)
            self._metrics.withdraw()
            raise

    def _warn_of_settings(self) -> None:
        path = self._config.unpublished_dir
        if path is not None and not os.path.isdir(path):
            log.warning(
                "unpublished_dir %s is not a directory: get_or_prepare fails when the disk of the "
                "cache does\nhint: Make the directory; no restart is needed.",
                os.fspath(path),
            )

    def wait_initialized(self, timeout_s: float | None) -> bool:
        """Wait until the entries on disk are known; False if the cache closes or time runs out."""
        self._changed.wait_for(lambda: self.is_initialized or not self.is_serving, timeout_s)
        return self.is_initialized

    def wait_idle(self, timeout_s: float | None) -> bool:
        """See `BasebackupCache.wait_idle`."""
        return self.work_counter.wait_for(self._is_idle, timeout_s)

    def _is_idle(self) -> bool:
        if not self.work_counter.is_idle():
            return False
        with suppress(OSError):  # a later call may succeed
            self._catalog.settle_doubt()
        return self.is_initialized and self._queue.is_idle()

    def _notes(self) -> tuple[str, ...]:
        """What an explanation says of the whole cache."""
        loading = None if self.is_initialized else "the entries on disk are not known yet"
        return tuple(filter(None, (loading, self.builder.degraded_reason)))

    def _work(self) -> None:
        """Run prepares: the life of a worker thread."""
        try:
            self._preparer.work()
        finally:
            self._end_thread()

    def _fetch(self) -> None:
        """Fetch from the second tier: the life of a fetch thread."""
        try:
            self._fetcher.work()
        finally:
            self._end_thread()

    def _run(self) -> None:
        """Load the directory, then clean up each period: the life of the background thread."""
        try:
            self._load()
            self._tick()
            if self._is_abandoned:
                self.close(None)
        finally:
            self._end_thread()

    def _end_thread(self) -> None:
        """Note that the current thread is about to end."""
        self._ended_threads.add(threading.current_thread())
        self._changed.wake_all()

    def _is_in_own_thread(self) -> bool:
        return threading.current_thread() in self._threads

    def _load(self) -> None:
        report = load(
            self._catalog,
            self.data_dir,
            is_stopped_in=self._is_stopped_in,
            on_failure=lambda: self._queue.open(for_fills_only=True),  # callers need not wait
        )
        if report is None:
            return
        with suppress(BaseException):  # a log handler may raise
            announce(report, self.data_dir)
        self._metrics.loaded_entries.set(report.entry_count)
        self._metrics.refresh()
        with self.work_counter.under_way():
            self.is_initialized = True
            self._changed.wake_all()
            self._saved_habits.load()
            self._queue.open()
        self.work_counter.changed()

    def _tick(self) -> None:
        """Clean up at whole periods after the start; missed ticks are skipped."""
        period_s = self._config.cleanup_period
        due_s = time.monotonic() + period_s
        while not self._is_stopped_in(max(_LEAST_PAUSE_S, due_s - time.monotonic())):
            with suppress(BaseException):  # a log handler may raise
                try:
                    self.cleaner.step()
                    self.cleaner.save_habits()
                except BaseException:
                    log.exception("a clean-up step failed")
            late_s = max(0.0, time.monotonic() - due_s)
            due_s += period_s * (1 + late_s // period_s)

    def _is_stopped_in(self, timeout_s: float) -> bool:
        """Wait, and tell whether the cache has begun to close."""
        return self._changed.wait_for(lambda: not self.is_serving, timeout_s)

    def begin_close(self) -> None:
        """Tell every thread to end, and cancel what waits; does not wait. Idempotent."""
        self._stop()
        self._queue.close()

    def abandon(self) -> None:
        """Close in the background, for a finaliser: waits for no thread and takes no lock."""
        self._is_abandoned = True
        self._stop()

    def close_inherited(self) -> None:
        """See `bbcache.lifecycle.ThreadOwner`."""
        self.is_serving = False

    def _stop(self) -> None:
        self.is_serving = False
        self.builder.stop()
        self._changed.wake_all()

    def close(self, timeout: float | None = None) -> None:
        """See `BasebackupCache.close`."""
        deadline_s = None if timeout is None else time.monotonic() + timeout
        self.begin_close()
        while not (self._try_to_close(deadline_s) or self._is_in_own_thread()):
            left_s = _remaining_s(deadline_s)
            if not self._changed.wait_for(lambda: self._is_closed or not self._has_closer, left_s):
                break

    def _try_to_close(self, deadline_s: float | None) -> bool:
        """Finish a close; False if another thread is finishing it, which may be interrupted."""
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

    def _finish_close(self, deadline_s: float | None) -> None:
        left = self._join(deadline_s)
        if left:
            log.warning(
                "closing the cache on %s leaves threads behind: %s; they change nothing any more",
                self.data_dir,
                ", ".join(left),
            )
        self._queue.abandon_running()
        self._close_tier(deadline_s)
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

    def _close_tier(self, deadline_s: float | None) -> None:
        """Let the tier bring out what waits, while the directory is still this cache's."""
        if self._tier is None:
            return
        try:
            self._tier.close(_remaining_s(deadline_s))
        except Exception:
            log.exception("the second tier was not closed")

    def _join(self, deadline_s: float | None) -> list[str]:
        """Wait for all threads but the current one; returns the names of those left."""
        started = {thread for thread in self._threads if thread.ident is not None}
        others = started - {threading.current_thread()}
        # An interrupted `Thread.join` may mark a live thread as ended: join ended ones only.
        self._changed.wait_for(lambda: others <= self._ended_threads, _remaining_s(deadline_s))
        for thread in others & self._ended_threads:
            thread.join()
        return sorted(thread.name for thread in others - self._ended_threads)

    def _unlock(self) -> None:
        try:
            self._dirlock.release()
        except OSError:
            log.exception("cannot unlock %s; it is free when this process ends", self.data_dir)


def _remaining_s(deadline_s: float | None) -> float | None:
    return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
