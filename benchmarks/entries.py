"""Cache directories with many entries, written without a prepare of each."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry

from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    Lsn,
    TenantId,
    TenantShardId,
    TenantTimelineId,
    TimelineId,
)
from bbcache.archive.format import pack_header
from bbcache.archive.writer import ArchiveWriter
from bbcache.storage.files import Store
from bbcache.storage.index import make_key
from bbcache.testing import MemoryHost
from bbcache.testing.host import MemoryTimeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from bbcache import TenantManager, Tier

LSN: Final = Lsn.from_str("0/16B5A50")
TIMELINES_PER_TENANT: Final = 10
_ID_SIZE_BYTES: Final = 16
_WAIT_S: Final = 120.0
# The product with a number looks random, and differs for each number.
_SCATTER: Final = 0x9E3779B97F4A7C15F39CC0605CEDC835


def make_config(prepare_concurrency: int | None = None) -> BasebackupCacheConfig:
    """Return default settings with limits that nothing reaches.

    Args:
        prepare_concurrency: the number of workers; None for the default.
    """
    config = BasebackupCacheConfig(max_total_size_bytes=1 << 50, max_size_entries=1 << 30)
    if prepare_concurrency is None:
        return config
    return dataclasses.replace(config, prepare_concurrency=prepare_concurrency)


def spawn(
    data_dir: Path,
    host: TenantManager,
    config: BasebackupCacheConfig | None = None,
    tier: Tier | None = None,
) -> BasebackupCache:
    """Start a cache with its own metrics.

    Args:
        data_dir: its directory.
        host: its host.
        config: its settings; None for those of `make_config`.
        tier: its second tier.
    """
    config = config or make_config()
    return BasebackupCache.spawn(data_dir, config, host, CollectorRegistry(), tier=tier)


def spawn_ready(
    data_dir: Path,
    host: TenantManager,
    config: BasebackupCacheConfig | None = None,
    tier: Tier | None = None,
) -> BasebackupCache:
    """Start a cache as `spawn` does, and wait until it has loaded its directory."""
    cache = spawn(data_dir, host, config, tier)
    wait_ready(cache)
    return cache


def wait_ready(cache: BasebackupCache) -> None:
    """Wait until the directory is loaded."""
    if not cache.wait_initialized(_WAIT_S):
        raise TimeoutError(f"the cache was not initialised in {_WAIT_S:g} s")


def wait_idle(cache: BasebackupCache) -> None:
    """Wait until nothing is queued or built."""
    if not cache.wait_idle(_WAIT_S):
        raise TimeoutError(f"the cache was not idle in {_WAIT_S:g} s")


def make_ids(count: int) -> list[TenantTimelineId]:
    """Return this many timelines, ten to a tenant; the same ones each time."""
    return [
        TenantTimelineId(
            TenantId(_scattered(number // TIMELINES_PER_TENANT)), TimelineId(_scattered(~number))
        )
        for number in range(count)
    ]


def _scattered(number: int) -> bytes:
    mask = (1 << 8 * _ID_SIZE_BYTES) - 1
    return ((number + 1) * _SCATTER & mask).to_bytes(_ID_SIZE_BYTES, "big")


def make_host(ids: Iterable[TenantTimelineId]) -> MemoryHost:
    """Return a host that has these timelines, all at `LSN`."""
    host = MemoryHost()
    for tenant_id, timeline_id in ids:
        shard_id = TenantShardId(tenant_id)
        tenant = host.tenants.get(shard_id) or host.add_tenant(shard_id)
        tenant.timelines[timeline_id] = MemoryTimeline(LSN, timeline_id)
    return host


def make_unready_host() -> MemoryHost:
    """Return a host that does not know its tenants yet, so that no clean-up removes an entry.

    With a host that has no tenants, the clean-up a minute after the start removes all entries.
    """
    host = MemoryHost()
    host.is_ready = False
    return host


def write_entries(data_dir: Path, ids: Sequence[TenantTimelineId], tar: bytes) -> list[str]:
    """Write a sealed archive of `tar` at `LSN` for every timeline, as a prepare would.

    Returns:
        Their paths.
    """
    pieces: list[bytes] = []
    writer = ArchiveWriter(pieces.append, level=2)
    writer.write(tar)
    seal = writer.finish()
    body = b"".join(pieces)[len(pieces[0]) :]
    store = Store(str(data_dir))
    paths = []
    for each in ids:
        key = make_key(*each)
        path = store.path_of(key, LSN)
        with open(path, "xb", buffering=0) as file:
            file.write(pack_header(seal, key, LSN) + body)
        paths.append(path)
    return paths
