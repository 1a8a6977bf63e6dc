"""The tenants of a host in two dictionaries, for a host that has no rules of its own for them.

A host then writes only its timelines. `bbcache.pageserver` and `bbcache.testing` build on these
classes, too.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from bbcache.errors import NotReadyError, PrepareError
from bbcache.host import TenantState, Timeline
from bbcache.ids import TenantId, TenantShardId, TimelineId

TimelineT = TypeVar("TimelineT", bound=Timeline)


class SimpleTenant(Generic[TimelineT]):
    """A tenant that keeps its timelines in a dictionary; implements `bbcache.host.Tenant`.

    Thread-safe: each method reads or changes one attribute.

    Args:
        tenant_shard_id: the id of the tenant's shard zero.

    Attributes:
        tenant_shard_id: its id.
        state: what `current_state` returns; ACTIVE from the start. Set another state while the
            timelines are not all known, because the clean-up removes the entries of every timeline
            that an ACTIVE tenant does not list.
        is_cache_enabled: what `basebackup_cache_enabled` returns.
        timelines: the timelines by id.
    """

    def __init__(self, tenant_shard_id: TenantShardId) -> None:
        self.tenant_shard_id = tenant_shard_id
        self.state = TenantState.ACTIVE
        self.is_cache_enabled = True
        self.timelines: dict[TimelineId, TimelineT] = {}

    @property
    def tenant_id(self) -> TenantId:
        """The tenant's id without the shard."""
        return self.tenant_shard_id.tenant_id

    def add(self, timeline: TimelineT) -> None:
        """Add a timeline, or replace the timeline of the same id."""
        self.timelines[timeline.timeline_id] = timeline

    def current_state(self) -> TenantState:
        """See `state`."""
        return self.state

    def basebackup_cache_enabled(self) -> bool:
        """See `is_cache_enabled`."""
        return self.is_cache_enabled

    def get_timeline(self, timeline_id: TimelineId) -> TimelineT:
        """The timeline.

        Raises:
            PrepareError: the tenant has no timeline of that id.
        """
        timeline = self.timelines.get(timeline_id)
        if timeline is None:
            raise PrepareError(f"tenant {self.tenant_id} has no timeline {timeline_id}")
        return timeline

    def list_timelines(self) -> list[TimelineT]:
        """All timelines."""
        return list(self.timelines.values())


TenantT = TypeVar("TenantT", bound=SimpleTenant[Any])


class SimpleTenantManager(Generic[TenantT]):
    """Tenants in a dictionary; implements `bbcache.host.TenantManager`.

    Thread-safe: each method reads or changes one attribute.

    Attributes:
        tenants: the tenants by shard id; None for a shard that is known but not attached.
        is_ready: False makes `list` raise NotReadyError. Set it to False before the cache is
            started, and to True when all tenants have been added.
    """

    def __init__(self) -> None:
        self.tenants: dict[TenantShardId, TenantT | None] = {}
        self.is_ready = True

    def add(self, tenant: TenantT) -> None:
        """Add a tenant, or replace the tenant of the same shard id."""
        self.tenants[tenant.tenant_shard_id] = tenant

    def list(self) -> list[tuple[TenantShardId, TenantT | None]]:
        """All tenants.

        Raises:
            NotReadyError: `is_ready` is False.
        """
        if not self.is_ready:
            raise NotReadyError("the tenants are not known yet")
        return [*self.tenants.items()]

    def get_attached_tenant_shard(self, tenant_shard_id: TenantShardId) -> TenantT:
        """The attached tenant.

        Raises:
            PrepareError: there is no attached tenant of that id.
        """
        tenant = self.tenants.get(tenant_shard_id)
        if tenant is None:
            raise PrepareError(f"tenant {tenant_shard_id} is not attached here")
        return tenant
