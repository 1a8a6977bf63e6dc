"""Many entries: the start, the clean-up, memory, and how a hit grows with them."""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
import tracemalloc
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from bbcache.bench.bars import Bar, Sense
from bbcache.bench.contest import Contest, Curve, Figures
from bbcache.bench.entries import LSN, make_host, make_unready_host, spawn, spawn_ready, wait_ready
from bbcache.bench.latency import P50, Latencies, get_latencies, open_latencies
from bbcache.bench.rounds import timed
from bbcache.bench.scene import FEW_ENTRIES
from bbcache.storage.index import make_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bbcache import BasebackupCache
    from bbcache.bench.rounds import Lineup
    from bbcache.bench.scene import Crowd, Scene
    from bbcache.testing import MemoryHost, MemoryTimeline

_GROWTH_FACTOR: Final = 10
_MOST_SIZES: Final = 4
_STARTS: Final = 3
_WAIT_S: Final = 60.0
_SEED: Final = 1

_START: Final = "bbcache, spawn until initialised"
_SCANDIR: Final = "scandir + stat"
_CLEANUP: Final = "bbcache run_cleanup"
_HOST_CALLS: Final = "one pass over a dict, calling the host"
_MEMORY: Final = "bbcache, memory of an entry"
_MANY: Final = "bbcache get + close, many entries"
_FEW: Final = f"the same, {FEW_ENTRIES} entries"


def _start(scene: Scene, lineup: Lineup) -> Figures:
    crowd = scene.crowd(scene.counts.entries)
    with ExitStack() as running:

        def close_last() -> tuple[()]:
            running.close()
            return ()

        def start() -> None:
            cache = running.enter_context(spawn(crowd.data_dir, make_unready_host()))
            wait_ready(cache)

        def enter() -> Callable[[], float]:
            start()
            _check_count(running, crowd)
            return timed(start, close_last)

        lineup.add(_START, enter)
        lineup.add(_SCANDIR, lambda: timed(lambda: scan(crowd.data_dir)))
        lineup.race(scene.counts.pace)
    return Figures()


def _check_count(running: ExitStack, crowd: Crowd) -> None:
    running.close()
    with spawn_ready(crowd.data_dir, make_unready_host()) as cache:
        if len(cache.entries()) != len(crowd.places):
            raise ValueError("a start has not found every entry")


def scan(data_dir: Path) -> int:
    """Ask for the size of everything in a directory; returns how many things there are."""
    with os.scandir(data_dir) as items:
        return sum(item.stat(follow_symlinks=False).st_size >= 0 for item in items)


def _cleanup(scene: Scene, lineup: Lineup) -> Figures:
    crowd = scene.crowd(scene.counts.entries)
    host = make_host(crowd.places)
    with spawn_ready(crowd.data_dir, host) as cache:
        lineup.add(_CLEANUP, lambda: timed(cache.run_cleanup))
        lineup.add(_HOST_CALLS, lambda: timed(dict_pass(host)))
        lineup.race(scene.counts.pace)
        if len(cache.entries()) != len(crowd.places):
            raise ValueError("a clean-up has removed what was to stay")
    return Figures()


def dict_pass(host: MemoryHost) -> Callable[[], int]:
    """What asks the host about every timeline once, and counts those that have gone on."""
    timelines: dict[bytes, MemoryTimeline] = {
        make_key(shard_id.tenant_id, timeline_id): timeline
        for shard_id, tenant in host.list()
        if tenant is not None
        for timeline_id, timeline in tenant.timelines.items()
    }
    held = dict.fromkeys(timelines, LSN)
    return lambda: sum(timelines[key].get_last_record_lsn() > lsn for key, lsn in held.items())


def _memory(scene: Scene, lineup: Lineup) -> Figures:
    crowd = scene.crowd(scene.counts.entries)

    def run() -> float:
        tracemalloc.start()
        try:
            before_bytes = _traced_bytes()
            with spawn_ready(crowd.data_dir, make_unready_host()):
                return (_traced_bytes() - before_bytes) / len(crowd.places)
        finally:
            tracemalloc.stop()

    lineup.add(_MEMORY, lambda: run)
    lineup.race(scene.counts.memory_pace)
    return Figures()


