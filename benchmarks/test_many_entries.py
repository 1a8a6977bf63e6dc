"""Many entries: the start, the clean-up, memory, and how a hit grows with their number."""

from __future__ import annotations

import os
import random
import statistics
from typing import TYPE_CHECKING, Final

from bbcache.storage.index import make_key
from benchmarks.bars import Bar, Sense, case
from benchmarks.entries import LSN, make_host, make_unready_host, spawn, spawn_ready, wait_ready
from benchmarks.latency import P50, Latencies, get_latencies, open_latencies
from benchmarks.rounds import timed
from benchmarks.test_get import verify_all
from benchmarks.traced_memory import traced_growth
from benchmarks.workspace import FEW_ENTRIES, MEMORY_PACE

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from bbcache.testing import MemoryHost, MemoryTimeline
    from benchmarks.results import Results
    from benchmarks.rounds import Rounds
    from benchmarks.workspace import Workspace

_GROWTH_FACTOR: Final = 10
_MOST_SIZES: Final = 4
_SEED: Final = 1

_START: Final = "bbcache, spawn until initialised"
_SCANDIR: Final = "scandir + stat"
_CLEANUP: Final = "bbcache run_cleanup"
_HOST_CALLS: Final = "one pass over a dict, calling the host"
_MEMORY: Final = "bbcache, memory of an entry"
_MANY: Final = "bbcache get + close, many entries"
_FEW: Final = f"bbcache get + close, {FEW_ENTRIES} entries"


@case("start", Bar("start", _START, _SCANDIR, Sense.AT_MOST, 1.5))
def test_start(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """`spawn` until the entries are served, beside the size of every file; no close is timed."""
    many = workspace.many_entries(workspace.counts.entries)

    def close_last() -> tuple[()]:
        stack.close()
        return ()

    def start() -> None:
        wait_ready(stack.enter_context(spawn(many.data_dir, make_unready_host())))

    rounds.add(_START, lambda: timed(start, close_last))
    rounds.add(_SCANDIR, lambda: timed(lambda: scan(many.data_dir)))
    rounds.run(workspace.counts.pace)
    stack.close()
    with spawn_ready(many.data_dir, make_unready_host()) as cache:
        assert len(cache.entries()) == len(many.ids)


def scan(data_dir: Path) -> int:
    """Stat every file of a directory; return how many there are."""
    with os.scandir(data_dir) as items:
        return sum(item.stat(follow_symlinks=False).st_size >= 0 for item in items)


@case("clean-up, all entries stay", Bar("cleanup", _CLEANUP, _HOST_CALLS, Sense.AT_MOST, 1.5))
def test_cleanup(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """`run_cleanup`, which asks the host about every timeline, beside a loop of these calls."""
    many = workspace.many_entries(workspace.counts.entries)
    host = make_host(many.ids)
    cache = stack.enter_context(spawn_ready(many.data_dir, host))
    rounds.add(_CLEANUP, lambda: timed(cache.run_cleanup))
    rounds.add(_HOST_CALLS, lambda: timed(dict_pass(host)))
    rounds.run(workspace.counts.pace)
    assert len(cache.entries()) == len(many.ids)


def dict_pass(host: MemoryHost) -> Callable[[], int]:
    """Return a function that asks the host about every timeline and counts those that moved on."""
    timelines: dict[bytes, MemoryTimeline] = {
        make_key(shard_id.tenant_id, timeline_id): timeline
        for shard_id, tenant in host.list()
        if tenant is not None
        for timeline_id, timeline in tenant.timelines.items()
    }
    held = dict.fromkeys(timelines, LSN)
    return lambda: sum(timelines[key].get_last_record_lsn() > lsn for key, lsn in held.items())


@case("memory of an entry", Bar("memory-entry", _MEMORY, "", Sense.AT_MOST, 220, "bytes"))
def test_memory(workspace: Workspace, rounds: Rounds) -> None:
    """What a cache with many entries allocates, for each of them."""
    many = workspace.many_entries(workspace.counts.entries)

    def run() -> float:
        with traced_growth() as growth, spawn_ready(many.data_dir, make_unready_host()):
            return growth() / len(many.ids)

    rounds.add(_MEMORY, lambda: run)
    rounds.run(MEMORY_PACE)


@case("get, growth with entries", Bar("get-growth", _MANY, _FEW, Sense.AT_MOST, 1.15))
def test_growth(workspace: Workspace, rounds: Rounds, stack: ExitStack, results: Results) -> None:
    """The median of a hit and of a bare open, among few entries up to many."""
    names: dict[str, tuple[str, int]] = {}
    sizes = growth_sizes(workspace.counts.entries)
    for size in sizes:
        get = {sizes[0]: _FEW, sizes[-1]: _MANY}.get(size, f"bbcache get + close, {size:,} entries")
        names[get] = ("bbcache get + close", size)
        names[f"os.open + os.close, {size:,} entries"] = ("os.open + os.close", size)
        for name, latencies in zip([*names][-2:], _growth_at(workspace, stack, size), strict=True):
            rounds.add(name, lambda latencies=latencies: latencies)  # type: ignore[misc]
    rounds.run(workspace.counts.pace)
    for name, samples in rounds.samples.items():
        what, size = names[name]
        results.add("growth", name=what, entries=size, seconds=statistics.median(samples))


def growth_sizes(most: int) -> list[int]:
    """Return the numbers of entries to measure: `FEW_ENTRIES`, ten times as many, and so on."""
    sizes = [FEW_ENTRIES]
    while sizes[-1] * _GROWTH_FACTOR < most and len(sizes) < _MOST_SIZES - 1:
        sizes.append(sizes[-1] * _GROWTH_FACTOR)
    return [*sizes, most]


def _growth_at(workspace: Workspace, stack: ExitStack, size: int) -> tuple[Latencies, Latencies]:
    """Measure `get` and a bare open of the same few random entries among so many."""
    many, calls = workspace.many_entries(size), workspace.counts.calls
    cache = stack.enter_context(spawn_ready(many.data_dir, make_unready_host()))
    picked = random.Random(_SEED).sample(range(size), FEW_ENTRIES)
    ids = [many.ids[number] for number in picked]
    paths = [many.paths[number] for number in picked]
    verify_all(cache, ids)
    return (
        Latencies(lambda: get_latencies(cache, ids, calls), P50),
        Latencies(lambda: open_latencies(paths, calls), P50),
    )
