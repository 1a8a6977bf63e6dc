"""The host's protocols, and the host in memory that implements them."""

from __future__ import annotations

import io
import tarfile
import threading
from typing import TYPE_CHECKING

import pytest
from support.helpers import LSN, TENANT, TIMELINE, run_threads, seal_archive, wait_until

from bbcache.archive.writer import ArchiveWriter
from bbcache.errors import NotReadyError, PrepareError
from bbcache.host import Tenant, TenantManager, TenantState, Timeline
from bbcache.ids import Lsn, TenantId, TenantShardId
from bbcache.testing import MemoryHost, MemoryTenant, MemoryTimeline, make_tarball

if TYPE_CHECKING:
    from bbcache.host import TarballWriter


def test_a_tenant_has_five_states() -> None:
    """The states are those of the contract."""
    assert [state.name for state in TenantState] == [
        "ATTACHING",
        "ACTIVATING",
        "ACTIVE",
        "STOPPING",
        "BROKEN",
    ]


def test_host_in_memory_conforms() -> None:
    """Each class of it is what the protocols ask for; mypy checks the signatures here."""
    host = MemoryHost()
    memory_tenant = host.add_tenant()
    manager: TenantManager = host
    tenant: Tenant = memory_tenant
    timeline: Timeline = memory_tenant.add_timeline(LSN)
    writer: TarballWriter = ArchiveWriter(lambda _: None, 2)
    assert isinstance(manager, TenantManager)
    assert isinstance(tenant, Tenant)
    assert isinstance(timeline, Timeline)
    assert writer.write(b"x") == 1


@pytest.mark.parametrize("protocol", [TenantManager, Tenant, Timeline])
def test_protocols_tell_what_does_not_conform(protocol: type) -> None:
    """A check at run time refuses objects without the methods."""
    assert not isinstance(object(), protocol)


def test_protocols_can_be_told_apart() -> None:
    """A tenant is no timeline and no manager."""
    tenant, timeline = MemoryTenant(TenantShardId(TENANT)), MemoryTimeline(LSN)
    assert not isinstance(tenant, (Timeline, TenantManager))
    assert not isinstance(timeline, (Tenant, TenantManager))
    assert not isinstance(MemoryHost(), (Tenant, Timeline))


def test_memory_host_lists_what_a_test_has_set() -> None:
    """Attached tenants, and None for those that are known only."""
    host = MemoryHost()
    tenant = host.add_tenant(TenantShardId(TENANT, 0, 4))
    other = TenantShardId(TENANT, 1, 4)
    host.tenants[other] = None
    assert host.list() == [(tenant.tenant_shard_id, tenant), (other, None)]
    assert tenant.tenant_id == TENANT
    assert host.get_attached_tenant_shard(tenant.tenant_shard_id) is tenant
    for unknown in (other, TenantShardId(TENANT)):
        with pytest.raises(PrepareError):
            host.get_attached_tenant_shard(unknown)


def test_memory_host_can_be_not_ready() -> None:
    """Unready, it raises as a host does after a restart."""
    host = MemoryHost()
    host.is_ready = False
    with pytest.raises(NotReadyError):
        host.list()


def test_memory_host_makes_new_tenants() -> None:
    """Tenants without a given id are new, unsharded and active."""
    host = MemoryHost()
    first, second = host.add_tenant(), host.add_tenant()
    assert first.tenant_id != second.tenant_id
    assert first.tenant_shard_id == TenantShardId(first.tenant_id)
    assert first.current_state() is TenantState.ACTIVE
    assert first.basebackup_cache_enabled()
    first.state, first.is_cache_enabled = TenantState.BROKEN, False
    assert first.current_state() is TenantState.BROKEN
    assert not first.basebackup_cache_enabled()


def test_memory_tenant_knows_its_timelines() -> None:
    """Timelines are found by id; unknown ones raise."""
    tenant = MemoryTenant(TenantShardId(TenantId.generate()))
    timeline = tenant.add_timeline(LSN)
    assert tenant.list_timelines() == [timeline]
    assert tenant.get_timeline(timeline.timeline_id) is timeline
    with pytest.raises(PrepareError):
        tenant.get_timeline(TIMELINE)


def test_memory_timeline_waits_for_its_tip() -> None:
    """A wait ends when the tip is reached, and raises TimeoutError if it is not."""
    timeline = MemoryTimeline(Lsn(10))
    timeline.wait_lsn(Lsn(10), 0)
    with pytest.raises(TimeoutError):
        timeline.wait_lsn(Lsn(11), 0)
    waits = threading.Event()

    def wait() -> None:
        waits.set()
        timeline.wait_lsn(Lsn(12), 30)

    def advance() -> None:
        wait_until(waits.is_set)
        timeline.advance(Lsn(11))
        timeline.advance(Lsn(12))

    run_threads([wait, advance])
    assert timeline.get_last_record_lsn() == Lsn(12)


def test_memory_timeline_sends_a_real_tar() -> None:
    """The pieces it writes are a tar that tells the timeline and the LSN."""
    timeline = MemoryTimeline(LSN)
    pieces: list[bytes] = []
    writer = ArchiveWriter(pieces.append, 2)
    timeline.send_basebackup_tarball(writer, LSN)
    writer.finish()
    tar = make_tarball(timeline.timeline_id, LSN)
    assert len(b"".join(pieces)) == len(seal_archive(tar))
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        member = archive.extractfile("restart.lsn")
        assert member is not None
        content = member.read()
    assert content.startswith(f"{timeline.timeline_id} {LSN}\n".encode())
    assert len(content) == 1000


def test_memory_timeline_can_be_made_to_misbehave() -> None:
    """Hooks stand in for the wait and the send."""
    timeline = MemoryTimeline(LSN)
    calls: list[object] = []
    timeline.on_wait = lambda lsn, timeout: calls.append((lsn, timeout))
    timeline.on_send = lambda writer, lsn: calls.append((writer, lsn))
    writer = ArchiveWriter(lambda _: None, 2)
    timeline.wait_lsn(Lsn(2**40), 0.5)
    timeline.send_basebackup_tarball(writer, LSN)
    assert calls == [(Lsn(2**40), 0.5), (writer, LSN)]
