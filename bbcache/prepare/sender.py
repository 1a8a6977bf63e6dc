"""Queueing what the host sends: prepares, and fetches from the second tier."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from bbcache.errors import ArgumentError
from bbcache.ids import check_shard_ids
from bbcache.outcomes import SkipReason
from bbcache.prepare.request import Request, Result
from bbcache.storage.index import make_key

if TYPE_CHECKING:
    from bbcache.ids import Lsn, TenantShardId, TimelineId
    from bbcache.prepare.queue import PrepareQueue
    from bbcache.storage.index import Entry

log = logging.getLogger(__name__)


class Sender:
    """Queues requests that no caller waits for. Thread-safe.

    Args:
        queue: takes them.
        fetch_timeout_s: seconds that a fetch may take; None without a second tier.
    """

    def __init__(self, queue: PrepareQueue, fetch_timeout_s: float | None) -> None:
        self._queue = queue
        self._fetch_timeout_s = fetch_timeout_s

    def send_prepare(
        self, tenant_shard_id: TenantShardId, timeline_id: TimelineId, lsn: Lsn
    ) -> None:
        """Queue a prepare; whatever goes wrong is counted and logged."""
        try:
            check_shard_ids(tenant_shard_id, timeline_id, lsn)
            key = make_key(tenant_shard_id.tenant_id, timeline_id)
            request = Request(key, lsn, tenant_shard_id, time.monotonic())
            if tenant_shard_id.is_shard_zero:
                self._queue.submit(request)
            else:
                self._queue.finish(request, Result.skip(SkipReason.NOT_SHARD_ZERO))
        except ArgumentError as error:
            self._queue.reject("send_prepare", error)
        except Exception:
            log.exception("send_prepare could not queue a request")

    def send_warm(
        self, tenant_shard_id: TenantShardId, timeline_id: TimelineId, lsn: Lsn, *, build: bool
    ) -> None:
        """Queue a fetch; whatever goes wrong is counted and logged."""
        try:
            check_shard_ids(tenant_shard_id, timeline_id, lsn)
            request = Request(
                make_key(tenant_shard_id.tenant_id, timeline_id),
                lsn,
                tenant_shard_id,
                time.monotonic(),
                is_sent=build,
                is_warm=True,
                fetch_timeout_s=self._fetch_timeout_s,
            )
            if not tenant_shard_id.is_shard_zero:
                self._queue.finish(request, Result.skip(SkipReason.NOT_SHARD_ZERO))
            elif self._fetch_timeout_s is not None:
                self._queue.warm(request)
            elif build:
                self._queue.submit(request)
            else:
                self._queue.finish(request, Result.skip(SkipReason.NOT_FETCHED))
        except ArgumentError as error:
            self._queue.reject("send_warm", error)
        except Exception:
            log.exception("send_warm could not queue a request")

    def rebuild(self, entry: Entry) -> None:
        """Queue the build of an entry that was bad."""
        self._queue.submit(Request(entry.key, entry.lsn, None, time.monotonic()))
