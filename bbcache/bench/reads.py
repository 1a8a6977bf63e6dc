"""`get`: hits and misses, alone, beside builds, beside a clean-up, among many entries."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import Counter

from bbcache import TenantId, TenantTimelineId, TimelineId
from bbcache.bench.bars import Bar, Sense
from bbcache.bench.contest import Contest, Figures
from bbcache.bench.entries import (
    LSN,
    make_config,
    make_host,
    make_places,
    spawn_ready,
    wait_idle,
    write_entries,
)
from bbcache.bench.latency import (
    P50,
    P99,
    Latencies,
    diskcache_latencies,
    get_latencies,
    open_latencies,
)
from bbcache.bench.peers import require_package
from bbcache.bench.pipeline import Pipeline, isal_pieces
from bbcache.bench.rounds import timed_beside
from bbcache.bench.scene import FEW_ENTRIES
from bbcache.index import make_key
from bbcache.store import Store
from bbcache.testing import MemoryHost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache import BasebackupCache
    from bbcache.bench.rounds import Lineup
    from bbcache.bench.scene import Scene
    from bbcache.host import TarballWriter
    from bbcache.ids import Lsn

ENTRIES: Final = 1_000
_BUSY_ENTRIES: Final = 100
_WORKERS: Final = 2
_WAIT_S: Final = 60.0

_HIT: Final = "bbcache get + close"
_OPEN: Final = "os.open + os.close"
_DISKCACHE: Final = "diskcache get(read=True) + close"
_HIT_BUSY: Final = "bbcache get + close, two workers building full"
_OPEN_BUSY: Final = "os.open + os.close, two ISA-L compressors"
_MISS: Final = "bbcache get, no entry"
_DICT: Final = "dict under RLock + counter"
_HIT_CLEANUP: Final = "bbcache get + close, clean-up running"
_HIT_IDLE: Final = "bbcache get + close, nothing running"


def _hit(scene: Scene, lineup: Lineup) -> Figures:
    counts = scene.counts
    places = make_places(ENTRIES)
    latencies: dict[str, Latencies] = {}
    with ExitStack() as stack:
        data_dir = stack.enter_context(scene.scratch())
        paths = write_entries(data_dir, places, scene.inputs.lean)
        how_many = (counts.calls, counts.latency_s)

        def enter_get() -> Callable[[], float]:
            cache = stack.enter_context(spawn_ready(data_dir, MemoryHost()))
            check_hit(cache, places[0], paths[0])
            get_latencies(cache, places, ENTRIES, _WAIT_S)  # the check at the first open
            return note(_HIT, Latencies(lambda: get_latencies(cache, places, *how_many), P50))

        def enter_open() -> Callable[[], float]:
            return note(_OPEN, Latencies(lambda: open_latencies(paths, *how_many), P50))

        def enter_diskcache() -> Callable[[], float]:
            keys = [make_key(*place) for place in places]
            directory = stack.enter_context(scene.scratch())
            peer = stack.enter_context(fill_diskcache(directory, keys, paths[0]))
            return note(
                _DISKCACHE, Latencies(lambda: diskcache_latencies(peer, keys, *how_many), P50)
            )

        def note(name: str, taken: Latencies) -> Callable[[], float]:
            latencies[name] = taken
            return taken.round

        lineup.add(_HIT, enter_get)
        lineup.add(_OPEN, enter_open)
        lineup.add(_DISKCACHE, enter_diskcache)
        lineup.race(counts.pace)
    return Figures(distributions={name: each.distribution() for name, each in latencies.items()})


def check_hit(cache: BasebackupCache, place: TenantTimelineId, path: str) -> None:
    """Check that a hit is the bytes of a file.

    Raises:
        ValueError: it is not.
    """
    found = cache.get(*place, LSN)
    if found is None:
        raise ValueError(f"the cache has no archive of {place}")
    with found, open(path, "rb") as file:
        if found.read() != file.read():
            raise ValueError(f"a hit is not what is in {path}")


@contextmanager
def fill_diskcache(directory: Path, keys: list[bytes], path: str) -> Iterator[Any]:
    """A diskcache with the bytes of a file under every key, each in a file of its own.

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


