"""The public face of a cache."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from prometheus_client import CollectorRegistry

from bbcache import lifecycle
from bbcache.arguments import seconds, wrong_type
from bbcache.config import BasebackupCacheConfig
from bbcache.engine import Engine
from bbcache.errors import BbcacheError, ClosingError, FillError
from bbcache.explanation import Explanation
from bbcache.host import TenantManager
from bbcache.ids import (
    Lsn,
    TenantId,
    TenantShardId,
    TimelineId,
    check_ids,
    check_shard_ids,
    check_type,
)
from bbcache.second_tier import Tier
from bbcache.spawn_arguments import absolute_path, check_config, check_spawn, close_unused
from bbcache.storage.dirlock import DirectoryLock
from bbcache.storage.disk_errors import disk_step
from bbcache.storage.files import BasebackupFile
from bbcache.storage.index import EntryInfo

EXIT_TIMEOUT_S: Final = 10.0  # the longest wait at the end of a `with` block


class BasebackupCache:
    """Basebackups on local disk, made ahead of need. Make one with `spawn`.

    Every method may be called from any thread at any time: before the start is done, during a
    close, and after it. As with any lock in Python, do not call one from a signal handler: set
    a flag there, or raise. A KeyboardInterrupt in a method does the cache no harm. In a forked
    child a cache is inert: `get` returns None, `entries` is empty, and the rest does nothing.

    Arguments of a wrong type raise `ArgumentError` (a `TypeError`), except in `send_prepare` and
    `send_warm`, which count and log them.

    A cache holds a directory lock and threads until it is closed: use `close`, or a ``with``
    block. A cache that is dropped without gives a ResourceWarning and is closed in the
    background.
    """

    _engine: Engine | None = None  # so that an interrupted `spawn` can drop the cache

    def __init__(self, engine: Engine | None) -> None:
        """Not for callers: see `spawn`."""
        self._generation = lifecycle.generation()
        self._engine = engine

    @classmethod
    def spawn(
        cls,
        data_dir: str | os.PathLike[str],
        config: BasebackupCacheConfig | None,
        tenant_manager: TenantManager,
        registry: CollectorRegistry | None = None,
        clock: Callable[[], float] = time.monotonic,
        tier: Tier | None = None,
    ) -> Self:
        """Lock the directory and start; all else happens in the background.

        On a read-only file system the directory is not locked: its entries are served, and
        nothing is published or removed before it can be locked.

        Args:
            data_dir: where the archives are kept; made if it does not exist. No other cache
                may use it at the same time.
            config: the settings; None gives a cache that is disabled and does nothing.
            tenant_manager: the host.
            registry: where the metrics are registered; None for Prometheus' default registry,
                which `close` takes them out of again.
            clock: returns seconds that only grow; by it the pauses after failed builds end. A test
                of a host passes one that it can advance: `bbcache.testing.MovableClock`.
            tier: the second tier, such as a `bbcache.tier.ObjectTier` of the settings' `tier`.
                The cache closes it, also if it does not start.

        Raises:
            DirectoryLockedError: another cache has the directory.
            StoreError: (an `OSError`) the directory cannot be made or locked.
            ConfigError: the registry has the metrics of another cache; or the settings have a
                tier, and none is given.
            ArgumentError: for arguments of a wrong type. Of the host, only the methods of the
                manager are checked; see `bbcache.testing.check_host`.
        """
        if config is None:
            close_unused(tier)
            return cls(None)
        try:
            return cls._spawn(data_dir, config, tenant_manager, registry, clock, tier)
        except BaseException:
            close_unused(tier)
            raise

    @classmethod
    def _spawn(
        cls,
        data_dir: str | os.PathLike[str],
        config: BasebackupCacheConfig,
        tenant_manager: TenantManager,
        registry: CollectorRegistry | None,
        clock: Callable[[], float],
        tier: Tier | None,
    ) -> Self:
        check_spawn(data_dir, config, tenant_manager, registry, tier)
        path = absolute_path(os.fspath(data_dir))
        with disk_step("make the cache directory", path):
            os.makedirs(path, mode=0o700, exist_ok=True)
        dirlock = DirectoryLock(path)
        try:
            dirlock.acquire_unless_read_only()
            engine = Engine(path, config, tenant_manager, dirlock, registry, clock, tier)
            cache = cls(engine)
        except BaseException:
            dirlock.release()
            raise
        engine.start()
        return cache

    @property
    def is_enabled(self) -> bool:
        """Whether the cache was spawned with a configuration."""
        return self._engine is not None

    @property
    def degraded_reason(self) -> str | None:
        """Why nothing can be published now, in one line; None if nothing is known.

        Either the file system of the directory is read-only, or its disk has refused the
        last archive that was to be published. Entries are still served.
        """
        engine = self._live_engine()
        return None if engine is None else engine.builder.degraded_reason

    def get(self, tenant_id: TenantId, timeline_id: TimelineId, lsn: Lsn) -> BasebackupFile | None:
        """Open the archive of the timeline at exactly `lsn`; None if there is none.

        A miss touches no disk. A failing disk is counted and logged, never raised: it is a
        miss for the caller.

        Args:
            tenant_id: the tenant.
            timeline_id: its timeline.
            lsn: the position, in the form that the host used for `send_prepare`.

        Returns:
            An unbuffered binary file at offset 0, with `lsn` and `size_bytes`. The
            caller closes it.
        """
        engine = self._engine
        if engine is None or not engine.is_serving:  # `_live_engine`, without a call
            check_ids(tenant_id, timeline_id, lsn)
            return None
        return engine.reader.read(tenant_id, timeline_id, lsn)

    def get_held(
        self, tenant_id: TenantId, timeline_id: TimelineId, lsn: Lsn
    ) -> BasebackupFile | None:
        """Like `get`, but leave counting a miss to the `get_or_prepare` that follows."""
        engine = self._live_engine()
        if engine is None:
            check_ids(tenant_id, timeline_id, lsn)
            return None
        return engine.reader.read(tenant_id, timeline_id, lsn, counts_misses=False)

    def get_or_prepare(
        self,
        tenant_shard_id: TenantShardId,
        timeline_id: TimelineId,
        lsn: Lsn,
        timeout_s: float | None = None,
        check_cancelled: Callable[[], None] | None = None,
    ) -> BasebackupFile:
        """Open the archive of the timeline at exactly `lsn`, and build it first if need be.

        Concurrent callers share a single build, which has the workers, checks and limits of
        `send_prepare`. An archive that must not be published (no room, too big, the timeline is
        past the LSN, the tenant's switch is off) is still returned, as a file without a name.
        If the disk of the cache fails, the host is asked once more, and the archive is built in
        `unpublished_dir` of the settings.

        The call waits, so a host callback must not make it: there it raises on a miss.

        Args:
            tenant_shard_id: shard zero of the tenant.
            timeline_id: its timeline.
            lsn: the position, in the form that the host uses for `send_prepare`.
            timeout_s: seconds to wait for a build; None waits until it ends, 0 or less returns
                only hits. The build goes on after the timeout.
            check_cancelled: called in this thread about five times a second during the wait;
                an exception that it raises ends the wait.

        Returns:
            An unbuffered binary file at offset 0, with `lsn`, `size_bytes` and `source`:
            ``hit``, ``joined``, ``built`` or ``fetched``. The caller closes it.

        Raises:
            FillTimeoutError: (a `TimeoutError`) the archive was not ready in time.
            BackingOffError: the last builds have failed; says when the next one is tried.
            FillError: the build has failed, for every caller that waits for it, with the cause;
                or nothing can be built here.
            ClosingError: the cache is closing, or closed.
        """
        check_shard_ids(tenant_shard_id, timeline_id, lsn)
        timeout_s = seconds("timeout_s", timeout_s)
        if check_cancelled is not None and not callable(check_cancelled):
            raise wrong_type("check_cancelled", check_cancelled, "a function without arguments")
        engine = self._live_engine()
        if engine is None:
            raise self._why_dead()
        return engine.filler.get(tenant_shard_id, timeline_id, lsn, timeout_s, check_cancelled)

    def send_prepare(
        self, tenant_shard_id: TenantShardId, timeline_id: TimelineId, lsn: Lsn
    ) -> None:
        """Ask for a basebackup in the background. Never blocks, never raises.

        Call it when the timeline's WAL has a shutdown checkpoint that ends at `lsn`.
        Of several requests for one timeline the newest LSN wins.

        Args:
            tenant_shard_id: the tenant's shard; all but shard zero are skipped.
            timeline_id: its timeline.
            lsn: the end of the checkpoint record.
        """
        engine = self._live_engine()
        if engine is not None:
            engine.sender.send_prepare(tenant_shard_id, timeline_id, lsn)

    def send_warm(
        self,
        tenant_shard_id: TenantShardId,
        timeline_id: TimelineId,
        lsn: Lsn,
        build: bool = False,  # noqa: FBT002 - by position or by name, as all arguments here
    ) -> None:
        """Ask for a basebackup from the second tier in the background. Never blocks or raises.

        Call it when a tenant is attached, before its first start. In a full cache nothing is
        fetched, since nothing is evicted for it, unless `build` is set.

        Args:
            tenant_shard_id: the tenant's shard; all but shard zero are skipped.
            timeline_id: its timeline.
            lsn: the LSN that the first start will ask for: the tip.
            build: whether to treat this as a `send_prepare` that asks the tier first: it may
                evict, and what the tier does not give is built.
        """
        engine = self._live_engine()
        if engine is not None:
            engine.sender.send_warm(tenant_shard_id, timeline_id, lsn, build=build)

    def set_limits(self, config: BasebackupCacheConfig) -> None:
        """Keep to other limits from now on; the next clean-ups shrink a cache that is over them.

        Args:
            config: has the limits (`bbcache.config.LIMITS`); its other settings take a new
                cache.
        """
        check_config(config, "a BasebackupCacheConfig")
        engine = self._live_engine()
        if engine is not None:
            engine.evictor.set_limits(config)

    def wait_initialized(self, timeout: float | None = None) -> bool:
        """Wait until the entries on disk are known and served.

        Args:
            timeout: seconds to wait; None waits without limit.

        Returns:
            False if that took too long, or the cache was closed before.
        """
        return self._wait(Engine.wait_initialized, timeout)

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until the start is done, no prepare is queued or runs, nothing is removed.

        Args:
            timeout: seconds to wait; None waits without limit.

        Returns:
            False if that took too long, or the cache was closed before.
        """
        return self._wait(Engine.wait_idle, timeout)

    def _wait(self, wait: Callable[[Engine, float | None], bool], timeout: float | None) -> bool:
        timeout_s = seconds("timeout", timeout)
        if self._engine is None:
            return True
        engine = self._live_engine()
        return engine is not None and wait(engine, timeout_s)

    def run_cleanup(self) -> None:
        """Run one clean-up step now, in the caller's thread; see `bbcache.upkeep.cleanup`."""
        engine = self._live_engine()
        if engine is not None and engine.is_initialized:
            engine.cleaner.step()

    def entries(self) -> list[EntryInfo]:
        """The published entries of this moment; empty once closed."""
        engine = self._live_engine()
        return [] if engine is None else [entry.info() for entry in engine.index.by_key().values()]

    def explain(
        self,
        tenant_id: TenantId,
        timeline_id: TimelineId,
        memory_only: bool = False,  # noqa: FBT002 - by position or by name, as all arguments here
    ) -> Explanation:
        """Say why the timeline has an entry, or has none.

        The host and the disk are asked in the caller's thread, which waits for them as long as
        they take. What the host raises is part of the explanation.

        Args:
            tenant_id: the tenant.
            timeline_id: its timeline.
            memory_only: whether to ask neither of them.
        """
        check_type("tenant_id", tenant_id, TenantId)
        check_type("timeline_id", timeline_id, TimelineId)
        engine = self._live_engine()
        if engine is None:
            why = str(self._why_dead()).partition("\n")[0]
            return Explanation.of_dead_cache(tenant_id, timeline_id, why)
        return engine.explainer.explain(tenant_id, timeline_id, memory_only=memory_only)

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests, cancel what waits, stop what runs, free the directory.

        Afterwards this cache changes nothing on disk any more, even if a thread could not be
        stopped in time. Safe to call twice, from several threads, and from a host callback,
        which is then not waited for.

        Args:
            timeout: seconds to wait for the threads; None waits without limit.
        """
        timeout = seconds("timeout", timeout)
        if self._engine is not None and self._generation == lifecycle.generation():
            self._engine.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(EXIT_TIMEOUT_S)

    def __del__(self) -> None:
        engine = self._live_engine()
        if engine is not None:
            engine.abandon()
            warnings.warn(
                f"the basebackup cache on {engine.data_dir} was not closed",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def _why_dead(self) -> BbcacheError:
        if self._engine is None:
            return FillError(
                "the cache is disabled and builds nothing\n"
                "hint: Build the basebackup yourself, or give spawn a BasebackupCacheConfig."
            )
        if self._generation != lifecycle.generation():
            return FillError(
                "the cache belongs to the process that this one was forked from\n"
                "hint: Spawn a cache in this process, on a directory of its own."
            )
        return ClosingError("the cache is closed\nhint: Ask the cache that is started next.")

    def _live_engine(self) -> Engine | None:
        """The engine; None if the cache is disabled, closed or of another process."""
        engine = self._engine
        return engine if engine is not None and engine.is_serving else None
