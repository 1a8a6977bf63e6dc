"""The host in memory: it is what the protocols say, and moves as a test wants."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import DEADLINE_S, LSN_A, LSN_B, Worker

from bbcache import (
    NotReadyError,
    Tenant,
    TenantId,
    TenantManager,
    TenantShardId,
    TenantState,
    Timeline,
    TimelineId,
)
from bbcache.errors import PrepareError
from bbcache.testing import MemoryHost, MemoryTenant, MemoryTimeline, make_tarball

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from bbcache import Lsn


class _Writer:
    """Keeps the pieces it is given."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: Buffer, /) -> int:
        """Keep a copy."""
        self.pieces.append(bytes(memoryview(data)))
        return len(self.pieces[-1])


def test_it_is_a_host() -> None:
    """All three classes satisfy the protocols."""
    host = MemoryHost()
    tenant = host.add_tenant()
    assert isinstance(host, TenantManager)
    assert isinstance(tenant, Tenant)
    assert isinstance(tenant.add_timeline(LSN_A), Timeline)


def test_the_tenants_of_a_host() -> None:
    """Tenants are listed with their shards; one that is None is not attached."""
    host = MemoryHost()
    tenant = host.add_tenant()
    sharded = host.add_tenant(TenantShardId(TenantId.generate(), 0, 4))
    absent = TenantShardId(TenantId.generate())
    host.tenants[absent] = None
    assert host.list() == [
        (tenant.tenant_shard_id, tenant),
        (sharded.tenant_shard_id, sharded),
        (absent, None),
    ]
    assert host.get_attached_tenant_shard(sharded.tenant_shard_id) is sharded
    for unknown in (absent, TenantShardId(TenantId.generate())):
        with pytest.raises(PrepareError, match="not attached"):
            host.get_attached_tenant_shard(unknown)
    host.is_ready = False
    with pytest.raises(NotReadyError):
        host.list()


def test_the_timelines_of_a_tenant() -> None:
    """A tenant says what the test has set, and knows its timelines."""
    tenant = MemoryTenant(TenantShardId(TenantId.generate(), 0, 2))
    timeline = tenant.add_timeline(LSN_A)
    assert tenant.tenant_id == tenant.tenant_shard_id.tenant_id
    assert tenant.get_timeline(timeline.timeline_id) is timeline
    assert tenant.list_timelines() == [timeline]
    with pytest.raises(PrepareError):
        tenant.get_timeline(TimelineId.generate())
    assert tenant.current_state() is TenantState.ACTIVE
    assert tenant.basebackup_cache_enabled()
    tenant.state, tenant.is_cache_enabled = TenantState.BROKEN, False
    assert tenant.current_state() is TenantState.BROKEN
    assert not tenant.basebackup_cache_enabled()


def test_the_tip_of_a_timeline() -> None:
    """`advance` moves the tip, and wakes who waits for it."""
    timeline = MemoryTimeline(LSN_A)
    timeline.wait_lsn(LSN_A, 0)
    with pytest.raises(TimeoutError, match="0/1000, not at 0/2000"):
        timeline.wait_lsn(LSN_B, 0)
    waiting = Worker(timeline.wait_lsn, LSN_B, DEADLINE_S)
    timeline.advance(LSN_B)
    waiting.result()
    assert timeline.get_last_record_lsn() == LSN_B


def test_what_a_timeline_sends() -> None:
    """Its tarball in pieces, or whatever the test has put in its place."""
    timeline = MemoryTimeline(LSN_A)
    timeline.piece_size_bytes = 1000
    writer = _Writer()
    timeline.send_basebackup_tarball(writer, LSN_B)
    assert {len(piece) for piece in writer.pieces[:-1]} == {1000}
    assert b"".join(writer.pieces) == make_tarball(timeline.timeline_id, LSN_B)
    seen: list[tuple[object, Lsn]] = []
    timeline.on_send = lambda writer, lsn: seen.append((writer, lsn))
    timeline.send_basebackup_tarball(writer, LSN_A)
    timeline.on_wait = lambda lsn, timeout: seen.append((timeout, lsn))
    timeline.wait_lsn(LSN_B, 5)
    assert seen == [(writer, LSN_A), (5, LSN_B)]


@pytest.mark.parametrize("size_bytes", [0, 1, 1000, 100_000])
def test_a_tarball_is_a_real_tar(size_bytes: int) -> None:
    """It has one file of the size asked for, which tells timeline and LSN."""
    timeline_id = TimelineId.generate()
    data = make_tarball(timeline_id, LSN_A, size_bytes)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        (member,) = tar.getmembers()
        content = tar.extractfile(member)
        assert content is not None
        text = f"{timeline_id} {LSN_A}\n".encode()
        assert content.read() == (text * (size_bytes // len(text) + 1))[:size_bytes]
    assert data != make_tarball(timeline_id, LSN_B, size_bytes) or size_bytes < len(text)
