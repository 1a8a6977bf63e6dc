"""`get`: hits and misses, alone, beside builds, beside a clean-up, among many entries."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import Counter

from bbcache import TenantId, TenantTimelineId, TimelineId
from bbcache.archive.deflate import PIECE_SIZE_BYTES
from bbcache.bench.bars import Bar, Sense
from bbcache.bench.contest import Contest, Figures
from bbcache.bench.entries import (
    LSN,
    make_config,
    make_host,
    make_places,
    make_unready_host,
    spawn_ready,
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
from bbcache.bench.pipeline import Pipeline
from bbcache.bench.rounds import timed_beside
from bbcache.bench.scene import FEW_ENTRIES
from bbcache.bench.treadmill import WORKERS, building, cleaning, compressing
from bbcache.postgres.pgdata.tarball import send_pgdata_tarball
from bbcache.storage.files import Store
from bbcache.storage.index import make_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from bbcache import BasebackupCache
    from bbcache.bench.rounds import Lineup
    from bbcache.bench.scene import Scene
    from bbcache.host import TarballWriter

ENTRIES: Final = 1_000
_BUSY_ENTRIES: Final = 50  # fewer than may wait in the queue
_WAIT_S: Final = 60.0

_HIT: Final = "bbcache get + close"
_OPEN: Final = "os.open + os.close"
_DISKCACHE: Final = "diskcache get(read=True) + close"
_HIT_BUSY: Final = "bbcache get + close, two workers building full of a PGDATA"
_HIT_BUSY_MEMORY: Final = "bbcache get + close, two workers building full from memory"
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
            cache = stack.enter_context(spawn_ready(data_dir, make_unready_host()))
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
    return _figures(latencies)


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


def _beside_builds(scene: Scene, lineup: Lineup) -> Figures:
    counts, inputs = scene.counts, scene.inputs
    how_many = (counts.calls, counts.latency_s)
    with ExitStack() as stack:
        data_dir = stack.enter_context(scene.scratch()) / "cache"
        pipeline = stack.enter_context(Pipeline(data_dir, make_config(WORKERS)))
        lean = [pipeline.add_timeline(inputs.lean, PIECE_SIZE_BYTES) for _ in range(_BUSY_ENTRIES)]
        pipeline.prepare(*lean)
        tenant_id = pipeline.tenant.tenant_id
        places = [TenantTimelineId(tenant_id, timeline.timeline_id) for timeline in lean]
        paths = [Store(str(data_dir)).path_of(make_key(*place), LSN) for place in places]
        check_hit(pipeline.cache, places[0], paths[0])
        get_latencies(pipeline.cache, places, _BUSY_ENTRIES, _WAIT_S)  # the first check
        latencies = {
            name: Latencies(lambda: get_latencies(pipeline.cache, places, *how_many), P99)
            for name in (_HIT_BUSY, _HIT_BUSY_MEMORY)
        }
        latencies[_OPEN_BUSY] = Latencies(lambda: open_latencies(paths, *how_many), P99)

        def send_files(writer: TarballWriter) -> None:
            send_pgdata_tarball(inputs.pgdata_dir, writer)

        def send_pieces(writer: TarballWriter) -> None:
            for start in range(0, len(inputs.full), PIECE_SIZE_BYTES):
                writer.write(memoryview(inputs.full)[start : start + PIECE_SIZE_BYTES])

        beside = {
            _HIT_BUSY: lambda: building(pipeline, send_files),
            _HIT_BUSY_MEMORY: lambda: building(pipeline, send_pieces),
            _OPEN_BUSY: lambda: compressing(inputs.full),
        }
        for name, work in beside.items():
            lineup.add(name, lambda name=name, work=work: timed_beside(work, latencies[name].round))  # type: ignore[misc]
        lineup.race(counts.pace)
    return _figures(latencies)


def _figures(latencies: Mapping[str, Latencies]) -> Figures:
    taken = {name: each.distribution() for name, each in latencies.items() if each.count}
    return Figures(distributions=taken)


def _miss(scene: Scene, lineup: Lineup) -> Figures:
    calls = scene.counts.calls
    with ExitStack() as stack:

        def enter_get() -> Callable[[], float]:
            crowd = scene.crowd(ENTRIES)
            cache = stack.enter_context(spawn_ready(crowd.data_dir, make_unready_host()))
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
        lineup.add(_HIT_CLEANUP, lambda: timed_beside(lambda: cleaning(cache), busy.round))
        lineup.add(_HIT_IDLE, lambda: idle.round)
        lineup.race(counts.pace)
        if len(cache.entries()) != counts.entries:
            raise ValueError("a clean-up has removed what was to stay")
    return _figures({_HIT_CLEANUP: busy, _HIT_IDLE: idle})


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
        (
            Bar("get-p99-builds", _HIT_BUSY, _OPEN_BUSY, Sense.AT_MOST, 1.5),
            Bar("get-p99-builds-memory", _HIT_BUSY_MEMORY, _OPEN_BUSY, Sense.AT_MOST, 1.5),
        ),
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
