"""The metrics of a cache, and the registries that they are in."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Gauge, generate_latest
from support.cache_helpers import (
    DEADLINE_S,
    Harness,
    fail_with,
    samples,
)
from support.helpers import samples_of

from bbcache import (
    BasebackupCache,
    BasebackupCacheConfig,
    ConfigError,
)
from bbcache.metrics import Metrics
from bbcache.testing import MemoryHost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache."""
    with Harness(tmp_path / "cache") as opened:
        yield opened


def test_the_default_registry(tmp_path: Path) -> None:
    """Without a registry the metrics are in Prometheus' default one until the close."""
    before = generate_latest(REGISTRY)
    config = BasebackupCacheConfig()
    with BasebackupCache.spawn(tmp_path / "one", config, MemoryHost()) as cache:
        assert b"pageserver_basebackup_cache_read_total" in generate_latest(REGISTRY)
        with pytest.raises(ConfigError, match="hint: "):
            BasebackupCache.spawn(tmp_path / "two", config, MemoryHost())
        cache.close()
        assert b"basebackup_cache" not in generate_latest(REGISTRY)
        with BasebackupCache.spawn(tmp_path / "two", config, MemoryHost()) as other:
            assert other.wait_initialized(DEADLINE_S)
    names = {line.split(b" ")[0] for line in generate_latest(REGISTRY).splitlines()}
    assert names == {line.split(b" ")[0] for line in before.splitlines()}


def test_a_registry_that_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    """Collectors are registered all or none, and the directory is free again."""
    registry = CollectorRegistry()
    Gauge("bbcache_nonentry_bytes", "of somebody else", registry=registry)
    names, before = set(samples(registry)), threading.enumerate()
    for _ in range(2):
        with pytest.raises(ConfigError, match="metrics of another cache"):
            BasebackupCache.spawn(tmp_path, BasebackupCacheConfig(), MemoryHost(), registry)
    assert set(samples(registry)) == names
    assert not {thread for thread in threading.enumerate() if thread not in before}
    with Harness(tmp_path) as harness:
        assert harness.cache.is_enabled


def test_a_registry_of_ones_own_stays_readable(harness: Harness) -> None:
    """After the close the last values are there to be read."""
    harness.prepared()
    before = samples(harness.registry)
    harness.cache.close()
    assert samples(harness.registry) == before


def test_a_cache_that_can_publish_nothing_shows_as_degraded(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a prepare that the disk refused to the next one that it took."""
    with monkeypatch.context() as patch:
        fail_with(patch, os, "fsync", OSError(errno.EIO, os.strerror(errno.EIO)))
        harness.prepare(harness.timeline())
        assert os.strerror(errno.EIO) in (harness.cache.degraded_reason or "")
        assert harness.value("bbcache_degraded") == 1
    harness.prepared()
    assert harness.cache.degraded_reason is None
    assert harness.value("bbcache_degraded") == 0


def test_every_metric_is_there_at_zero(harness: Harness) -> None:
    """Neon's names and labels, and ours beside them, exist from the start."""
    found = samples(harness.registry)
    names = [name for row in Metrics.rows() for name in samples_of(row)]
    assert {name: found[name] for name in names} == dict.fromkeys(names, 0)
    text = generate_latest(harness.registry).decode()
    assert "# TYPE pageserver_basebackup_cache_read_total counter" in text
    assert "# TYPE pageserver_basebackup_cache_entries_total gauge" in text