def _traced_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _growth(scene: Scene, lineup: Lineup) -> Figures:
    gets: dict[int, Latencies] = {}
    opens: dict[int, Latencies] = {}
    starts: dict[int, float] = {}
    sizes = growth_sizes(scene.counts.entries)
    with ExitStack() as stack:
        for size in sizes:
            crowd = scene.crowd(size)
            starts[size] = _start_seconds(crowd)
            cache = stack.enter_context(spawn_ready(crowd.data_dir, make_unready_host()))
            gets[size], opens[size] = _stopwatches(scene, crowd, cache)
            name = {sizes[0]: _FEW, sizes[-1]: _MANY}.get(size, f"{size:,} entries")
            lineup.add(name, lambda size=size: gets[size].round)  # type: ignore[misc]
            lineup.add(f"os.open, {size:,}", lambda size=size: opens[size].round)  # type: ignore[misc]
        lineup.race(scene.counts.pace)
    series = {
        "bbcache get + close": _p50_by_size(gets),
        "os.open + os.close": _p50_by_size(opens),
    }
    return Figures(
        curves=[
            Curve("get, p50", series),
            Curve("start", {"bbcache, spawn until initialised": list(starts.items())}),
        ]
    )


def growth_sizes(most: int) -> list[int]:
    """How many entries growth is measured with: `FEW_ENTRIES`, ten times as many, and so on."""
    sizes = [FEW_ENTRIES]
    while sizes[-1] * _GROWTH_FACTOR < most and len(sizes) < _MOST_SIZES - 1:
        sizes.append(sizes[-1] * _GROWTH_FACTOR)
    return [*sizes, most]


def _start_seconds(crowd: Crowd) -> float:
    taken = []
    for _ in range(_STARTS):
        with ExitStack() as running:
            started_s = time.perf_counter()
            cache = running.enter_context(spawn(crowd.data_dir, make_unready_host()))
            wait_ready(cache)
            taken.append(time.perf_counter() - started_s)
    return statistics.median(taken)


def _stopwatches(scene: Scene, crowd: Crowd, cache: BasebackupCache) -> tuple[Latencies, Latencies]:
    """For `get` and for a bare open, of the same few entries of a crowd, picked by chance."""
    picked = random.Random(_SEED).sample(range(len(crowd.places)), FEW_ENTRIES)  # noqa: S311 - the same each time
    places = [crowd.places[number] for number in picked]
    paths = [crowd.paths[number] for number in picked]
    get_latencies(cache, places, FEW_ENTRIES, _WAIT_S)  # the check at the first open
    how_many = (scene.counts.calls, scene.counts.latency_s)
    return (
        Latencies(lambda: get_latencies(cache, places, *how_many), P50),
        Latencies(lambda: open_latencies(paths, *how_many), P50),
    )


def _p50_by_size(stopwatches: dict[int, Latencies]) -> list[tuple[float, float]]:
    return [
        (size, stopwatch.quantile(P50))
        for size, stopwatch in stopwatches.items()
        if stopwatch.count
    ]


CONTESTS: Final = (
    Contest("start", (Bar("start", _START, _SCANDIR, Sense.AT_MOST, 1.5),), _start),
    Contest(
        "clean-up, all entries stay",
        (Bar("cleanup", _CLEANUP, _HOST_CALLS, Sense.AT_MOST, 1.5),),
        _cleanup,
    ),
    Contest(
        "memory of an entry",
        (Bar("memory-entry", _MEMORY, "", Sense.AT_MOST, 220, "bytes"),),
        _memory,
    ),
    Contest(
        "get, growth with entries",
        (Bar("get-growth", _MANY, _FEW, Sense.AT_MOST, 1.15),),
        _growth,
    ),
)
