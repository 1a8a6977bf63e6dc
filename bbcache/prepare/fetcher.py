"""Asking the second tier for what callers wait for, or what a host wants warm.

A fetch has threads of its own, so it holds no worker and no build. Whatever goes wrong, the
request becomes a build.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bbcache.errors import ClosingError, LimitError, safe_str
from bbcache.outcomes import FetchResult, SkipReason, Source
from bbcache.prepare.job import Job, Skip, cause_of, reason_of
from bbcache.prepare.request import CLOSED, Result
from bbcache.storage.index import split_key

if TYPE_CHECKING:
    from bbcache.prepare.backoff import Backoff
    from bbcache.prepare.builder import Builder
    from bbcache.prepare.queue import PrepareQueue
    from bbcache.prepare.request import Request
    from bbcache.prepare.worker import Preparer
    from bbcache.second_tier import ArchiveSink, Tier

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Fetcher:
    """Fetches archives, several at once. Thread-safe."""

    tier: Tier
    preparer: Preparer
    builder: Builder
    queue: PrepareQueue
    backoff: Backoff

    def work(self) -> None:
        """Fetch until the queue is closed: the life of one thread."""
        is_open = True
        while is_open:
            with suppress(BaseException):  # no failure between two requests ends a thread
                request = self.queue.take_fetch()
                is_open = request is not None
                if request is not None:
                    self.run(request)

    def run(self, request: Request) -> None:
        """Fetch one archive, or leave its request to the builds. Raises nothing."""
        job, result = Job(request, is_fetch=True), None
        try:
            result = self._fetch(job)
        except Skip as skip:
            # Of what speaks against an archive, callers that wait learn by the build.
            if skip.reason is SkipReason.UP_TO_DATE or not request.is_awaited:
                result = Result(reason=skip.reason, why=skip.why)
        except ClosingError:
            result = CLOSED
        except BaseException as failed:  # noqa: BLE001 - SystemExit of a host must not end a thread
            request.fetch_failure = cause_of(failed)
            _log_failure(request, request.fetch_failure)
        finally:
            self.queue.end_fetch(request, result, is_claimed=job.is_claimed)

    def _fetch(self, job: Job) -> Result | None:
        """Check as for a build, fetch, and publish; None if the archive must be built."""
        started_s, request = time.monotonic(), job.request
        if request.is_awaited and started_s > request.fetch_by_s:
            return None
        timeline = self.preparer.admit(job)
        self.preparer.allow_eviction(job)
        self._check_free(job)
        deadline_s = request.fetch_by_s
        if not request.is_awaited:  # it has all the time of a fetch, however long it waited
            deadline_s = started_s + (request.fetch_timeout_s or 0.0)

        def fetch(sink: ArchiveSink) -> FetchResult:
            return self.tier.fetch(*split_key(request.key), request.lsn, sink, deadline_s)

        def claim() -> bool:
            self.preparer.allow_eviction(job)  # a prepare may have joined
            job.is_claimed = self.queue.claim(request)
            return job.is_claimed

        built = self.builder.fetch(job, timeline, fetch, claim)
        if built is None:
            return None
        log.info(
            "basebackup of %s fetched from the second tier%s: %d bytes in %.3f s",
            built.entry,
            "" if job.may_publish else ", but not published",
            built.entry.size_bytes,
            time.monotonic() - started_s,
        )
        self.backoff.succeeded(request.place, request.key)
        if job.refusal is None:
            return Result(built.shared_file, reason=SkipReason.FETCHED, source=Source.FETCHED)
        reason, why = job.refusal.reason, job.refusal.why
        return Result(
            built.shared_file, is_built=True, reason=reason, why=why, source=Source.FETCHED
        )

    def _check_free(self, job: Job) -> None:
        """Do not fetch in vain what no caller waits for, and what may evict nothing."""
        if job.may_evict or job.request.is_awaited:
            return
        try:
            self.builder.evictor.check_free(job.request.key)
        except LimitError as error:
            job.refuse(reason_of(error), error)


def _log_failure(request: Request, error: BaseException) -> None:
    """Log why an archive was not fetched.

    The build that follows reports what concerns it too, and the queue a request without one.
    """
    is_reported = isinstance(error, (LimitError, OSError)) or not (
        request.is_awaited or request.is_sent
    )
    log.log(
        logging.DEBUG if is_reported else logging.WARNING,
        "cannot fetch the basebackup of %s at %s from the second tier: %s",
        split_key(request.key),
        request.lsn,
        safe_str(error),
    )
