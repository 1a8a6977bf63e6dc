"""The public API as a user types it; checked by mypy --strict, never run.

The host below is of the user's own classes: they match the protocols by their
shape alone.
"""

# ruff: noqa: D102 - what the methods do is said by the protocols
from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, assert_type, cast

from prometheus_client import CollectorRegistry

from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    BasebackupFile,
    BbcacheError,
    ConfigError,
    DirectoryLockedError,
    EntryInfo,
    Explanation,
    Lsn,
    NotReadyError,
    SimpleTenant,
    SimpleTenantManager,
    StoreError,
    Tenant,
    TenantId,
    TenantManager,
    TenantShardId,
    TenantState,
    TenantTimelineId,
    Tier,
    TierConfig,
    Timeline,
    TimelineId,
)
from bbcache.testing import MemoryHost, MemoryTenant, MemoryTier, MemoryTimeline, make_tarball
from bbcache.testing.postgres import (
    Database,
    PostgresOptions,
    PostgresTestCase,
    Server,
    Snapshot,
    postgres,
    snapshot,
)

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

    from bbcache.host import TarballWriter


@dataclass(frozen=True)
class MyTimeline:
    """A timeline of a user: its id is a plain attribute."""

    timeline_id: TimelineId
    directory: Path

    def get_last_record_lsn(self) -> Lsn:
        return Lsn(0x16B5A50)

    def wait_lsn(self, lsn: Lsn, timeout: float) -> None:
        if lsn > self.get_last_record_lsn():
            raise TimeoutError(timeout)

    def send_basebackup_tarball(self, writer: TarballWriter, lsn: Lsn) -> None:
        assert_type(writer.write(b"bytes"), int)
        writer.write(bytearray(10))
        writer.write(memoryview(b"view")[1:])
        with tarfile.open(fileobj=cast("IO[bytes]", writer), mode="w|") as tar:
            tar.add(self.directory, f"at-{lsn}")


class OtherTimeline:
    """A timeline of another user: its id is a property, and its writer of any type."""

    @property
    def timeline_id(self) -> TimelineId:
        return TimelineId(bytes(16))

    def get_last_record_lsn(self) -> Lsn:
        return Lsn.from_str("0/16B5A50")

    def wait_lsn(self, lsn: Lsn, timeout: float = 1.0) -> None:
        del lsn, timeout

    def send_basebackup_tarball(self, writer: Any, lsn: Lsn) -> None:
        writer.write(str(lsn).encode())


@dataclass
class MyTenant:
    """A tenant of a user."""

    timelines: dict[TimelineId, MyTimeline] = field(default_factory=dict)

    def current_state(self) -> TenantState:
        return TenantState.ACTIVE

    def basebackup_cache_enabled(self) -> bool:
        return True

    def get_timeline(self, timeline_id: TimelineId) -> MyTimeline:
        return self.timelines[timeline_id]

    def list_timelines(self) -> Iterator[MyTimeline]:
        yield from self.timelines.values()


class MyManager:
    """A tenant manager of a user."""

    def __init__(self) -> None:
        self.tenants: dict[TenantShardId, MyTenant] = {}

    def list(self) -> list[tuple[TenantShardId, MyTenant | None]]:
        if not self.tenants:
            raise NotReadyError("still attaching")
        return [*self.tenants.items()]

    def get_attached_tenant_shard(self, tenant_shard_id: TenantShardId) -> MyTenant:
        return self.tenants[tenant_shard_id]


class BadTimeline:
    """Not a timeline: it cannot wait."""

    timeline_id = TimelineId(bytes(16))

    def get_last_record_lsn(self) -> Lsn:
        return Lsn(0)


