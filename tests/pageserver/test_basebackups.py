"""Basebackups from the cache and on request, of several tenants and timelines."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from bbcache import Tenant, TenantManager, Timeline
from bbcache.errors import PrepareError
from bbcache.pageserver import Pageserver

if TYPE_CHECKING:
    from collections.abc import Callable

    from pageserver.conftest import Lab

    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres


def test_the_host_is_one(lab: Lab) -> None:
    """The classes to copy from implement the protocols."""
    tenants: TenantManager = lab.pageserver.tenants
    assert isinstance(tenants, TenantManager)
    address = lab.add_timeline()
    ((shard, tenant),) = tenants.list()
    assert isinstance(tenant, Tenant)
    assert shard.tenant_id == address.tenant_id
    (timeline,) = tenant.list_timelines()
    assert isinstance(timeline, Timeline)
    assert timeline.timeline_id == address.timeline_id


def test_cached_and_on_request_are_the_same_tar(
    pg: PostgresBinaries, make_lab: Callable[..., Lab]
) -> None:
    """At one LSN both ways give the same bytes."""
    lab = make_lab(pg)
    lab.open()
    address = lab.add_timeline()
    built = lab.pageserver.open_basebackup(*address)
    lab.pageserver.cache.send_prepare(lab.shard(address), address.timeline_id, built.lsn)
    lab.wait_idle()
    cached = lab.pageserver.open_basebackup(*address)
    with built.file, cached.file:
        assert (built.is_hit, cached.is_hit) == (False, True)
        assert built.lsn == cached.lsn
        assert gzip.decompress(built.file.read()) == gzip.decompress(cached.file.read())


def test_a_basebackup_of_a_running_compute_node(lab: Lab) -> None:
    """Until it has written, the one it started from is right; then there is none."""
    address = lab.add_timeline()
    lsn = lab.play(address)
    compute = lab.boot(address)
    lab.pageserver.open_basebackup(*address).file.close()
    lab.sql(compute, "create table t ()")
    lab.wait_tip_past(address, lsn)
    with pytest.raises(PrepareError, match="\nhint: Stop the compute node"):
        lab.pageserver.open_basebackup(*address)
    compute.stop()
    lab.wait_idle()
    lab.pageserver.open_basebackup(*address).file.close()
    assert lab.reads() == {"hit": 3, "miss": 2, "error": 0}


def test_tenants_and_timelines_are_apart(lab: Lab) -> None:
    """Compute nodes of two tenants and three timelines run at once, each with its own data."""
    tenant = lab.pageserver.tenants.create_tenant()
    addresses = [lab.add_timeline(tenant), lab.add_timeline(tenant), lab.add_timeline()]
    for number in range(2):
        computes = [lab.boot(address) for address in addresses]
        for name, compute in zip("abc", computes, strict=True):
            lab.sql(
                compute,
                "create table if not exists t (name text, number int)",
                f"insert into t select '{name}', {number}",
            )
        for compute in computes:
            compute.stop()
        lab.wait_idle()
        assert len(lab.archives()) == 3
    assert lab.reads() == {"hit": 3, "miss": 3, "error": 0}
    for name, address in zip("abc", addresses, strict=True):
        rows = lab.read(address, "select name, number from t order by number")
        assert rows == [(name, 0), (name, 1)]
    assert lab.prepares() == {"ok": 6, "skip": 0, "error": 0}


def test_the_switch_of_a_tenant(lab: Lab) -> None:
    """Switched off, nothing is prepared and every start is a miss; the data is right."""
    address = lab.add_timeline()
    lab.pageserver.tenants.get_tenant(address.tenant_id).is_cache_enabled = False
    lab.play(address, "create table t as select 1 i")
    assert lab.read(address, "select i from t") == [(1,)]
    assert lab.skips() == {"disabled": 1}
    assert lab.reads() == {"hit": 0, "miss": 2, "error": 0}


def test_without_a_cache_all_is_built_on_request(lab: Lab, make_lab: Callable[..., Lab]) -> None:
    """A pageserver without a configuration works, and makes no cache directory."""
    root = make_lab(lab.binaries).root
    with Pageserver(root, lab.binaries, None, CollectorRegistry()) as pageserver:
        tenant = pageserver.tenants.create_tenant()
        timeline = pageserver.create_timeline(tenant)
        for _ in range(2):
            basebackup = pageserver.open_basebackup(tenant.tenant_id, timeline.timeline_id)
            assert not basebackup.is_hit
            with basebackup.file as archive:
                compute = pageserver.make_compute(tenant.tenant_id, timeline.timeline_id, archive)
            compute.start(lab.settings)
            lab.sql(compute, "create table if not exists t ()")
            compute.stop()
    assert sorted(path.name for path in root.iterdir()) == [
        ".pageserver.lock",
        "computes",
        "tenants",
    ]
