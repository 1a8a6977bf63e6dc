"""The second tier: what it costs a cache when it works, hangs or pauses, and what a fetch saves."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from isal import isal_zlib
from prometheus_client import CollectorRegistry

from bbcache import TenantTimelineId, TierConfig
from bbcache.storage.files import Store
from bbcache.storage.index import make_key
from benchmarks.bars import Bar, Sense, case
from benchmarks.entries import LSN
from benchmarks.latency import P99, Latencies, get_latencies
from benchmarks.peers import require_package
from benchmarks.pipeline import Pipeline
from benchmarks.rounds import timed
from benchmarks.test_get import check_hit, verify_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import ExitStack
    from pathlib import Path

    from bbcache.testing import MemoryTimeline
    from bbcache.tier import ObjectTier
    from benchmarks.rounds import Rounds
    from benchmarks.workspace import Workspace

    Round = Callable[[], float]

_ENTRIES: Final = 50
_BURST: Final = 40
_PIECE_SIZE_BYTES: Final = 1 << 20
_GZIP: Final = 31
_WAIT_S: Final = 60.0
_SPARE_S: Final = 0.01
_FIRST_BYTE_S: Final = 0.25
_CREDENTIALS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

_HIT_HANGING: Final = "bbcache get + close, fetches from a tier hang"
_HIT_ALONE: Final = "bbcache get + close, no tier"
_FILL_PAUSED: Final = "bbcache get_or_prepare of lean, the tier pauses"
_FILL_ALONE: Final = "bbcache get_or_prepare of lean, no tier"
_FETCH: Final = "bbcache get_or_prepare of full, fetched from a directory"
_BUILD: Final = "bbcache get_or_prepare of full, built from the files of a PGDATA"
_LEAN_FETCH: Final = "bbcache get_or_prepare of lean, fetched from a directory"
_LEAN_READ: Final = "obstore, a read of the object of lean, and 10 ms"
_MISS_HANGING: Final = "bbcache get_or_prepare of lean, the tier hangs"
_MISS_WAIT: Final = "a pause of first_byte_timeout, then bbcache get_or_prepare of lean, no tier"
_BURST_TIER: Final = "bbcache, a burst of prepares of lean, uploaded to a directory"
_BURST_ALONE: Final = "bbcache, a burst of prepares of lean, no tier"
_FULL_TIER: Final = "bbcache, four prepares of full in turn, uploaded to a directory"
_FULL_ALONE: Final = "bbcache, four prepares of full in turn, no tier"


@case("get, p99 beside a tier", Bar("tier-get-p99", _HIT_HANGING, _HIT_ALONE, Sense.AT_MOST, 1.2))
def test_beside_a_hanging_tier(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A hit while fetches of other timelines hang, and without a tier."""
    calls = workspace.counts.calls

    def hits(pipeline: Pipeline, data_dir: Path) -> list[TenantTimelineId]:
        lean = [
            pipeline.add_timeline(workspace.inputs.lean, _PIECE_SIZE_BYTES) for _ in range(_ENTRIES)
        ]
        pipeline.prepare(*lean)
        ids = [TenantTimelineId(pipeline.tenant.tenant_id, each.timeline_id) for each in lean]
        check_hit(pipeline.cache, ids[0], Store(str(data_dir)).path_of(make_key(*ids[0]), LSN))
        verify_all(pipeline.cache, ids)
        return ids

    def enter(tier: ObjectTier | None) -> Latencies:
        data_dir = stack.enter_context(workspace.scratch()) / "cache"
        pipeline = stack.enter_context(Pipeline(data_dir, tier=tier))
        ids = hits(pipeline, data_dir)
        if tier is None:
            return Latencies(lambda: get_latencies(pipeline.cache, ids, calls), P99)
        stack.callback(listener.close)  # before the cache, so that no fetch hangs any more
        return Latencies(
            lambda: get_latencies(pipeline.cache, ids, calls), P99, lambda: _warming(pipeline)
        )

    listener = stack.enter_context(_silent_server())
    rounds.add(_HIT_HANGING, lambda: enter(_hanging_tier(workspace, stack, listener)))
    rounds.add(_HIT_ALONE, lambda: enter(None))
    rounds.run(workspace.counts.pace)