class Treadmill:
    """Two workers that build *full* of a PGDATA, one prepare after the other.

    Args:
        directory: where the cache is, with lean archives in it that can be read meanwhile.
        pgdata_dir: what is prepared.
    """

    def __init__(self, directory: Path, pgdata_dir: Path) -> None:
        self.pipeline = Pipeline(directory, make_config(_WORKERS))
        self._pgdata_dir = pgdata_dir
        self._is_stopping = False
        self._entered = threading.Semaphore(0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Both workers are building in the block; after it nothing is, or is kept."""
        self._is_stopping = False
        kept = dict(self.pipeline.tenant.timelines)
        for _ in range(_WORKERS):
            self._add()
        try:
            for _ in range(_WORKERS):
                if not self._entered.acquire(timeout=_WAIT_S):
                    raise TimeoutError(f"no prepare has begun in {_WAIT_S:g} s")
            yield
        finally:
            self._is_stopping = True
            wait_idle(self.pipeline.cache)
            self.pipeline.tenant.timelines = kept
            self.pipeline.cache.run_cleanup()
            while self._entered.acquire(blocking=False):
                pass

    def _add(self) -> None:
        timeline = self.pipeline.add_pgdata_timeline(self._pgdata_dir)
        send = timeline.on_send
        assert send is not None

        def send_and_go_on(writer: TarballWriter, lsn: Lsn) -> None:
            self._entered.release()
            if not self._is_stopping:
                self._add()  # the next one waits in the queue while this one is built
            send(writer, lsn)

        timeline.on_send = send_and_go_on
        tenant_shard_id = self.pipeline.tenant.tenant_shard_id
        self.pipeline.cache.send_prepare(tenant_shard_id, timeline.timeline_id, LSN)


def _beside_builds(scene: Scene, lineup: Lineup) -> Figures:
    counts, inputs = scene.counts, scene.inputs
    with ExitStack() as stack:
        data_dir = stack.enter_context(scene.scratch()) / "cache"
        mill = Treadmill(data_dir, inputs.pgdata_dir)
        pipeline = stack.enter_context(mill.pipeline)
        lean = [pipeline.add_timeline(inputs.lean, 1 << 20) for _ in range(_BUSY_ENTRIES)]
        for timeline in lean:
            pipeline.prepare(timeline)
        tenant_id = pipeline.tenant.tenant_id
        places = [TenantTimelineId(tenant_id, timeline.timeline_id) for timeline in lean]
        paths = [Store(str(data_dir)).path_of(make_key(*place), LSN) for place in places]
        check_hit(pipeline.cache, places[0], paths[0])
        get_latencies(pipeline.cache, places, _BUSY_ENTRIES, _WAIT_S)  # the first check
        how_many = (counts.calls, counts.latency_s)
        hits = Latencies(lambda: get_latencies(pipeline.cache, places, *how_many), P99)
        opens = Latencies(lambda: open_latencies(paths, *how_many), P99)
        lineup.add(_HIT_BUSY, lambda: timed_beside(mill.running, hits.round))
        lineup.add(_OPEN_BUSY, lambda: timed_beside(lambda: _compressing(inputs.full), opens.round))
        lineup.race(counts.pace)
    return Figures(distributions={_HIT_BUSY: hits.distribution(), _OPEN_BUSY: opens.distribution()})


@contextmanager
def _compressing(tarball: bytes) -> Iterator[None]:
    """Two threads compress in the block, and do nothing else."""
    is_stopping = threading.Event()
    barrier = threading.Barrier(_WORKERS + 1)

    def compress() -> None:
        barrier.wait(_WAIT_S)
        while not is_stopping.is_set():
            for _ in isal_pieces(tarball):
                if is_stopping.is_set():
                    break

    threads = [threading.Thread(target=compress, name="bare-isal") for _ in range(_WORKERS)]
    for thread in threads:
        thread.start()
    try:
        barrier.wait(_WAIT_S)
        yield
    finally:
        is_stopping.set()
        for thread in threads:
            thread.join()


def _miss(scene: Scene, lineup: Lineup) -> Figures:
    calls = scene.counts.calls
    with ExitStack() as stack:

        def enter_get() -> Callable[[], float]:
            crowd = scene.crowd(ENTRIES)
            cache = stack.enter_context(spawn_ready(crowd.data_dir, MemoryHost()))
            tenant_id, timeline_id = TenantId.generate(), TimelineId.generate()
            if cache.get(tenant_id, timeline_id, LSN) is not None:
                raise ValueError("a miss has found something")
            return lambda: _seconds_a_call(lambda: cache.get(tenant_id, timeline_id, LSN), calls)

        def enter_dict() -> Callable[[], float]:
            look_up = dict_look_up([make_key(*place) for place in make_places(ENTRIES)])
            return lambda: _seconds_a_call(look_up, calls)

        lineup.add(_MISS, enter_get)
        lineup.add(_DICT, enter_dict)
        lineup.race(scene.counts.pace)
    return Figures()


def dict_look_up(keys: list[bytes]) -> Callable[[], bool | None]:
    """A look-up in vain under a re-entrant lock, and one counter of Prometheus."""
    lock, held = threading.RLock(), dict.fromkeys(keys, True)
    misses = Counter("misses", "Look-ups in vain.", registry=None)
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


def _beside_cleanup(scene: Scene, lineup: Lineup) -> Figures:
    counts = scene.counts
    crowd = scene.crowd(counts.entries)
    places, how_many = crowd.places[:FEW_ENTRIES], (counts.calls, counts.latency_s)
    with spawn_ready(crowd.data_dir, make_host(crowd.places)) as cache:
        get_latencies(cache, places, FEW_ENTRIES, _WAIT_S)  # the check at the first open
        busy = Latencies(lambda: get_latencies(cache, places, *how_many), P99)
        idle = Latencies(lambda: get_latencies(cache, places, *how_many), P99)
        lineup.add(_HIT_CLEANUP, lambda: timed_beside(lambda: _cleaning(cache), busy.round))
        lineup.add(_HIT_IDLE, lambda: idle.round)
        lineup.race(counts.pace)
        if len(cache.entries()) != counts.entries:
            raise ValueError("a clean-up has removed what was to stay")
    return Figures(
        distributions={_HIT_CLEANUP: busy.distribution(), _HIT_IDLE: idle.distribution()}
    )


@contextmanager
def _cleaning(cache: BasebackupCache) -> Iterator[None]:
    """One clean-up step after the other is run in the block."""
    is_stopping, has_begun = threading.Event(), threading.Event()

    def clean() -> None:
        has_begun.set()
        while not is_stopping.is_set():
            cache.run_cleanup()

    thread = threading.Thread(target=clean, name="bench-cleanup")
    thread.start()
    try:
        if not has_begun.wait(_WAIT_S):
            raise TimeoutError(f"no clean-up has begun in {_WAIT_S:g} s")
        yield
    finally:
        is_stopping.set()
        thread.join()


CONTESTS: Final = (
    Contest(
        "get, hit",
        (
            Bar("get-hit", _HIT, _OPEN, Sense.AT_MOST, 3.0),
            Bar("get-hit-diskcache", _HIT, _DISKCACHE, Sense.AT_LEAST, 1.5),
        ),
        _hit,
    ),
    Contest(
        "get, p99 beside builds",
        (Bar("get-p99-builds", _HIT_BUSY, _OPEN_BUSY, Sense.AT_MOST, 1.5),),
        _beside_builds,
    ),
    Contest(
        "get, miss",
        (Bar("get-miss", _MISS, _DICT, Sense.AT_MOST, 2.5),),
        _miss,
    ),
    Contest(
        "get, p99 beside a clean-up",
        (Bar("get-p99-cleanup", _HIT_CLEANUP, _HIT_IDLE, Sense.AT_MOST, 2.0),),
        _beside_cleanup,
    ),
)