def protocols() -> None:
    """Classes of the right shape are hosts; others are not."""
    timeline: Timeline = MyTimeline(TimelineId.generate(), Path())
    timeline = OtherTimeline()
    timeline = MemoryTimeline(Lsn(1))
    timeline = BadTimeline()  # type: ignore[assignment]
    tenant: Tenant = MyTenant()
    tenant = MemoryTenant(TenantShardId(TenantId.generate()))
    manager: TenantManager = MyManager()
    manager = MemoryHost()
    mine: SimpleTenant[MyTimeline] = SimpleTenant(TenantShardId(TenantId.generate()))
    mine.add(MyTimeline(TimelineId.generate(), Path()))
    mine.add(MemoryTimeline(Lsn(1)))  # type: ignore[arg-type]
    assert_type(mine.list_timelines(), list[MyTimeline])
    simple: SimpleTenantManager[SimpleTenant[MyTimeline]] = SimpleTenantManager()
    simple.add(mine)
    tenant, manager = mine, simple
    manager = MyTenant()  # type: ignore[assignment]
    del timeline, tenant, manager


def ids(text: str) -> None:
    """Ids and LSNs keep their types."""
    assert_type(TenantId.from_str(text), TenantId)
    assert_type(TenantId.generate(), TenantId)
    assert_type(TimelineId(bytes(16)), TimelineId)
    assert_type(str(TimelineId.from_str(text)), str)
    assert_type(bytes(TenantId.generate()), bytes)
    shard = TenantShardId(TenantId.generate(), shard_number=0, shard_count=4)
    assert_type(shard, TenantShardId)
    assert_type(TenantShardId.from_str(text), TenantShardId)
    assert_type(shard.is_shard_zero, bool)
    assert_type(shard.tenant_id, TenantId)
    pair = TenantTimelineId(shard.tenant_id, TimelineId.generate())
    assert_type(pair.timeline_id, TimelineId)
    lsn = Lsn.from_str("0/16B5A50")
    assert_type(lsn, Lsn)
    assert_type(lsn + 8, Lsn)
    assert_type(8 + lsn, Lsn)
    assert_type(lsn - Lsn(8), int)
    assert_type(lsn < Lsn(0), bool)
    TenantShardId(TimelineId.generate())  # type: ignore[arg-type]
    {TenantId.generate(): 1, TimelineId.generate(): 2}  # both hashable


def settings(path: Path, table: dict[str, Any]) -> BasebackupCacheConfig:
    """Settings are keywords, or from TOML."""
    BasebackupCacheConfig(60)  # type: ignore[call-arg]
    BasebackupCacheConfig(verify_reads="often")  # type: ignore[arg-type]
    config = BasebackupCacheConfig(
        cleanup_period=60,
        max_total_size_bytes=1 << 30,
        max_size_entries=10_000,
        prepare_channel_size=100,
        max_entry_size_bytes=None,
        max_unpublished_size_bytes=1 << 30,
        prepare_concurrency=4,
        prepare_niceness=10,
        wait_lsn_timeout=300.0,
        compression_level=2,
        verify_reads="first",
    )
    config.compression_level = 3  # type: ignore[misc]
    assert_type(config.max_entry_size_bytes, int | None)
    assert_type(BasebackupCacheConfig.from_toml(path), BasebackupCacheConfig)
    assert_type(BasebackupCacheConfig.from_toml(table), BasebackupCacheConfig)
    assert_type(BasebackupCacheConfig.from_toml(os.fspath(path)), BasebackupCacheConfig)
    return config


def read_explanation(explanation: Explanation) -> None:
    """The explanation of one timeline."""
    assert_type(explanation.as_dict(), dict[str, Any])
    if explanation.entry is not None:
        assert_type(explanation.entry.lsn, Lsn)
    if explanation.standing is not None and explanation.standing.habits is not None:
        assert_type(explanation.standing.habits.return_share, float | None)
    assert_type([each.result for each in explanation.outcomes], list[str])


