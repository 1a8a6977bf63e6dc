"""Cache directories with many entries, made without preparing each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry

from bbcache import BasebackupCache, BasebackupCacheConfig, Lsn
from bbcache.archive import ArchiveWriter, pack_header
from bbcache.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bbcache import TenantManager

LSN: Final = Lsn.from_str("0/16B5A50")
_WAIT_S: Final = 60.0


def spawn(data_dir: Path, host: TenantManager) -> BasebackupCache:
    """A cache with metrics of its own, and default settings but for limits it never meets."""
    config = BasebackupCacheConfig(max_total_size_bytes=1 << 50, max_size_entries=1 << 30)
    return BasebackupCache.spawn(data_dir, config, host, CollectorRegistry())


def spawn_ready(data_dir: Path, host: TenantManager) -> BasebackupCache:
    """Such a cache that has loaded its directory."""
    cache = spawn(data_dir, host)
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


def write_entries(data_dir: Path, keys: Iterable[bytes], tar: bytes) -> None:
    """Write a sealed archive of `tar` at `LSN` for every key, as a prepare would."""
    pieces: list[bytes] = []
    writer = ArchiveWriter(pieces.append, level=2)
    writer.write(tar)
    seal = writer.finish()
    body = b"".join(pieces)[len(pieces[0]) :]
    store = Store(str(data_dir))
    for key in keys:
        with open(store.path_of(key, LSN), "xb", buffering=0) as file:
            file.write(pack_header(seal, key, LSN) + body)
