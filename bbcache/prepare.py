"""Preparing one basebackup: the checks, the wait for the LSN, the build, publishing.

The first check that fails decides; see `Preparer.run`. Whatever a host callback
raises is counted and logged, and the worker goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from bbcache.archive import ArchiveWriter, pack_header
from bbcache.errors import (
    CacheFullError,
    ClosingError,
    EntryTooBigError,
    PrepareError,
    StoreError,
    text_of,
)
from bbcache.host import TenantState
from bbcache.index import Entry, Proof, split_key
from bbcache.latch import Latch
from bbcache.metrics import Phase, SkipReason
from bbcache.store import disk_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bbcache.accounting import Reservation
    from bbcache.activity import Activity
    from bbcache.archive import Seal
    from bbcache.config import BasebackupCacheConfig
    from bbcache.host import Tenant, TenantManager, Timeline
    from bbcache.index import Index
    from bbcache.metrics import Metrics
    from bbcache.prepare_queue import PrepareQueue, Request
    from bbcache.shelf import Shelf
    from bbcache.store import Store, TempFile

WAIT_SLICE_S: Final = 0.2  # how long a close may wait for a host that waits for an LSN

log = logging.getLogger(__name__)


class _Skip(Exception):  # noqa: N818 - not an error: it ends a prepare that is not needed
    def __init__(self, reason: SkipReason, why: BaseException | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.why = why


class Preparer:
    """Runs prepares, several at once. Thread-safe.

    Args:
        config: timeouts and the compression level.
        tenants: the host.
        index: where room is reserved.
        store: where temporary files are made.
        shelf: where archives are published.
        queue: where requests come from.
        metrics: counts how they end.
        activity: is told when a request has ended.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        config: BasebackupCacheConfig,
        tenants: TenantManager,
        index: Index,
        *,
        store: Store,
        shelf: Shelf,
        queue: PrepareQueue,
        metrics: Metrics,
        activity: Activity,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._tenants = tenants
        self._index = index
        self._store = store
        self._shelf = shelf
        self._queue = queue
        self._metrics = metrics
        self._activity = activity
        self._clock = clock
        self._is_stopping = Latch()
        self._writers_lock = threading.RLock()  # guards _writers
        self._writers: set[ArchiveWriter] = set()

    def work(self) -> None:
        """Run requests until the queue is closed: the life of one worker thread."""
        while (request := self._queue.take()) is not None:
            self.run(request)

    def stop(self) -> None:
        """Make builds under way fail at their next write, and waits at their next slice."""
        self._is_stopping.set()
        with self._writers_lock:
            writers = list(self._writers)
        for writer in writers:
            writer.cancel(ClosingError("the cache is closing"))

    def run(self, request: Request) -> None:
        """Run one request to its end, whatever it raises, and count it."""
        count: Callable[[], None] = self._metrics.prepare_failed
        try:
            count = self._prepare(request)
        except _Skip as skip:
            count = self._skip(request, skip)
        except (StoreError, PrepareError) as error:
            _log_failure(request, error, exc_info=False)
        except BaseException as error:  # noqa: BLE001 - SystemExit of a host must not end a worker
            _log_failure(request, error, exc_info=True)
        finally:
            self._queue.done(request)
            self.settle(request, count)

    def settle(self, request: Request, count: Callable[[], None]) -> None:
        """Count a request, unless that was done, and end its activity."""
        if self._queue.claim(request):
            count()
            self._activity.end()

    def _skip(self, request: Request, skip: _Skip) -> Callable[[], None]:
        log.log(
            logging.WARNING if skip.why else logging.DEBUG,
            "basebackup of %s at %s skipped (%s)%s",
            split_key(request.key),
            request.lsn,
            skip.reason,
            f": {skip.why}" if skip.why else "",
        )
        reason = skip.reason
        return lambda: self._metrics.skipped(reason)

    def _prepare(self, request: Request) -> Callable[[], None]:
        started_s = self._clock()
        self._metrics.observe(Phase.QUEUE, started_s - request.queued_at_s)
        timeline = self._find_timeline(request)
        self._check_still_wanted(request, timeline)
        with _own_limits():
            self._index.check_room(request.key)
        with _Timer(self._metrics, Phase.WAIT_LSN, self._clock):
            self._wait_lsn(timeline, request)
        self._check_not_stopping()
        _check_tip(request, timeline)
        seal, entry = self._build_and_publish(request, timeline)
        log.info(
            "basebackup of %s prepared: %d bytes in %.3f s",
            entry,
            entry.size_bytes,
            self._clock() - started_s,
        )
        return lambda: self._metrics.prepared(seal.tar_bytes, entry.size_bytes)

    def _find_timeline(self, request: Request) -> Timeline:
        tenant = self._find_tenant(request)
        if not tenant.basebackup_cache_enabled():
            raise _Skip(SkipReason.DISABLED)
        state = tenant.current_state()
        if state is not TenantState.ACTIVE:
            raise PrepareError(f"the tenant is {state}, not {TenantState.ACTIVE}")
        return tenant.get_timeline(split_key(request.key).timeline_id)

    def _find_tenant(self, request: Request) -> Tenant:
        if request.tenant_shard_id is not None:
            return self._tenants.get_attached_tenant_shard(request.tenant_shard_id)
        tenant_id = split_key(request.key).tenant_id
        for shard_id, tenant in self._tenants.list():
            if shard_id.tenant_id == tenant_id and shard_id.is_shard_zero and tenant is not None:
                return tenant
        raise PrepareError("shard zero of the tenant is not attached here")

    def _check_still_wanted(self, request: Request, timeline: Timeline) -> None:
        held = self._index.newest(request.key)
        if held is not None and held.lsn >= request.lsn:
            raise _Skip(SkipReason.UP_TO_DATE)
        _check_tip(request, timeline)

    def _wait_lsn(self, timeline: Timeline, request: Request) -> None:
        """Wait in slices, so that a close is prompt."""
        deadline_s = self._clock() + self._config.wait_lsn_timeout
        while True:
            self._check_not_stopping()
            now_s = self._clock()
            slice_s = max(0.0, min(WAIT_SLICE_S, deadline_s - now_s))
            try:
                timeline.wait_lsn(request.lsn, slice_s)
            except TimeoutError:
                if self._clock() >= deadline_s:
                    raise PrepareError(
                        f"the LSN was not reached in {self._config.wait_lsn_timeout:g} s "
                        f"(wait_lsn_timeout); the tip is at {timeline.get_last_record_lsn()}"
                    ) from None
            else:
                return
            # A host that gives up before its time must not make this loop spin.
            self._is_stopping.wait(max(0.0, now_s + slice_s - self._clock()))

    def _build_and_publish(self, request: Request, timeline: Timeline) -> tuple[Seal, Entry]:
        with disk_step("use", self._store.data_dir):
            self._shelf.ensure_home()
        with _own_limits():
            reservation = self._index.reserve(request.key)
        try:
            with _own_limits(), disk_step("create a file in", self._store.tmp_dir):
                temp = self._shelf.create_temp(request.key, request.lsn)
        except BaseException:
            self._index.release(reservation)
            raise
        try:
            with _Timer(self._metrics, Phase.BUILD, self._clock):
                seal = self._build(request, timeline, temp, reservation)
            _check_tip(request, timeline)
            with _Timer(self._metrics, Phase.PUBLISH, self._clock):
                return seal, self._publish(request, seal, temp, reservation)
        except BaseException:
            self._shelf.abandon(temp, reservation)
            raise

    def _build(
        self, request: Request, timeline: Timeline, temp: TempFile, reservation: Reservation
    ) -> Seal:
        def emit(data: bytes) -> None:
            self._index.grow(reservation, len(data))
            with disk_step("write", temp.path):
                temp.append(data)

        with _own_limits():
            writer = ArchiveWriter(emit, self._config.compression_level)
        with self._writers_lock:
            self._writers.add(writer)
        try:
            self._check_not_stopping()
            timeline.send_basebackup_tarball(writer, request.lsn)
            return writer.finish()
        except BaseException:
            # What the writer has raised is the cause, whatever the host made of it.
            if writer.failure is not None:
                with _own_limits():
                    raise writer.failure from None
            raise
        finally:
            with self._writers_lock:
                self._writers.discard(writer)
            writer.abort()

    def _publish(
        self, request: Request, seal: Seal, temp: TempFile, reservation: Reservation
    ) -> Entry:
        self._check_not_stopping()
        with disk_step("write", temp.path):
            temp.patch(pack_header(seal, request.key, request.lsn))
            temp.sync()
            temp.close()
        entry = Entry(request.key, request.lsn, reservation.held_bytes)
        if self._config.verify_reads == "never":
            entry.proof = Proof.SEALED
        with _own_limits(), disk_step("publish", temp.path):
            self._shelf.publish(temp, reservation, entry)
        return entry

    def _check_not_stopping(self) -> None:
        if self._is_stopping.is_set():
            raise _Skip(SkipReason.CLOSING)


