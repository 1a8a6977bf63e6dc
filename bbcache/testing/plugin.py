"""Pytest fixtures for programs that embed bbcache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from bbcache.cache import BasebackupCache
from bbcache.config import BasebackupCacheConfig
from bbcache.testing.clock import MovableClock
from bbcache.testing.host import MemoryHost

_START_TIMEOUT_S: Final = 60.0
_CLOSE_TIMEOUT_S: Final = 10.0  # as `BasebackupCache` has it at the end of a block


class RestartRegistry(CollectorRegistry):
    """A registry that a restarted cache can register its metrics in again."""

    def __init__(self) -> None:
        super().__init__()
        self._registered: list[Collector] = []

    def register(self, collector: Collector) -> None:
        """Register a collector."""
        super().register(collector)
        self._registered.append(collector)

    def unregister(self, collector: Collector) -> None:
        """Unregister a collector."""
        super().unregister(collector)
        self._registered.remove(collector)

    def clear(self) -> None:
        """Unregister all collectors: a process that has ended has no metrics."""
        for collector in list(self._registered):
            self.unregister(collector)


@pytest.fixture
def bbcache_host() -> MemoryHost:
    """An empty host in memory."""
    return MemoryHost()


@pytest.fixture
def bbcache_config() -> BasebackupCacheConfig:
    """The settings of the cache under test; override it to change them."""
    return BasebackupCacheConfig()


@pytest.fixture
def bbcache_registry() -> RestartRegistry:
    """Where the metrics of the cache under test are registered; a restart begins them at zero."""
    return RestartRegistry()


@pytest.fixture
def bbcache_clock() -> MovableClock:
    """The clock of the cache under test: ``advance`` it past the pause after a failed build."""
    return MovableClock()


@pytest.fixture
def bbcache_restart(
    tmp_path: Path,
    bbcache_host: MemoryHost,
    bbcache_config: BasebackupCacheConfig,
    bbcache_registry: RestartRegistry,
    bbcache_clock: MovableClock,
) -> Iterator[Callable[[], BasebackupCache]]:
    """A function that closes the cache under test and returns a new one on its directory."""
    caches: list[BasebackupCache] = []

    def restart() -> BasebackupCache:
        if caches:
            caches.pop().close()
            bbcache_registry.clear()
        cache = BasebackupCache.spawn(
            tmp_path / "bbcache",
            bbcache_config,
            bbcache_host,
            bbcache_registry,
            clock=bbcache_clock,
        )
        caches.append(cache)
        assert cache.wait_initialized(_START_TIMEOUT_S)
        return cache

    yield restart
    if caches:
        caches.pop().close(_CLOSE_TIMEOUT_S)


@pytest.fixture
def bbcache_cache(bbcache_restart: Callable[[], BasebackupCache]) -> BasebackupCache:
    """A started cache on an empty directory, with metrics of its own; closed at the end."""
    return bbcache_restart()
