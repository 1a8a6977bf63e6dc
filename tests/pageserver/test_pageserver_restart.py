"""A pageserver that is started again on its directory."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from support.cache_helpers import Gate, Worker, stop_before
from support.helpers import samples

from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    DirectoryLockedError,
    NotReadyError,
    TenantState,
)
from bbcache.errors import PrepareError
from bbcache.pageserver import Pageserver, PgdataTenant, PgdataTenantManager

if TYPE_CHECKING:
    from pathlib import Path

    from pageserver.conftest import Address, Lab

pytestmark = pytest.mark.postgres


def timeline_dir(lab: Lab, address: Address) -> Path:
    """The directory of a timeline."""
    tenant_id, timeline_id = address
    return lab.root / "tenants" / str(tenant_id) / "timelines" / str(timeline_id)


def test_the_first_start_after_it_is_a_hit(lab: Lab) -> None:
    """Entries and timelines are found on disk, and a round goes on from them."""
    address = lab.add_timeline()
    lsn = lab.play(address, "create table t as select 1 i")
    lab.open()
    assert samples(lab.registry)["bbcache_loaded_entries"] == 1
    assert lab.timeline(address).get_last_record_lsn() == lsn
    lab.play(address, "insert into t values (2)")
    assert lab.reads() == {"hit": 1, "miss": 0, "error": 0}
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]
    assert lab.reads() == {"hit": 2, "miss": 0, "error": 0}


def test_nothing_is_cleaned_away_before_the_tenants_are_known(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clean-up waits for the manager, and for each tenant; only then what is gone goes."""
    kept, gone = lab.add_timeline(), lab.add_timeline()
    lsn = lab.play(kept)
    lab.play(gone)
    lab.close()
    shutil.rmtree(timeline_dir(lab, gone))
    tenants = PgdataTenantManager(lab.root / "tenants")
    data_dir, registry = lab.root / "basebackup_cache", CollectorRegistry()
    with (
        Gate() as gate,
        BasebackupCache.spawn(data_dir, BasebackupCacheConfig(), tenants, registry) as cache,
    ):
        assert cache.wait_initialized(60)
        with pytest.raises(NotReadyError):
            tenants.list()
        cache.run_cleanup()
        assert len(cache.entries()) == 2
        stop_before(monkeypatch, PgdataTenant, "attach", gate)
        attaching = Worker(tenants.attach_all)
        gate.wait_for()
        states = [tenant.current_state() for _, tenant in tenants.list() if tenant is not None]
        assert states == [TenantState.ATTACHING] * 2
        cache.run_cleanup()
        assert len(cache.entries()) == 2
        gate.open()
        attaching.result()
        cache.run_cleanup()
        assert [entry.timeline_id for entry in cache.entries()] == [kept.timeline_id]
        archive = cache.get(*kept, lsn)
        assert archive is not None
        archive.close()
        assert cache.get(*gone, lsn) is None


def test_only_its_own_leftovers_are_removed(lab: Lab) -> None:
    """What a kill has left of compute nodes goes; what somebody else has put there stays."""
    lab.close()
    computes_dir, name = lab.root / "computes", "0123456789abcdef" * 2
    (computes_dir / name / "base").mkdir(parents=True)
    (computes_dir / f"{name}.log").touch()
    (computes_dir / "mine" / "deep").mkdir(parents=True)
    (computes_dir / "notes.log").touch()
    (lab.root / "other").mkdir()
    (computes_dir / name[::-1]).symlink_to(lab.root / "other")
    lab.open()
    assert sorted(path.name for path in computes_dir.iterdir()) == ["mine", "notes.log"]
    assert (computes_dir / "mine" / "deep").is_dir()
    assert (lab.root / "other").is_dir()


@pytest.mark.parametrize("config", [BasebackupCacheConfig(), None], ids=["a cache", "none"])
def test_two_pageservers_on_one_directory(lab: Lab, config: BasebackupCacheConfig | None) -> None:
    """The second is refused, and takes nothing from the first one's compute node.

    Also one without a cache, and if somebody has removed the cache of the first.
    """
    address = lab.add_timeline()
    compute = lab.boot(address)
    shutil.rmtree(lab.root / "basebackup_cache")
    with pytest.raises(DirectoryLockedError) as caught:
        Pageserver(lab.root, lab.binaries, config, CollectorRegistry())
    assert f"root {lab.root} is locked by the process with pid {os.getpid()}" in str(caught.value)
    lab.sql(compute, "create table t as select 1 i")
    compute.stop()
    assert lab.read(address, "select i from t") == [(1,)]


def test_a_root_is_free_after_a_start_that_fails(lab: Lab) -> None:
    """After a start that failed in any way the next start succeeds."""
    lab.close()
    (lab.root / "computes").rename(lab.root / "aside")
    (lab.root / "computes").touch()
    with pytest.raises(OSError, match="computes"):
        lab.open()
    (lab.root / "computes").unlink()
    (lab.root / "aside").rename(lab.root / "computes")
    lab.open()


def test_what_is_unknown_is_an_error(lab: Lab) -> None:
    """A tenant, a timeline or a shard that is not here is named."""
    address, other = lab.add_timeline(), lab.add_timeline()
    open_basebackup = lab.pageserver.open_basebackup
    with pytest.raises(PrepareError, match=f"has no timeline {address.timeline_id}"):
        open_basebackup(other.tenant_id, address.timeline_id)
    shard = lab.shard(address)
    tenants = lab.pageserver.tenants
    assert tenants.get_attached_tenant_shard(shard).tenant_id == address.tenant_id
    with pytest.raises(PrepareError, match="-0004 is not attached here"):
        tenants.get_attached_tenant_shard(type(shard)(address.tenant_id, 0, 4))
    lab.open()
    tenant_dir = timeline_dir(lab, address).parents[1]
    lab.close()
    shutil.rmtree(tenant_dir)
    lab.open()
    with pytest.raises(PrepareError, match=f"{address.tenant_id} is not attached here"):
        lab.pageserver.open_basebackup(*address)
