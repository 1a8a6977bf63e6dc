"""`get`: hits and misses, alone, beside builds, and beside a clean-up."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import Counter

from bbcache import TenantId, TenantTimelineId, TimelineId
from bbcache.archive.deflate import PIECE_SIZE_BYTES
from bbcache.postgres.pgdata.tarball import send_pgdata_tarball
from bbcache.storage.files import Store
from bbcache.storage.index import make_key
from benchmarks.background_load import WORKERS, building, cleaning, compressing
from benchmarks.bars import Bar, Sense, case
from benchmarks.entries import (
    LSN,
    make_config,
    make_host,
    make_ids,
    make_unready_host,
    spawn_ready,
    write_entries,
)
from benchmarks.latency import (
    P50,
    P99,
    Calls,
    Latencies,
    diskcache_latencies,
    get_latencies,
    open_latencies,
)
from benchmarks.peers import require_package
from benchmarks.pipeline import Pipeline
from benchmarks.workspace import FEW_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager, ExitStack
    from pathlib import Path

    from bbcache import BasebackupCache
    from bbcache.host import TarballWriter
    from benchmarks.rounds import Rounds
    from benchmarks.workspace import Workspace

    Beside = Callable[[], AbstractContextManager[None]]

ENTRIES: Final = 1_000
_BUSY_ENTRIES: Final = 50  # fewer than may wait in the queue
_WAIT_S: Final = 60.0

_HIT: Final = "bbcache get + close"
_OPEN: Final = "os.open + os.close"
_DISKCACHE: Final = "diskcache get(read=True) + close"
_HIT_BUSY: Final = "bbcache get + close, two workers building full of a PGDATA"
_HIT_BUSY_MEMORY: Final = "bbcache get + close, two workers building full from memory"
_OPEN_BESIDE: Final = "os.open + os.close, two workers building full of a PGDATA"
_OPEN_BUSY: Final = "os.open + os.close, two ISA-L compressors"
_MISS: Final = "bbcache get, no entry"
_DICT: Final = "dict under RLock + counter"
_HIT_CLEANUP: Final = "bbcache get + close, clean-up running"
_HIT_IDLE: Final = "bbcache get + close, nothing running"


@case(
    "get, hit",
    Bar("get-hit", _HIT, _OPEN, Sense.AT_MOST, 3.0),
    Bar("get-hit-diskcache", _HIT, _DISKCACHE, Sense.AT_LEAST, 1.5),
)
def test_hit(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A hit of a lean archive, beside a bare open and diskcache; the median of the calls."""
    ids, calls = make_ids(ENTRIES), workspace.counts.calls
    data_dir = stack.enter_context(workspace.scratch())
    paths = write_entries(data_dir, ids, workspace.inputs.lean)

    def enter_get() -> Latencies:
        cache = stack.enter_context(spawn_ready(data_dir, make_unready_host()))
        check_hit(cache, ids[0], paths[0])
        verify_all(cache, ids)
        return Latencies(lambda: get_latencies(cache, ids, calls), P50)

    def enter_diskcache() -> Latencies:
        keys = [make_key(*each) for each in ids]
        directory = stack.enter_context(workspace.scratch())
        peer = stack.enter_context(fill_diskcache(directory, keys, paths[0]))
        return Latencies(lambda: diskcache_latencies(peer, keys, calls), P50)

    rounds.add(_HIT, enter_get)
    rounds.add(_OPEN, lambda: Latencies(lambda: open_latencies(paths, calls), P50))
    rounds.add(_DISKCACHE, enter_diskcache)
    rounds.run(workspace.counts.pace)


def check_hit(cache: BasebackupCache, each: TenantTimelineId, path: str) -> None:
    """Check that a hit has the bytes of a file.

    Raises:
        ValueError: it has not.
    """
    found = cache.get(*each, LSN)
    if found is None:
        raise ValueError(f"the cache has no archive of {each}")
    with found, open(path, "rb") as file:
        if found.read() != file.read():
            raise ValueError(f"a hit has other bytes than {path}")


def verify_all(cache: BasebackupCache, ids: Sequence[TenantTimelineId]) -> None:
    """Open each archive once: the first open verifies it."""
    get_latencies(cache, ids, Calls(len(ids), _WAIT_S))


@contextmanager
def fill_diskcache(directory: Path, keys: list[bytes], path: str) -> Iterator[Any]:
    """Open a diskcache that has the bytes of a file under every key, each in its own file.

    Raises:
        PeerMissingError: it is not installed.
    """
    diskcache = require_package("diskcache", "diskcache")
    with open(path, "rb") as file:
        archive = file.read()
    with diskcache.Cache(str(directory), disk_min_file_size=0) as peer:
        for key in keys:
            peer.set(key, archive)
        with peer.get(keys[0], read=True) as file:
            if file.read() != archive:
                raise ValueError("diskcache has other bytes")
        yield peer


