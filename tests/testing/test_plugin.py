"""The pytest plugin for programs that embed bbcache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bbcache import BasebackupCache, BasebackupCacheConfig, Lsn

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from bbcache.testing import MemoryHost

pytest_plugins = ["bbcache.testing.plugin", "pytester"]

_EMBEDDERS_TESTS = """
import pytest
from bbcache import BackingOffError, BasebackupCacheConfig, FillError, Lsn

LSN = Lsn.from_str("0/16B5A50")

def test_a_prepare(bbcache_cache, bbcache_host):
    tenant = bbcache_host.add_tenant()
    timeline = tenant.add_timeline(LSN)
    bbcache_cache.send_prepare(tenant.tenant_shard_id, timeline.timeline_id, LSN)
    assert bbcache_cache.wait_idle(60)
    with bbcache_cache.get(tenant.tenant_id, timeline.timeline_id, LSN) as file:
        assert file.lsn == LSN

def test_a_restart(bbcache_cache, bbcache_host, bbcache_restart, bbcache_registry):
    tenant = bbcache_host.add_tenant()
    timeline = tenant.add_timeline(LSN)
    bbcache_cache.send_prepare(tenant.tenant_shard_id, timeline.timeline_id, LSN)
    assert bbcache_cache.wait_idle(60)
    restarted = bbcache_restart()
    assert bbcache_cache.get(tenant.tenant_id, timeline.timeline_id, LSN) is None
    with restarted.get(tenant.tenant_id, timeline.timeline_id, LSN) as file:
        assert file.lsn == LSN
    samples = [s for family in bbcache_registry.collect() for s in family.samples]
    (hits,) = (s.value for s in samples if s.name.endswith("_read_total") and "hit" in str(s))
    assert hits == 1

def test_a_pause_ends(bbcache_cache, bbcache_host, bbcache_clock):
    tenant = bbcache_host.add_tenant()
    timeline = tenant.add_timeline(LSN)
    wanted = tenant.tenant_shard_id, timeline.timeline_id, LSN
    timeline.on_send = lambda writer, lsn: writer.write(b"no tar")
    with pytest.raises(FillError):
        bbcache_cache.get_or_prepare(*wanted)
    timeline.on_send = None
    with pytest.raises(BackingOffError):
        bbcache_cache.get_or_prepare(*wanted)
    bbcache_clock.advance(60)
    bbcache_cache.get_or_prepare(*wanted).close()
    with pytest.raises(ValueError):
        bbcache_clock.advance(-1)

class TestWithOwnSettings:
    @pytest.fixture
    def bbcache_config(self):
        return BasebackupCacheConfig(max_size_entries=1)

    def test_the_limit(self, bbcache_cache, bbcache_host):
        tenant = bbcache_host.add_tenant()
        for _ in range(3):
            timeline = tenant.add_timeline(LSN)
            bbcache_cache.send_prepare(tenant.tenant_shard_id, timeline.timeline_id, LSN)
        assert bbcache_cache.wait_idle(60)
        assert len(bbcache_cache.entries()) == 1
"""


def test_the_fixtures(
    bbcache_cache: BasebackupCache,
    bbcache_host: MemoryHost,
    bbcache_config: BasebackupCacheConfig,
    tmp_path: Path,
) -> None:
    """A started cache below tmp_path, on an empty host, with the default settings."""
    assert bbcache_cache.wait_initialized(0)
    assert bbcache_cache.entries() == []
    assert bbcache_host.list() == []
    assert bbcache_config == BasebackupCacheConfig()
    assert (tmp_path / "bbcache" / ".bbcache.lock").exists()
    tenant = bbcache_host.add_tenant()
    timeline = tenant.add_timeline(Lsn(1))
    bbcache_cache.send_prepare(tenant.tenant_shard_id, timeline.timeline_id, Lsn(1))
    assert bbcache_cache.wait_idle(60)
    assert len(bbcache_cache.entries()) == 1


def test_the_plugin_in_a_session_of_its_own(pytester: pytest.Pytester) -> None:
    """Given on the command line it serves an embedder's tests, settings overridden or not."""
    pytester.makepyfile(_EMBEDDERS_TESTS)
    result = pytester.runpytest_subprocess(
        "-p", "bbcache.testing.plugin", "-W", "error", "-p", "no:cacheprovider"
    )
    result.assert_outcomes(passed=4)
