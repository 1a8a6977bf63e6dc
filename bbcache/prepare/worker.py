"""Preparing one basebackup: the checks, the wait for the LSN, the build.

The first check that fails decides the result. Whatever a host callback raises is counted and
logged, and the worker goes on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bbcache.errors import (
    CacheFullError,
    ClosingError,
    LimitError,
    PrepareError,
    StoreError,
    safe_str,
)
from bbcache.host import TenantState, attached_shards_zero, wait_for_lsn
from bbcache.outcomes import Phase, SkipReason
from bbcache.prepare.job import Job, Skip, cause_of, host_call, reason_of
from bbcache.prepare.request import CLOSED, Result
from bbcache.storage.index import split_key

if TYPE_CHECKING:
    from bbcache.config import BasebackupCacheConfig
    from bbcache.host import Tenant, TenantManager, Timeline
    from bbcache.metrics import Metrics
    from bbcache.prepare.backoff import Backoff
    from bbcache.prepare.builder import Builder, Built
    from bbcache.prepare.queue import PrepareQueue
    from bbcache.prepare.request import Request
    from bbcache.storage.index import Index
    from bbcache.storage.pins import Pins

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Preparer:
    """Runs prepares, several at once. Thread-safe."""

    config: BasebackupCacheConfig
    tenants: TenantManager
    index: Index
    pins: Pins
    builder: Builder
    queue: PrepareQueue
    metrics: Metrics
    backoff: Backoff

    def work(self) -> None:
        """Run requests until the queue is closed: the life of one worker thread."""
        _lower_priority(self.config.prepare_niceness)
        is_open = True
        while is_open:
            with suppress(BaseException):  # no failure between two requests ends a worker
                request = self.queue.take()
                is_open = request is not None
                if request is not None:
                    self.run(request)

    def run(self, request: Request) -> None:
        """Run one request to its end, or until it goes behind the line. Raises nothing.

        Whatever is raised meanwhile, the end is counted, and the callers are told.
        """
        job, result = Job(request), Result()
        is_over = True
        try:
            built = self._prepare(job)
            if built is None:
                is_over = False
            else:
                result = _result_of(job, built)
        except Skip as skip:
            result = Result(error=_failure_of(job, skip), reason=skip.reason, why=skip.why)
        except BaseException as failed:  # noqa: BLE001 - SystemExit of a host must not end a worker
            error = cause_of(failed)
            # After a failure of the disk alone, a caller that has joined since asks again.
            is_again = error is job.disk_failure
            result = Result(why=error) if is_again else Result(error=error)
            is_own = isinstance(error, (StoreError, PrepareError))
            has_traceback = not is_own or job.disk_failure not in (None, error)
            _log_failure(request, error, has_traceback=has_traceback)
        finally:
            if is_over:
                self._finish(job, result)

    def _finish(self, job: Job, result: Result) -> None:
        try:
            self._end_wait(job.request)
            self._note(job, result)
            self.metrics.refresh()
        finally:
            self.queue.finish(job.request, result)

    def _note(self, job: Job, result: Result) -> None:
        """Tell the back-off of a success or failure."""
        if result.is_built:
            self.backoff.succeeded(job.request.place, job.failing or job.request.place)
        elif (
            job.failing is not None
            and result.error is not None
            and not isinstance(result.error, ClosingError | CacheFullError)  # not its own failure
        ):
            self.backoff.failed(job.failing, safe_str(result.error))

    def _prepare(self, job: Job) -> Built | None:
        """Check, wait and build; None if the request waits in the queue again."""
        started_s, request = time.monotonic(), job.request
        if not request.is_behind:
            self.metrics.prepare_seconds[Phase.QUEUE].observe(started_s - request.queued_at_s)
        timeline = self.admit(job)
        job.failing = request.place
        if self._gives_way(job) or not self._wait_lsn(timeline, request):
            self.queue.postpone(request)
            return None
        if not self.queue.start(request):
            return None
        self._end_wait(request)
        return self._build(job, timeline, started_s)

    def admit(self, job: Job) -> Timeline:
        """Check whether a request is needed and has room; returns its timeline.

        Raises:
            Skip: it is not needed, or has no room, and no caller waits.
            PrepareError: the tenant is not active.
            HostError: the host raised.
        """
        with host_call():
            timeline = self._find_timeline(job)
            self._check_still_wanted(job, timeline)
        self._check_room(job)
        return timeline

    def _find_timeline(self, job: Job) -> Timeline:
        tenant = self._find_tenant(job.request)
        if not tenant.basebackup_cache_enabled():
            job.refuse(SkipReason.DISABLED)
        state = tenant.current_state()
        if state is not TenantState.ACTIVE:
            raise PrepareError(f"the tenant is {state}, not {TenantState.ACTIVE}")
        return tenant.get_timeline(split_key(job.request.key).timeline_id)

    def _find_tenant(self, request: Request) -> Tenant:
        if request.tenant_shard_id is not None:
            return self.tenants.get_attached_tenant_shard(request.tenant_shard_id)
        tenant_id = split_key(request.key).tenant_id
        for shard_id, tenant in attached_shards_zero(self.tenants):
            if shard_id.tenant_id == tenant_id:
                return tenant
        raise PrepareError("shard zero of the tenant is not attached here")

    def _check_still_wanted(self, job: Job, timeline: Timeline) -> None:
        request, held = job.request, self.index.newest(job.request.key)
        if held is not None and held.lsn >= request.lsn:
            if held.lsn == request.lsn and not request.must_build:
                raise Skip(SkipReason.UP_TO_DATE)  # callers ask again, and get that entry
            job.refuse(SkipReason.UP_TO_DATE)
        job.check_tip(timeline)

    def _check_room(self, job: Job) -> None:
        if self.builder.is_read_only:  # otherwise the build looks, once the LSN is reached
            self.builder.check_disk(job)
        try:
            self.builder.evictor.check_possible(job.request.key)
        except LimitError as error:
            job.refuse(reason_of(error), error)

    def _gives_way(self, job: Job) -> bool:
        """Whether a request that the timeline has outgrown lets others go first, once."""
        request = job.request
        return job.is_outgrown and not request.is_behind and self.queue.has_other(request)

    def _wait_lsn(self, timeline: Timeline, request: Request) -> bool:
        """Wait for the LSN for a while; False if it is not reached yet.

        Raises:
            PrepareError: it was not reached in `wait_lsn_timeout`.
            Skip: the cache closes, or nobody wants the archive any more.
        """
        self.builder.check_not_stopping()
        now_s = time.monotonic()
        if request.waiting_since_s is None:
            request.waiting_since_s = now_s
        since_s, timeout_s = request.waiting_since_s, self.config.wait_lsn_timeout
        left_s = timeout_s - (now_s - since_s)
        slice_s = max(0.0, min(self.queue.slice_s(request), left_s))
        with host_call():
            is_reached = wait_for_lsn(timeline, request.lsn, slice_s)
        self.builder.check_not_stopping()
        if is_reached:
            return True
        if time.monotonic() - since_s >= timeout_s:
            with host_call():
                tip = timeline.get_last_record_lsn()
            raise PrepareError(
                f"the LSN was not reached in {timeout_s:g} s "
                f"(wait_lsn_timeout); the tip is at {tip}, not at {request.lsn}"
            )
        if not (request.is_sent or request.is_awaited):
            raise Skip(SkipReason.CANCELLED)
        return False

    def _end_wait(self, request: Request) -> None:
        if request.waiting_since_s is not None:
            waited_s = time.monotonic() - request.waiting_since_s
            self.metrics.prepare_seconds[Phase.WAIT_LSN].observe(waited_s)
            request.waiting_since_s = None

    def _build(self, job: Job, timeline: Timeline, started_s: float) -> Built:
        with host_call():
            job.check_tip(timeline)
        if not job.is_outgrown:
            job.failing = job.request.key
        self.allow_eviction(job)
        try:
            built = self.builder.build(job, timeline)
        except Exception:
            _spare_the_timeline(job, timeline)
            raise
        log.info(
            "basebackup of %s %s: %d bytes in %.3f s",
            built.entry,
            "prepared" if job.may_publish else "built, but not published",
            built.entry.size_bytes,
            time.monotonic() - started_s,
        )
        return built

    def allow_eviction(self, job: Job) -> None:
        """Find out whether entries may be evicted for an archive.

        Not for a timeline that has just started, and not if its last builds have failed.
        """
        request, key = job.request, job.request.key
        if not request.is_sent or request.is_rebuild:
            return
        is_refresh = self.index.newest(key) is not None
        job.may_evict = (is_refresh or not request.is_awaited) and not self.backoff.refusal(key, "")
        if job.may_evict:
            self.pins.ensure_known(self.tenants)


def _lower_priority(niceness: int) -> None:
    """Add to the niceness of this thread alone, as Linux does it (setpriority(2), "NOTES").

    It stays for the life of the thread: only a privileged process may lower it again.
    """
    if niceness == 0:
        return
    thread_id = threading.get_native_id()
    try:
        own = os.getpriority(os.PRIO_PROCESS, thread_id)
        os.setpriority(os.PRIO_PROCESS, thread_id, own + niceness)
    except OSError as error:
        log.warning("prepares run at the priority of the process: %s", error)


def _spare_the_timeline(job: Job, timeline: Timeline) -> None:
    """Hold a failed build against its LSN alone if that is not the tip any more."""
    if job.failing is None:
        return
    with suppress(Exception), host_call():  # the first failure is the one that counts
        if timeline.get_last_record_lsn() > job.request.lsn:
            job.failing = job.request.place


def _result_of(job: Job, built: Built) -> Result:
    if job.refusal is not None:
        reason, why = job.refusal.reason, job.refusal.why
        return Result(built.shared_file, is_built=True, reason=reason, why=why)
    sizes = built.seal.tar_bytes, built.entry.size_bytes
    published_bytes = None if job.disk_failure is not None else sizes
    return Result(built.shared_file, is_built=True, published_bytes=published_bytes)


def _failure_of(job: Job, skip: Skip) -> BaseException | None:
    """The error of a skip for the callers that wait; None if they ask again."""
    if skip.reason is SkipReason.CLOSING:
        return CLOSED.error
    # A skip that does not refuse to publish comes from the limit of unpublished archives.
    return None if job.may_publish or skip is job.refusal else skip.why


def _log_failure(request: Request, error: BaseException, *, has_traceback: bool) -> None:
    log.error(
        "cannot prepare the basebackup of %s at %s: %s",
        split_key(request.key),
        request.lsn,
        safe_str(error),
        exc_info=error if has_traceback else None,
    )