class _Timer:
    """Observes the seconds of a block as one phase, also where it fails."""

    def __init__(self, metrics: Metrics, phase: Phase, clock: Callable[[], float]) -> None:
        self._metrics, self._phase, self._clock = metrics, phase, clock

    def __enter__(self) -> None:
        self._started_s = self._clock()

    def __exit__(self, *_: object) -> None:
        self._metrics.observe(self._phase, self._clock() - self._started_s)


@contextmanager
def _own_limits() -> Iterator[None]:
    """Turn what the cache itself has no room or no time for into a skip.

    Round its own steps only: a host that raises these has failed.
    """
    try:
        yield
    except ClosingError as error:
        raise _Skip(SkipReason.CLOSING) from error
    except EntryTooBigError as error:
        raise _Skip(SkipReason.TOO_BIG, error) from error
    except CacheFullError as error:
        raise _Skip(SkipReason.FULL, error) from error


def _check_tip(request: Request, timeline: Timeline) -> None:
    """Skip when the timeline has gone on; a rebuild wants it at exactly its LSN."""
    tip = timeline.get_last_record_lsn()
    if tip > request.lsn or (request.is_rebuild and tip != request.lsn):
        raise _Skip(SkipReason.TIP_MOVED)


def _log_failure(request: Request, error: BaseException, *, exc_info: bool) -> None:
    log.error(
        "cannot prepare the basebackup of %s at %s: %s",
        split_key(request.key),
        request.lsn,
        text_of(error),
        exc_info=exc_info,
    )
