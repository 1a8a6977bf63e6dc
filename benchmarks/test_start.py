"""From `spawn` to the first hit over a directory of many entries."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from bbcache.bench.crowds import scan
from bbcache.bench.entries import (
    LSN,
    make_places,
    make_unready_host,
    spawn,
    wait_ready,
    write_entries,
)
from bbcache.testing import make_tarball

if TYPE_CHECKING:
    from pathlib import Path

    from bbcache import BasebackupCache
    from benchmarks.conftest import Bench


@pytest.fixture(scope="module")
def data_dir(module_dir: Path, entry_count: int) -> Path:
    """A directory with one small archive for each of many timelines."""
    places = make_places(entry_count)
    directory = module_dir / "cache"
    directory.mkdir()
    write_entries(directory, places, make_tarball(places[0].timeline_id, LSN))
    return directory


def test_start(bench: Bench, data_dir: Path, entry_count: int) -> None:
    """`spawn` until the entries are served; closing is not timed."""
    bench.label(f"start, {entry_count} entries", "bbcache spawn until initialised")
    host = make_unready_host()

    def start(running: ExitStack) -> BasebackupCache:
        cache = running.enter_context(spawn(data_dir, host))
        wait_ready(cache)
        return cache

    with ExitStack() as running:

        def setup() -> tuple[ExitStack]:
            running.close()
            return (running,)

        cache = bench.run(start, setup)
        assert len(cache.entries()) == entry_count


def test_start_scandir(bench: Bench, data_dir: Path, entry_count: int) -> None:
    """The least: the size of every file."""
    bench.label(f"start, {entry_count} entries", "scandir + stat", is_reference=True)

    name_count = len(os.listdir(data_dir))  # with the cache's own, where one has run before

    assert bench.run(lambda: scan(data_dir)) == name_count >= entry_count