@case("fill, a tier pauses", Bar("tier-fill-open", _FILL_PAUSED, _FILL_ALONE, Sense.AT_MOST, 1.2))
def test_fill_beside_a_paused_tier(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A fill of lean while the breaker of the tier is open, and without a tier."""

    def enter(tier: ObjectTier | None) -> Round:
        pipeline = stack.enter_context(
            Pipeline(stack.enter_context(workspace.scratch()) / "cache", tier=tier)
        )
        add = partial(pipeline.add_timeline, workspace.inputs.lean, _PIECE_SIZE_BYTES)
        return timed(partial(_fill, pipeline, "built"), lambda: [add()])

    rounds.add(_FILL_PAUSED, lambda: enter(_paused_tier(workspace, stack)))
    rounds.add(_FILL_ALONE, lambda: enter(None))
    rounds.run(workspace.counts.pace)


@case("fetch, full", Bar("tier-fetch", _FETCH, _BUILD, Sense.AT_MOST, 0.5))
def test_fetch(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """The archive of a whole PGDATA by a fetch, and by a build."""
    pgdata_dir = workspace.inputs.pgdata_dir

    def enter_fetch() -> Round:
        source, tier = _uploading_node(workspace, stack)
        timeline = source.add_pgdata_timeline(pgdata_dir)
        _upload(source, tier, timeline, workspace.inputs.full)
        return _fetches(workspace, stack, source, tier, timeline)

    def enter_build() -> Round:
        node = stack.enter_context(Pipeline(stack.enter_context(workspace.scratch()) / "cache"))
        return timed(partial(_fill, node, "built"), lambda: [node.add_pgdata_timeline(pgdata_dir)])

    rounds.add(_FETCH, enter_fetch)
    rounds.add(_BUILD, enter_build)
    rounds.run(workspace.counts.pace)


@case("fetch, lean", Bar("tier-fetch-lean", _LEAN_FETCH, _LEAN_READ, Sense.AT_MOST, 1.0))
def test_lean_fetch(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A small archive by a fetch, and a bare read of its object with 10 ms to spare."""

    def enter_fetch() -> Round:
        source, tier = _uploading_node(workspace, stack)
        timeline = source.add_timeline(workspace.inputs.lean, _PIECE_SIZE_BYTES)
        _upload(source, tier, timeline, workspace.inputs.lean)
        return _fetches(workspace, stack, source, tier, timeline)

    def enter_read() -> Round:
        source, tier = _uploading_node(workspace, stack)
        timeline = source.add_timeline(workspace.inputs.lean, _PIECE_SIZE_BYTES)
        _upload(source, tier, timeline, workspace.inputs.lean)
        obstore = require_package("obstore", "obstore")
        store = require_package("obstore.store", "obstore").from_url(tier.config.url)
        (name,) = [each["path"] for page in obstore.list(store) for each in page]

        def read() -> None:
            obstore.get(store, name).bytes()
            time.sleep(_SPARE_S)

        return timed(read)

    rounds.add(_LEAN_FETCH, enter_fetch)
    rounds.add(_LEAN_READ, enter_read)
    rounds.run(workspace.counts.pace)


@case("miss, a tier hangs", Bar("tier-first-miss", _MISS_HANGING, _MISS_WAIT, Sense.AT_MOST, 1.05))
def test_first_miss(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A fill while the tier does not answer, and a pause of first_byte_timeout with a build."""

    def fill(node: Pipeline, timeline: MemoryTimeline, pause_s: float) -> None:
        time.sleep(pause_s)
        _fill(node, "built", timeline)

    def enter(tier: Callable[[], ObjectTier | None], pause_s: float) -> Round:
        def again() -> list[object]:
            """Return a node that has never asked its tier: after three failures it pauses."""
            node = stack.enter_context(
                Pipeline(stack.enter_context(workspace.scratch()) / "cache", tier=tier())
            )
            return [node, node.add_timeline(workspace.inputs.lean, _PIECE_SIZE_BYTES), pause_s]

        return timed(fill, again)

    listener = stack.enter_context(_silent_server())
    times = {"first_byte_timeout": _FIRST_BYTE_S, "fetch_timeout": _WAIT_S}
    rounds.add(
        _MISS_HANGING,
        lambda: enter(lambda: _silent_tier(workspace, stack, listener, **times), 0.0),
    )
    rounds.add(_MISS_WAIT, lambda: enter(lambda: None, _FIRST_BYTE_S))
    rounds.run(workspace.counts.pace)


@case("prepare, burst", Bar("tier-prepare-lean", _BURST_TIER, _BURST_ALONE, Sense.AT_MOST, 1.5))
def test_burst(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """Many prepares of lean, until all are published: with uploads, and without a tier."""
    _prepare_beside(workspace, rounds, stack, (_BURST_TIER, _BURST_ALONE), is_full=False)


@case("prepare, in turn", Bar("tier-prepare-full", _FULL_TIER, _FULL_ALONE, Sense.AT_MOST, 1.5))
def test_in_turn(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """One prepare of full after the other, beside the upload of the last one."""
    _prepare_beside(workspace, rounds, stack, (_FULL_TIER, _FULL_ALONE), is_full=True)


def _prepare_beside(
    workspace: Workspace,
    rounds: Rounds,
    stack: ExitStack,
    names: tuple[str, str],
    *,
    is_full: bool,
) -> None:
    def enter(tier: ObjectTier | None) -> Round:
        pipeline = stack.enter_context(
            Pipeline(stack.enter_context(workspace.scratch()) / "cache", tier=tier)
        )

        def add() -> list[MemoryTimeline]:
            if tier is not None and not tier.wait_idle(_WAIT_S):
                raise TimeoutError("the uploads do not end")
            if is_full:
                pgdata_dir = workspace.inputs.pgdata_dir
                return [pipeline.add_pgdata_timeline(pgdata_dir) for _ in range(4)]
            lean = workspace.inputs.lean
            return [pipeline.add_timeline(lean, _PIECE_SIZE_BYTES) for _ in range(_BURST)]

        def prepare(*timelines: MemoryTimeline) -> None:
            if not is_full:
                pipeline.prepare(*timelines)
                return
            for timeline in timelines:
                pipeline.prepare(timeline)

        return timed(prepare, add)

    rounds.add(names[0], lambda: enter(_tier(workspace, stack)))
    rounds.add(names[1], lambda: enter(None))
    rounds.run(workspace.counts.pace)


def _fill(pipeline: Pipeline, source: str, timeline: MemoryTimeline) -> None:
    """Fill one timeline; raises ValueError if the archive came from elsewhere."""
    shard_id = pipeline.tenant.tenant_shard_id
    with pipeline.cache.get_or_prepare(shard_id, timeline.timeline_id, LSN, _WAIT_S) as file:
        if file.source != source:
            raise ValueError(f"the archive was {file.source}, not {source}")


def _uploading_node(workspace: Workspace, stack: ExitStack) -> tuple[Pipeline, ObjectTier]:
    """A node that uploads to a directory, and its tier."""
    tier = _tier(workspace, stack)
    data_dir = stack.enter_context(workspace.scratch()) / "cache"
    return stack.enter_context(Pipeline(data_dir, tier=tier)), tier


def _upload(source: Pipeline, tier: ObjectTier, timeline: MemoryTimeline, tarball: bytes) -> None:
    """Prepare a timeline, and wait until its archive, which must hold `tarball`, is stored."""
    source.prepare(timeline)
    if not tier.wait_idle(_WAIT_S):
        raise TimeoutError("the upload does not end")
    if isal_zlib.decompress(source.read(timeline), _GZIP) != tarball:
        raise ValueError("the archive does not hold the input")


def _fetches(
    workspace: Workspace,
    stack: ExitStack,
    source: Pipeline,
    tier: ObjectTier,
    timeline: MemoryTimeline,
) -> Round:
    """Time the fetch of a timeline by a node that has the tenant, and an empty directory."""

    def again() -> list[object]:
        node = stack.enter_context(
            Pipeline(
                stack.enter_context(workspace.scratch()) / "cache",
                tier=_tier(workspace, stack, tier),
                like=source,
            )
        )
        return [node, "fetched", timeline]

    return timed(_fill, again)


def _config(workspace: Workspace, stack: ExitStack, **settings: object) -> TierConfig:
    directory = stack.enter_context(workspace.scratch())
    key, store = directory / "key", directory / "store"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(32))
    store.mkdir()
    values: dict[str, object] = {"url": store.as_uri(), "key_files": (str(key),), **settings}
    return TierConfig(**values)  # type: ignore[arg-type]


def _tier(workspace: Workspace, stack: ExitStack, like: ObjectTier | None = None) -> ObjectTier:
    """A tier on a directory of its own, or on that of another tier."""
    config = _config(workspace, stack, fetch_timeout=_WAIT_S) if like is None else like.config
    return _object_tier()(config, CollectorRegistry())


def _object_tier() -> type[ObjectTier]:
    require_package("obstore", "obstore")
    from bbcache.tier import ObjectTier  # noqa: PLC0415 - a peer may be missing

    return ObjectTier


def _hanging_tier(workspace: Workspace, stack: ExitStack, listener: socket.socket) -> ObjectTier:
    """A tier whose server takes connections and never answers; its breaker stays closed."""
    times = {"first_byte_timeout": _WAIT_S, "fetch_timeout": _WAIT_S}
    return _silent_tier(workspace, stack, listener, **times)


def _paused_tier(workspace: Workspace, stack: ExitStack) -> ObjectTier:
    """A tier that has found out that its server never answers."""
    listener = stack.enter_context(_silent_server())
    times = {"first_byte_timeout": 0.05, "fetch_timeout": 0.05}
    tier = _silent_tier(workspace, stack, listener, **times)
    if not tier.wait_checked(_WAIT_S) or tier.problem is None:
        raise TimeoutError("the tier has not noticed that the server does not answer")
    return tier


def _silent_server() -> socket.socket:
    """A server whose connections no program accepts."""
    return socket.create_server(("127.0.0.1", 0), backlog=1000)


def _silent_tier(
    workspace: Workspace, stack: ExitStack, listener: socket.socket, **settings: object
) -> ObjectTier:
    endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
    stack.enter_context(_credentials())
    config = _config(
        workspace,
        stack,
        url="s3://bucket",
        mode="read-only",
        options={"endpoint": endpoint, "region": "local", "allow_http": True},
        **settings,
    )
    return _object_tier()(config, CollectorRegistry())


@contextmanager
def _credentials() -> Iterator[None]:
    """Set explicit credentials, so that no metadata service is asked for them."""
    before = {name: os.environ.get(name) for name in _CREDENTIALS}
    os.environ.update(dict.fromkeys(_CREDENTIALS, "benchmark"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _warming(pipeline: Pipeline) -> Iterator[None]:
    """Ask the tier for other timelines during the block, several at once."""
    is_over = threading.Event()

    def warm() -> None:
        while not is_over.is_set():
            timeline = pipeline.tenant.add_timeline(LSN)
            pipeline.cache.send_warm(pipeline.tenant.tenant_shard_id, timeline.timeline_id, LSN)
            time.sleep(0.005)

    thread = threading.Thread(target=warm)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
