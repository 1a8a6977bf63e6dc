"""Noticing tenants and timelines that appear on disk, go, or are mended."""

from __future__ import annotations

import logging
import os
import threading

from bbcache.errors import StoreError
from bbcache.host import TenantState
from bbcache.ids import TenantId, TenantShardId, TimelineId
from bbcache.pageserver.broken import BrokenTimeline
from bbcache.pageserver.listing import names_by_id
from bbcache.pageserver.takeover import pending_takeover
from bbcache.pageserver.tenants import PgdataTenant, PgdataTenantManager
from bbcache.pageserver.timeline import PgdataTimeline

log = logging.getLogger(__name__)


class Rescanner:
    """Compares the tenants of a manager with the disk. Thread-safe.

    Args:
        manager: the tenants, attached once.
    """

    def __init__(self, manager: PgdataTenantManager) -> None:
        self._manager = manager
        self._broken = manager.broken
        self._one_at_a_time = threading.Lock()
        self._doubt: str | None = None

    @property
    def degraded_reason(self) -> str | None:
        """Why the tenants on disk are not known, in one line; None where they are."""
        doubt = self._doubt
        return None if doubt is None else doubt.partition("\n")[0]

    def rescan(self) -> None:
        """Notice what has changed on disk.

        A listing that fails, lies on another device or is suddenly empty changes nothing:
        the manager is not ready until a listing can be believed, so that clean-up keeps every
        entry. A timeline that a compute node works on stays.
        """
        with self._one_at_a_time:
            try:
                names = self._manager.listing.names()
            except OSError as error:
                self._doubt_listing(_reason(error))
                return
            self._believe_listing()
            found, _ = names_by_id(TenantId, names)
            known = {tenant.tenant_id: tenant for tenant in self._manager.known()}
            for tenant_id in known.keys() - found.keys():
                self._drop_tenant(known[tenant_id])
            for tenant_id in sorted(found):
                self._rescan_tenant(known.get(tenant_id), tenant_id, found[tenant_id])

    def _doubt_listing(self, doubt: str) -> None:
        before, self._doubt = self._doubt, doubt
        self._manager.is_ready = False
        if doubt != before:
            log.error("the tenants stay as they were: %s", doubt)

    def _believe_listing(self) -> None:
        before, self._doubt = self._doubt, None
        self._manager.is_ready = True
        if before is not None:
            log.info("the tenants can be listed again")

    def _drop_tenant(self, tenant: PgdataTenant) -> None:
        timelines = tenant.list_timelines()
        has_compute = any(isinstance(t, PgdataTimeline) and t.has_compute for t in timelines)
        if has_compute or os.path.lexists(tenant.directory):
            return
        log.info("tenant %s is gone", tenant.tenant_id)
        for timeline_id in (None, *(timeline.timeline_id for timeline in timelines)):
            self._broken.forget(tenant.tenant_id, timeline_id)
        self._manager.tenants.pop(tenant.tenant_shard_id, None)

    def _rescan_tenant(
        self, tenant: PgdataTenant | None, tenant_id: TenantId, names: list[str]
    ) -> None:
        if tenant is not None and tenant.current_state() is not TenantState.BROKEN:
            try:
                self._rescan_timelines(tenant)
            except OSError as error:
                reason = _reason(error)
                log.error("the timelines of tenant %s stay as they were: %s", tenant_id, reason)  # noqa: TRY400 - no news in the traceback
            return
        again = self._manager.make_tenant(tenant_id, names)
        if self._manager.tenants.get(TenantShardId(tenant_id)) is not tenant:
            return  # another thread has made it meanwhile
        self._manager.add(again)
        self._manager.tell_attached(again)
        if tenant is None:
            log.info("tenant %s has appeared", tenant_id)
        elif again.current_state() is TenantState.ACTIVE:
            self._broken.mended(tenant_id, None)

    def _rescan_timelines(self, tenant: PgdataTenant) -> None:
        """Raise `OSError` where there is no listing to be believed; nothing has changed then."""
        found, _ = names_by_id(TimelineId, tenant.listing.names())
        known = dict(tenant.timelines)
        for timeline_id in known.keys() - found.keys() - tenant.held:
            if self._is_gone(tenant, known[timeline_id]):
                log.info("timeline %s of tenant %s is gone", timeline_id, tenant.tenant_id)
                self._broken.forget(tenant.tenant_id, timeline_id)
                tenant.timelines.pop(timeline_id, None)
        for timeline_id in sorted(found.keys() - tenant.held):
            if not isinstance(known.get(timeline_id), PgdataTimeline):
                self._load(tenant, timeline_id, found[timeline_id])

    def _is_gone(self, tenant: PgdataTenant, timeline: PgdataTimeline | BrokenTimeline) -> bool:
        """Whether a timeline that the listing lacks is not there on a second look, either."""
        if isinstance(timeline, PgdataTimeline) and timeline.has_compute:
            return False
        place = tenant.directory / "timelines" / str(timeline.timeline_id)
        return not pending_takeover(place, place).exists()

    def _load(self, tenant: PgdataTenant, timeline_id: TimelineId, names: list[str]) -> None:
        before = tenant.timelines.get(timeline_id)
        timeline = tenant.load(timeline_id, names)
        if tenant.timelines.get(timeline_id) is not before or timeline_id in tenant.held:
            return  # another thread has made it meanwhile
        tenant.add(timeline)
        if isinstance(timeline, PgdataTimeline):
            self._broken.mended(tenant.tenant_id, timeline_id)
            self._manager.on_attached(tenant.tenant_shard_id, timeline)
            if before is None:
                log.info("timeline %s of tenant %s has appeared", timeline_id, tenant.tenant_id)


def _reason(error: OSError) -> str:
    if isinstance(error, StoreError):
        return str(error)
    return f"{error.filename} cannot be listed: {error.strerror}"