@case(
    "get, p99 beside builds",
    Bar("get-p99-builds", _HIT_BUSY, _OPEN_BUSY, Sense.AT_MOST, 1.5),
    Bar("get-p99-builds-open", _HIT_BUSY, _OPEN_BESIDE, Sense.AT_MOST, 3.0),
    Bar("get-p99-builds-memory", _HIT_BUSY_MEMORY, _OPEN_BUSY, Sense.AT_MOST, 1.5),
)
def test_beside_builds(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A hit while two workers build, and bare opens beside builds and beside bare ISA-L."""
    inputs, calls = workspace.inputs, workspace.counts.calls
    data_dir = stack.enter_context(workspace.scratch()) / "cache"
    pipeline = stack.enter_context(Pipeline(data_dir, make_config(WORKERS)))
    lean = [pipeline.add_timeline(inputs.lean, PIECE_SIZE_BYTES) for _ in range(_BUSY_ENTRIES)]
    pipeline.prepare(*lean)
    ids = [TenantTimelineId(pipeline.tenant.tenant_id, each.timeline_id) for each in lean]
    paths = [Store(str(data_dir)).path_of(make_key(*each), LSN) for each in ids]
    check_hit(pipeline.cache, ids[0], paths[0])
    verify_all(pipeline.cache, ids)

    def send_files(writer: TarballWriter) -> None:
        send_pgdata_tarball(inputs.pgdata_dir, writer)

    def send_pieces(writer: TarballWriter) -> None:
        for start in range(0, len(inputs.full), PIECE_SIZE_BYTES):
            writer.write(memoryview(inputs.full)[start : start + PIECE_SIZE_BYTES])

    def hits(beside: Beside) -> Latencies:
        return Latencies(lambda: get_latencies(pipeline.cache, ids, calls), P99, beside)

    def opens(beside: Beside) -> Latencies:
        return Latencies(lambda: open_latencies(paths, calls), P99, beside)

    rounds.add(_HIT_BUSY, lambda: hits(lambda: building(pipeline, send_files)))
    rounds.add(_HIT_BUSY_MEMORY, lambda: hits(lambda: building(pipeline, send_pieces)))
    rounds.add(_OPEN_BESIDE, lambda: opens(lambda: building(pipeline, send_files)))
    rounds.add(_OPEN_BUSY, lambda: opens(lambda: compressing(inputs.full)))
    rounds.run(workspace.counts.pace)


@case("get, miss", Bar("get-miss", _MISS, _DICT, Sense.AT_MOST, 2.5))
def test_miss(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A miss, beside a dict look-up under a lock and a counter of Prometheus."""
    count = workspace.counts.calls.most

    def enter_get() -> Callable[[], float]:
        data_dir = workspace.many_entries(ENTRIES).data_dir
        cache = stack.enter_context(spawn_ready(data_dir, make_unready_host()))
        tenant_id, timeline_id = TenantId.generate(), TimelineId.generate()
        if cache.get(tenant_id, timeline_id, LSN) is not None:
            raise ValueError("a miss has found something")
        return lambda: _seconds_a_call(lambda: cache.get(tenant_id, timeline_id, LSN), count)

    def enter_dict() -> Callable[[], float]:
        look_up = dict_look_up([make_key(*each) for each in make_ids(ENTRIES)])
        return lambda: _seconds_a_call(look_up, count)

    rounds.add(_MISS, enter_get)
    rounds.add(_DICT, enter_dict)
    rounds.run(workspace.counts.pace)


def dict_look_up(keys: list[bytes]) -> Callable[[], bool | None]:
    """Return a failing look-up under a re-entrant lock, with one counter of Prometheus."""
    lock, held = threading.RLock(), dict.fromkeys(keys, True)
    misses = Counter("misses", "Failed look-ups.", registry=None)
    absent = make_key(TenantId.generate(), TimelineId.generate())

    def look_up() -> bool | None:
        with lock:
            found = held.get(absent)
        misses.inc()
        return found

    return look_up


def _seconds_a_call(call: Callable[[], object], count: int) -> float:
    started_s = time.perf_counter()
    for _ in itertools.repeat(None, count):
        call()
    return (time.perf_counter() - started_s) / count


@case(
    "get, p99 beside a clean-up",
    Bar("get-p99-cleanup", _HIT_CLEANUP, _HIT_IDLE, Sense.AT_MOST, 2.0),
)
def test_beside_cleanup(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A hit beside one clean-up step after the other, and alone."""
    counts = workspace.counts
    many = workspace.many_entries(counts.entries)
    ids = many.ids[:FEW_ENTRIES]
    cache = stack.enter_context(spawn_ready(many.data_dir, make_host(many.ids)))
    verify_all(cache, ids)
    busy = Latencies(lambda: get_latencies(cache, ids, counts.calls), P99, lambda: cleaning(cache))
    idle = Latencies(lambda: get_latencies(cache, ids, counts.calls), P99)
    rounds.add(_HIT_CLEANUP, lambda: busy)
    rounds.add(_HIT_IDLE, lambda: idle)
    rounds.run(counts.pace)
    assert len(cache.entries()) == counts.entries  # all were to stay
