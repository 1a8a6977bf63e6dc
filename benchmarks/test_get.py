"""`get`, of a lean archive that was checked before, and of one that is not there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

from bbcache import TimelineId
from bbcache.bench.entries import LSN, make_places, make_unready_host, spawn_ready, write_entries
from bbcache.bench.reads import check_hit, dict_look_up, fill_diskcache
from bbcache.storage.files import Store
from bbcache.storage.index import make_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache import BasebackupCache
    from bbcache.bench.inputs import Inputs
    from benchmarks.conftest import Bench

_ENTRIES: Final = 1000
_HIT: Final = "get, hit"
_MISS: Final = "get, miss"
_PLACES: Final = make_places(_ENTRIES)
_KEYS: Final = [make_key(*place) for place in _PLACES]


@pytest.fixture(scope="module")
def data_dir(module_dir: Path, inputs: Inputs) -> Path:
    """A directory with a thousand archives of the lean input."""
    directory = module_dir / "cache"
    directory.mkdir()
    write_entries(directory, _PLACES, inputs.lean)
    return directory


@pytest.fixture
def cache(data_dir: Path) -> Iterator[BasebackupCache]:
    """A cache in its default settings on them."""
    with spawn_ready(data_dir, make_unready_host()) as cache:
        yield cache


@pytest.fixture
def path(data_dir: Path) -> str:
    """The path of one of them."""
    return Store(str(data_dir)).path_of(_KEYS[0], LSN)


def test_hit(bench: Bench, cache: BasebackupCache, path: str) -> None:
    """`get` and `close`; the check at the first open is over."""
    bench.label(_HIT, "bbcache get + close")
    tenant_id, timeline_id = _PLACES[0]
    check_hit(cache, _PLACES[0], path)

    def hit() -> bool:
        file = cache.get(tenant_id, timeline_id, LSN)
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
    with fill_diskcache(scratch_dir, _KEYS, path) as peer:
        bench.run_short(lambda: peer.get(_KEYS[0], read=True).close())


def test_miss(bench: Bench, cache: BasebackupCache) -> None:
    """`get` of a timeline that has no entry."""
    bench.label(_MISS, "bbcache get")
    tenant_id, timeline_id = _PLACES[0].tenant_id, TimelineId.generate()
    assert bench.run_short(lambda: cache.get(tenant_id, timeline_id, LSN)) is None


def test_miss_dict(bench: Bench) -> None:
    """The least: one look-up under a re-entrant lock, and one counter."""
    bench.label(_MISS, "dict under RLock + counter", is_reference=True)
    assert bench.run_short(dict_look_up(_KEYS)) is None