def a_life(directory: Path, config: BasebackupCacheConfig | None) -> int:
    """From spawn to close."""
    manager = MyManager()
    try:
        cache = BasebackupCache.spawn(directory, config, manager)
    except DirectoryLockedError as error:
        assert_type(error.pid, int | None)
        assert_type(error.data_dir, str)
        raise
    except StoreError as error:
        assert_type(error.errno, int | None)
        raise
    except (ConfigError, BbcacheError):
        raise
    assert_type(cache, BasebackupCache)
    assert_type(cache.is_enabled, bool)
    assert_type(cache.wait_initialized(), bool)
    assert_type(cache.wait_idle(timeout=10), bool)
    shard_id, timeline_id = TenantShardId(TenantId.generate()), TimelineId.generate()
    cache.send_prepare(shard_id, timeline_id, Lsn(1))
    cache.send_prepare(shard_id.tenant_id, timeline_id, Lsn(1))  # type: ignore[arg-type]
    cache.run_cleanup()
    read_explanation(cache.explain(shard_id.tenant_id, timeline_id))
    cache.close(timeout=1.5)
    registry = CollectorRegistry()
    with BasebackupCache.spawn("relative", config, manager, registry=registry) as cache:
        with cache.get_or_prepare(shard_id, timeline_id, Lsn(1), timeout_s=2.5) as filled:
            assert_type(filled, BasebackupFile)
            assert filled.source in {"hit", "joined", "built"}
        with cache.get_or_prepare(shard_id, timeline_id, Lsn(1), check_cancelled=lambda: None):
            held = cache.get_held(shard_id.tenant_id, timeline_id, Lsn(1))
            assert_type(held, BasebackupFile | None)
        file = cache.get(shard_id.tenant_id, timeline_id, Lsn(1))
        assert_type(file, BasebackupFile | None)
        if file is None:
            return 0
        with file:
            raw: io.FileIO = file
            assert_type(file.lsn, Lsn)
            assert_type(file.size_bytes, int)
            raw.seek(0)
        entries = cache.entries()
        assert_type(entries, list[EntryInfo])
        assert_type(entries[0].tenant_id, TenantId)
        assert_type(entries[0].timeline_id, TimelineId)
        assert_type(entries[0].lsn, Lsn)
        return sum(entry.size_bytes for entry in entries)


def for_tests() -> bytes:
    """The host in memory."""
    host = MemoryHost()
    tenant = host.add_tenant()
    timeline = tenant.add_timeline(Lsn(1))
    assert_type(timeline, MemoryTimeline)
    timeline.on_wait = MyTimeline(timeline.timeline_id, Path()).wait_lsn
    timeline.on_send = OtherTimeline().send_basebackup_tarball
    timeline.advance(Lsn(2))
    return make_tarball(timeline.timeline_id, Lsn(2), size_bytes=10)


def with_a_tier(host: MemoryHost, tenant_shard_id: TenantShardId) -> None:
    """A second tier of this package, and one in memory."""
    from bbcache.tier import ObjectTier  # noqa: PLC0415 - needs an extra

    settings = TierConfig(url="s3://bucket", key_files=("key",), options={"region": "eu"})
    config = BasebackupCacheConfig(tier=settings)
    tiers: list[Tier] = [MemoryTier(), ObjectTier(settings, CollectorRegistry())]
    with BasebackupCache.spawn("cache", config, host, tier=tiers[0]) as cache:
        cache.send_warm(tenant_shard_id, TimelineId.generate(), Lsn(1), build=True)
        BasebackupCache.spawn("other", config, host, tier="s3://bucket")  # type: ignore[arg-type]


@snapshot(inputs=["migrations/**"], version="1", root=Path())
def app(db: Database) -> None:
    """A builder."""
    assert_type(db.psql("SELECT 1"), str)
    db.run(["alembic", "upgrade", "head"], timeout=60)


def postgres_for_tests() -> str:
    """A server and a database."""
    assert_type(app, Snapshot)
    with postgres(app, PostgresOptions(major=18)) as server, server.database() as database:
        assert_type(server, Server)
        assert_type(database, Database)
        assert_type(database.env, dict[str, str])
        server.restart("immediate")
        server.restart("slowly")  # type: ignore[arg-type]
        return database.url


class TestOfTheirs(PostgresTestCase):
    """A test case."""

    snapshot = app

    def test_it(self) -> None:
        """It has a database."""
        assert_type(self.database, Database)
