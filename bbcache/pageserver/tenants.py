"""The tenants of a pageserver, kept as directories.

``<root>/tenants/<tenant>/timelines/<timeline>/`` is a PGDATA directory each.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from bbcache.errors import NotReadyError, PrepareError
from bbcache.host import TenantState
from bbcache.ids import TenantId, TenantShardId, TimelineId
from bbcache.pageserver.takeover import (
    finish_takeover,
    sync_directory,
    take_over,
    timeline_names,
)
from bbcache.pageserver.timeline import PgdataTimeline
from bbcache.postgres.pgdata import inspect_pgdata

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class PgdataTenant:
    """One tenant, unsharded; implements `bbcache.host.Tenant`. Thread-safe.

    Args:
        tenant_id: its id.
        directory: ``<root>/tenants/<tenant>``.

    Attributes:
        is_cache_enabled: the tenant's switch for the basebackup cache.
    """

    def __init__(self, tenant_id: TenantId, directory: Path) -> None:
        self.tenant_shard_id = TenantShardId(tenant_id)
        self.is_cache_enabled = True
        self._timelines_dir = directory / "timelines"
        self._lock = threading.Lock()  # guards all that follows
        self._state = TenantState.ATTACHING
        self._timelines: dict[TimelineId, PgdataTimeline] = {}

    @property
    def tenant_id(self) -> TenantId:
        """The tenant's id."""
        return self.tenant_shard_id.tenant_id

    def attach(self) -> None:
        """Take over the timelines on disk; the tenant is ACTIVE then.

        A takeover that a crash has cut short is finished first.

        Raises:
            PostgresError: a timeline's directory cannot be used; the tenant is BROKEN.
        """
        self._timelines_dir.mkdir(parents=True, exist_ok=True)
        try:
            found = [self._load(name) for name in sorted(timeline_names(self._timelines_dir))]
        except BaseException:
            self._set_state(TenantState.BROKEN)
            raise
        with self._lock:
            self._timelines = {timeline.timeline_id: timeline for timeline in found}
            self._state = TenantState.ACTIVE

    def add_timeline(self, pgdata_dir: Path) -> PgdataTimeline:
        """Make a data directory, shut down cleanly, a new timeline of this tenant.

        Args:
            pgdata_dir: on the file system of the tenants; it is moved.

        Raises:
            PostgresError: the directory was not shut down cleanly.
        """
        timeline_id = TimelineId.generate()
        place = self._timelines_dir / str(timeline_id)
        inspect_pgdata(pgdata_dir)
        take_over(pgdata_dir, place)
        timeline = PgdataTimeline(timeline_id, place)
        with self._lock:
            self._timelines[timeline_id] = timeline
        return timeline

    def current_state(self) -> TenantState:
        """Where in its life the tenant is."""
        with self._lock:
            return self._state

    def basebackup_cache_enabled(self) -> bool:
        """See `is_cache_enabled`."""
        return self.is_cache_enabled

    def get_timeline(self, timeline_id: TimelineId) -> PgdataTimeline:
        """The timeline.

        Raises:
            PrepareError: the tenant has none of that id.
        """
        with self._lock:
            timeline = self._timelines.get(timeline_id)
        if timeline is None:
            raise PrepareError(f"tenant {self.tenant_id} has no timeline {timeline_id}")
        return timeline

    def list_timelines(self) -> list[PgdataTimeline]:
        """All timelines; complete once the tenant is ACTIVE."""
        with self._lock:
            return list(self._timelines.values())

    def _load(self, name: str) -> PgdataTimeline:
        place = self._timelines_dir / name
        finish_takeover(place)
        return PgdataTimeline(TimelineId.from_str(name), place)

    def _set_state(self, state: TenantState) -> None:
        with self._lock:
            self._state = state


class PgdataTenantManager:
    """All tenants below a directory; implements `bbcache.host.TenantManager`. Thread-safe.

    Args:
        tenants_dir: ``<root>/tenants``; made if need be.
    """

    def __init__(self, tenants_dir: Path) -> None:
        self._tenants_dir = tenants_dir
        self._lock = threading.Lock()  # guards all that follows
        self._is_ready = False
        self._tenants: dict[TenantId, PgdataTenant] = {}

    def attach_all(self) -> None:
        """Take over every tenant on disk. Until it is done, `list` raises NotReadyError.

        Raises:
            PostgresError: a timeline's directory cannot be used.
        """
        self._tenants_dir.mkdir(parents=True, exist_ok=True)
        found = [
            PgdataTenant(TenantId.from_str(path.name), path)
            for path in sorted(self._tenants_dir.iterdir())
        ]
        with self._lock:
            self._tenants = {tenant.tenant_id: tenant for tenant in found}
            self._is_ready = True
        for tenant in found:
            tenant.attach()

    def create_tenant(self) -> PgdataTenant:
        """A new tenant without timelines; it is on disk when this returns."""
        tenant_id = TenantId.generate()
        directory = self._tenants_dir / str(tenant_id)
        tenant = PgdataTenant(tenant_id, directory)
        tenant.attach()
        sync_directory(directory)
        sync_directory(self._tenants_dir)
        with self._lock:
            self._tenants[tenant_id] = tenant
        return tenant

    def list(self) -> Iterable[tuple[TenantShardId, PgdataTenant | None]]:
        """All tenants.

        Raises:
            NotReadyError: they are not known yet.
        """
        with self._lock:
            if not self._is_ready:
                raise NotReadyError("the tenants on disk are not known yet")
            return [(tenant.tenant_shard_id, tenant) for tenant in self._tenants.values()]

    def get_tenant(self, tenant_id: TenantId) -> PgdataTenant:
        """The tenant.

        Raises:
            PrepareError: there is none of that id.
        """
        with self._lock:
            tenant = self._tenants.get(tenant_id)
        if tenant is None:
            raise PrepareError(f"tenant {tenant_id} is not attached here")
        return tenant

    def get_attached_tenant_shard(self, tenant_shard_id: TenantShardId) -> PgdataTenant:
        """The tenant by its shard id; these tenants have one shard, unsharded.

        Raises:
            PrepareError: there is none of that id.
        """
        tenant = self.get_tenant(tenant_shard_id.tenant_id)
        if tenant.tenant_shard_id != tenant_shard_id:
            raise PrepareError(f"tenant {tenant_shard_id} is not attached here")
        return tenant
