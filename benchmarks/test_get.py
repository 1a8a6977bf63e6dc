"""`get`, of a lean archive that was checked before, and of one that is not there."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

import pytest
from prometheus_client import Counter

from bbcache import TenantId, TimelineId
from bbcache.index import make_key
from bbcache.store import Store
from bbcache.testing import MemoryHost
from benchmarks.entries import LSN, spawn_ready, write_entries
from benchmarks.peers import require_package

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache import BasebackupCache
    from benchmarks.conftest import Bench
    from benchmarks.inputs import Inputs

_ENTRIES: Final = 1000
_HIT: Final = "get, hit"
_MISS: Final = "get, miss"
_TENANT: Final = TenantId.generate()
_TIMELINES: Final = [TimelineId(number.to_bytes(16, "big")) for number in range(_ENTRIES)]
_KEYS: Final = [make_key(_TENANT, timeline) for timeline in _TIMELINES]


@pytest.fixture(scope="module")
def data_dir(module_dir: Path, inputs: Inputs) -> Path:
    """A directory with a thousand archives of the lean input."""
    directory = module_dir / "cache"
    directory.mkdir()
    write_entries(directory, _KEYS, inputs.lean)
    return directory


@pytest.fixture
def cache(data_dir: Path) -> Iterator[BasebackupCache]:
    """A cache in its default settings on them."""
    with spawn_ready(data_dir, MemoryHost()) as cache:
        yield cache


@pytest.fixture
def path(data_dir: Path) -> str:
    """The path of one of them."""
    return Store(str(data_dir)).path_of(_KEYS[0], LSN)


def test_hit(bench: Bench, cache: BasebackupCache, path: str) -> None:
    """`get` and `close`; the check at the first open is over."""
    bench.label(_HIT, "bbcache get + close")
    first = cache.get(_TENANT, _TIMELINES[0], LSN)
    assert first is not None
    with first, open(path, "rb") as file:
        assert first.read() == file.read()

    def hit() -> bool:
        file = cache.get(_TENANT, _TIMELINES[0], LSN)
        if file is None:
            return False
        file.close()
        return True

    assert bench.run_short(hit)


def test_hit_os_open(bench: Bench, path: str) -> None:
    """The least: the file is opened and closed."""
    bench.label(_HIT, "os.open + os.close", is_reference=True)
    bench.run_short(lambda: os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC)))


def test_hit_file_object(bench: Bench, path: str) -> None:
    """The least that gives a file object."""
    bench.label(_HIT, "open(buffering=0) + close")
    bench.run_short(lambda: open(path, "rb", buffering=0).close())


def test_hit_diskcache(bench: Bench, scratch_dir: Path, path: str) -> None:
    """Diskcache with as many entries of the same size."""
    bench.label(_HIT, "diskcache get(read=True) + close")
    diskcache = require_package("diskcache", "diskcache")
    with open(path, "rb") as file:
        archive = file.read()
    with diskcache.Cache(str(scratch_dir), disk_min_file_size=0) as peer:
        for key in _KEYS:
            peer.set(key, archive)
        bench.run_short(lambda: peer.get(_KEYS[0], read=True).close())
        with peer.get(_KEYS[0], read=True) as file:
            assert file.read() == archive


def test_miss(bench: Bench, cache: BasebackupCache) -> None:
    """`get` of a timeline that has no entry."""
    bench.label(_MISS, "bbcache get")
    timeline = TimelineId.generate()
    assert bench.run_short(lambda: cache.get(_TENANT, timeline, LSN)) is None


def test_miss_dict(bench: Bench) -> None:
    """The least: one look-up under a re-entrant lock, and one counter."""
    bench.label(_MISS, "dict under RLock + counter", is_reference=True)
    lock, held = threading.RLock(), dict.fromkeys(_KEYS, True)
    misses = Counter("misses", "Look-ups in vain.", registry=None)
    absent = make_key(_TENANT, TimelineId.generate())

    def look_up() -> bool | None:
        with lock:
            found = held.get(absent)
        misses.inc()
        return found

    assert bench.run_short(look_up) is None
