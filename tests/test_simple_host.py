"""The tenant manager of dictionaries: a host that writes only its timelines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from support.cache_helpers import DEADLINE_S, LSN_A

from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    NotReadyError,
    SimpleTenant,
    SimpleTenantManager,
    Tenant,
    TenantId,
    TenantManager,
    TenantShardId,
    TenantState,
    TimelineId,
)
from bbcache.errors import PrepareError
from bbcache.testing import MemoryTimeline, check_host

if TYPE_CHECKING:
    from pathlib import Path


def make_host() -> tuple[SimpleTenantManager[SimpleTenant[MemoryTimeline]], MemoryTimeline]:
    """A host with one tenant with one timeline."""
    timeline = MemoryTimeline(LSN_A)
    tenant: SimpleTenant[MemoryTimeline] = SimpleTenant(TenantShardId(TenantId.generate()))
    tenant.add(timeline)
    host: SimpleTenantManager[SimpleTenant[MemoryTimeline]] = SimpleTenantManager()
    host.add(tenant)
    return host, timeline


def test_it_keeps_the_rules() -> None:
    """It implements the protocols, and `check_host` finds nothing."""
    host, _ = make_host()
    ((_, tenant),) = host.list()
    assert isinstance(host, TenantManager)
    assert isinstance(tenant, Tenant)
    check_host(host)


def test_a_timeline_is_replaced_by_its_id() -> None:
    """Adding a timeline or a tenant again replaces the one of that id."""
    host, timeline = make_host()
    ((shard_id, tenant),) = host.list()
    assert tenant is not None
    again = MemoryTimeline(LSN_A, timeline.timeline_id)
    tenant.add(again)
    assert tenant.list_timelines() == [again]
    host.add(SimpleTenant(shard_id))
    assert host.get_attached_tenant_shard(shard_id).list_timelines() == []


def test_what_is_unknown_is_named() -> None:
    """An unknown timeline, an unknown tenant and one that is not attached raise with the id."""
    host, _ = make_host()
    ((_, tenant),) = host.list()
    assert tenant is not None
    timeline_id, absent = TimelineId.generate(), TenantShardId(TenantId.generate())
    with pytest.raises(PrepareError, match=f"{tenant.tenant_id} has no timeline {timeline_id}"):
        tenant.get_timeline(timeline_id)
    for _ in range(2):
        with pytest.raises(PrepareError, match=f"{absent} is not attached here"):
            host.get_attached_tenant_shard(absent)
        host.tenants[absent] = None


def test_a_host_that_is_not_ready_keeps_its_entries(tmp_path: Path) -> None:
    """While `is_ready` is False, or a tenant is not ACTIVE, clean-up removes nothing."""
    host, timeline = make_host()
    ((shard_id, tenant),) = host.list()
    assert tenant is not None
    registry, config = CollectorRegistry(), BasebackupCacheConfig()
    with BasebackupCache.spawn(tmp_path, config, host, registry) as cache:
        cache.send_prepare(shard_id, timeline.timeline_id, LSN_A)
        assert cache.wait_idle(DEADLINE_S)
        tenant.timelines.clear()
        host.is_ready = False
        with pytest.raises(NotReadyError):
            host.list()
        cache.run_cleanup()
        host.is_ready, tenant.state = True, TenantState.ATTACHING
        cache.run_cleanup()
        assert len(cache.entries()) == 1
        tenant.state = TenantState.ACTIVE
        cache.run_cleanup()
        assert cache.entries() == []
