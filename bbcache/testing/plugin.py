"""Pytest fixtures for programs that embed bbcache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bbcache.cache import BasebackupCache
from bbcache.config import BasebackupCacheConfig
from bbcache.testing.host import MemoryHost


@pytest.fixture
def bbcache_host() -> MemoryHost:
    """An empty host in memory."""
    return MemoryHost()


@pytest.fixture
def bbcache_config() -> BasebackupCacheConfig:
    """The settings of the cache under test; override it to change them."""
    return BasebackupCacheConfig()


@pytest.fixture
def bbcache_cache(
    tmp_path: Path, bbcache_host: MemoryHost, bbcache_config: BasebackupCacheConfig
) -> Iterator[BasebackupCache]:
    """A started cache on an empty directory, with metrics of its own; closed at the end."""
    registry = CollectorRegistry()
    with BasebackupCache.spawn(
        tmp_path / "bbcache", bbcache_config, bbcache_host, registry
    ) as cache:
        assert cache.wait_initialized(10)
        yield cache
