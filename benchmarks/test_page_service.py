"""The page service beside nginx and beside crowds of clients, over kept connections."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from prometheus_client import CollectorRegistry

from bbcache.page_service import Address, CacheSource, PageService, PageServiceConfig
from benchmarks import greedy_clients, slow_clients, verifying_client
from benchmarks.bars import Bar, Sense, case
from benchmarks.entries import make_host, make_ids, spawn_ready, write_entries
from benchmarks.exchanges import Exchange, http_server, page_server
from benchmarks.latency import P50, P99, Calls, Latencies
from benchmarks.nginx import nginx_process
from benchmarks.rounds import timed
from benchmarks.service_process import allow_many_descriptors, child, service_process
from benchmarks.traced_memory import traced_growth
from benchmarks.workspace import MEMORY_PACE

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager, ExitStack

    from bbcache import TenantTimelineId
    from benchmarks.exchanges import Server
    from benchmarks.rounds import Rounds
    from benchmarks.workspace import Workspace

    Serve = Callable[["Archives"], AbstractContextManager[Server]]

_CONNECTIONS: Final = 16
_BIG_SIZE_BYTES: Final = 200 * 1000 * 1000
_ROUND_S: Final = 2  # of throughput, for each second of latencies

_SERVICE: Final = f"page service, lean archive, {_CONNECTIONS} connections"
_NGINX: Final = f"nginx, lean archive, {_CONNECTIONS} connections"
_SERVICE_BIG: Final = "page service, archive of 200 MB"
_NGINX_BIG: Final = "nginx, archive of 200 MB"
_SERVICE_FIRST: Final = "page service, request to first byte of a lean hit"
_NGINX_FIRST: Final = "nginx, request to first byte of a lean archive"

_IDLE_COUNT: Final = 2_000
_SLOW_COUNT: Final = 200
_MOST_CONNECTIONS: Final = 3_000
_GOOD: Final = "page service, p99 of a good client"
_ALONE: Final = f"{_GOOD} alone"
_BESIDE_IDLE: Final = f"{_GOOD} beside {_IDLE_COUNT:,} idle connections"
_BESIDE_SLOW: Final = f"{_GOOD} beside {_IDLE_COUNT:,} idle and {_SLOW_COUNT} slow connections"
_GREEDY_COUNT: Final = 8
_GOOD_MEDIAN: Final = "page service, median of a good client"
_ALONE_MEDIAN: Final = f"{_GOOD_MEDIAN} alone"
_BESIDE_SYNC: Final = f"{_GOOD_MEDIAN} beside {_GREEDY_COUNT} that pipeline Sync"
_BESIDE_PARSE: Final = f"{_GOOD_MEDIAN} beside {_GREEDY_COUNT} that pipeline Parse"
_VERIFIED_SIZE_BYTES: Final = 1000 * 1000 * 1000
_ALONE_VERIFIED: Final = f"{_GOOD} alone, each read verified"
_BESIDE_VERIFIED: Final = f"{_GOOD} beside a verification of 1 GB"
_MEMORY: Final = "page service, memory of an idle connection"
_KIB: Final = 1 << 10


class Archives(NamedTuple):
    """A directory of a cache, and its archives.

    Attributes:
        directory: for the files of the servers.
        data_dir: the cache's directory.
        ids: the timelines.
        paths: their files.
    """

    directory: Path
    data_dir: Path
    ids: Sequence[TenantTimelineId]
    paths: Sequence[str]

    def contents(self) -> list[bytes]:
        """The bytes of each archive."""
        return [Path(path).read_bytes() for path in self.paths]


@contextmanager
def written(workspace: Workspace, tarball: bytes, count: int) -> Iterator[Archives]:
    """A directory with archives of one tarball, removed after the block."""
    with workspace.scratch() as directory:
        data_dir = directory / "cache"
        data_dir.mkdir(mode=0o700)
        ids = make_ids(count)
        yield Archives(directory, data_dir, ids, write_entries(data_dir, ids, tarball))


@contextmanager
def served(archives: Archives, most_connections: int = _CONNECTIONS) -> Iterator[Server]:
    """The page service over them, in a process of its own."""
    log_path = archives.directory / "service.log"
    with service_process(archives.data_dir, len(archives.ids), most_connections, log_path) as port:
        yield page_server(port, archives.ids)


@contextmanager
def _served_by_nginx(archives: Archives) -> Iterator[Server]:
    directory = archives.directory / "nginx"
    directory.mkdir()
    with nginx_process(archives.data_dir, directory) as port:
        yield http_server(port, [os.path.basename(path) for path in archives.paths])


def connected(
    stack: ExitStack, server: Server, archives: Archives, connection_count: int
) -> Exchange:
    """Connections whose answers are checked now, and once more in the end."""
    exchange = stack.enter_context(Exchange(server, connection_count))
    contents = archives.contents()
    exchange.check(contents)
    stack.callback(exchange.check, contents)
    return exchange


def _beside_nginx(
    workspace: Workspace,
    rounds: Rounds,
    stack: ExitStack,
    archives: Archives,
    names: tuple[str, str],
    connection_count: int,
    round_of: Callable[[Exchange], Callable[[], float]],
) -> None:
    """Run the page service and nginx, each with the round that `round_of` returns."""
    for name, serve in zip(names, (served, _served_by_nginx), strict=True):

        def enter(serve: Serve = serve) -> Callable[[], float]:
            server = stack.enter_context(serve(archives))
            return round_of(connected(stack, server, archives, connection_count))

        rounds.add(name, enter)
    rounds.run(workspace.counts.pace)


@case(
    "page service, lean archives",
    Bar("service-lean", _SERVICE, _NGINX, Sense.AT_LEAST, 0.15),
)
def test_lean(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """Seconds an archive over many connections."""
    round_s = _ROUND_S * workspace.counts.calls.budget_s
    archives = stack.enter_context(written(workspace, workspace.inputs.lean, _CONNECTIONS))
    _beside_nginx(
        workspace,
        rounds,
        stack,
        archives,
        (_SERVICE, _NGINX),
        _CONNECTIONS,
        lambda exchange: lambda: exchange.seconds_a_request(round_s),
    )


@case("page service, 200 MB", Bar("service-big", _SERVICE_BIG, _NGINX_BIG, Sense.AT_LEAST, 0.7))
def test_big(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """One big archive."""
    size_bytes = _BIG_SIZE_BYTES // workspace.counts.crowd_divisor
    archives = stack.enter_context(written(workspace, os.urandom(size_bytes), 1))
    names = (_SERVICE_BIG, _NGINX_BIG)
    one = Calls(1, 0)
    _beside_nginx(
        workspace,
        rounds,
        stack,
        archives,
        names,
        1,
        lambda exchange: timed(lambda: exchange.latencies(one)),
    )


@case(
    "page service, first byte",
    Bar("service-first-byte", _SERVICE_FIRST, _NGINX_FIRST, Sense.AT_MOST, 3.0),
)
def test_first_byte(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """From a request to the first byte of a lean archive; the median of the requests."""
    calls = workspace.counts.calls
    archives = stack.enter_context(written(workspace, workspace.inputs.lean, 1))
    _beside_nginx(
        workspace,
        rounds,
        stack,
        archives,
        (_SERVICE_FIRST, _NGINX_FIRST),
        1,
        lambda exchange: Latencies(lambda: exchange.first_byte_latencies(calls), P50),
    )


@case(
    "page service, p99 beside a crowd",
    Bar("service-p99-idle", _BESIDE_IDLE, _ALONE, Sense.AT_MOST, 2.0),
    Bar("service-p99-slow", _BESIDE_SLOW, _ALONE, Sense.AT_MOST, 2.0),
)
def test_crowd(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A good client alone, beside idle connections, and beside slow clients, too."""
    for name, (idle_count, slow_count) in {
        _ALONE: (0, 0),
        _BESIDE_IDLE: (_IDLE_COUNT, 0),
        _BESIDE_SLOW: (_IDLE_COUNT, _SLOW_COUNT),
    }.items():
        rounds.add(name, partial(_beside, workspace, stack, idle_count, slow_count))
    rounds.run(workspace.counts.pace)


def _beside(workspace: Workspace, stack: ExitStack, idle_count: int, slow_count: int) -> Latencies:
    """Return the latencies of a good client of a service that also has this crowd."""
    counts = workspace.counts
    archives = stack.enter_context(written(workspace, workspace.inputs.lean, 1))
    server = stack.enter_context(served(archives, _MOST_CONNECTIONS))
    if idle_count or slow_count:
        crowd = (
            server.port,
            idle_count // counts.crowd_divisor,
            slow_count // counts.crowd_divisor,
        )
        log_path = archives.directory / "crowd.log"
        stack.enter_context(child(slow_clients.__name__, crowd, log_path))
    exchange = connected(stack, server, archives, 1)
    return Latencies(lambda: exchange.latencies(counts.calls), P99)


@case(
    "page service, median beside clients that pipeline",
    Bar("service-p50-sync", _BESIDE_SYNC, _ALONE_MEDIAN, Sense.AT_MOST, 5.0),
    Bar("service-p50-parse", _BESIDE_PARSE, _ALONE_MEDIAN, Sense.AT_MOST, 5.0),
)
def test_greedy(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A good client alone, and beside clients that send messages without end."""
    for name, kind in {_ALONE_MEDIAN: "", _BESIDE_SYNC: "sync", _BESIDE_PARSE: "parse"}.items():
        rounds.add(name, partial(_beside_greedy, workspace, stack, kind))
    rounds.run(workspace.counts.pace)


def _beside_greedy(workspace: Workspace, stack: ExitStack, kind: str) -> Latencies:
    """Return the latencies of a good client of a service that also has greedy ones."""
    counts = workspace.counts
    archives = stack.enter_context(written(workspace, workspace.inputs.lean, 1))
    server = stack.enter_context(served(archives))
    if kind:
        log_path = archives.directory / "greedy.log"
        arguments = (server.port, _GREEDY_COUNT, kind)
        stack.enter_context(child(greedy_clients.__name__, arguments, log_path))
    exchange = connected(stack, server, archives, 1)
    return Latencies(lambda: exchange.latencies(counts.calls), P50)


@case(
    "page service, p99 beside a verification",
    Bar("service-p99-verify", _BESIDE_VERIFIED, _ALONE_VERIFIED, Sense.AT_MOST, 3.0),
)
def test_verification(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A good client alone, and beside one that has a big archive verified without a pause."""
    archives = stack.enter_context(written(workspace, workspace.inputs.lean, 1))
    size_bytes = _VERIFIED_SIZE_BYTES // workspace.counts.crowd_divisor
    ids = make_ids(2)
    write_entries(archives.data_dir, ids[1:], os.urandom(1 << 20) * (size_bytes >> 20))
    log_path = archives.directory / "service.log"
    port = stack.enter_context(
        service_process(archives.data_dir, len(ids), _CONNECTIONS, log_path, "always")
    )
    exchange = connected(stack, page_server(port, ids), archives, 1)

    def alone() -> array[int]:
        return exchange.latencies(workspace.counts.calls)

    def beside() -> array[int]:
        with child(verifying_client.__name__, (port, 1), archives.directory / "client.log"):
            return alone()

    rounds.add(_ALONE_VERIFIED, lambda: Latencies(alone, P99))
    rounds.add(_BESIDE_VERIFIED, lambda: Latencies(beside, P99))
    rounds.run(workspace.counts.pace)


@case("memory of a connection", Bar("memory-connection", _MEMORY, "", Sense.AT_MOST, 64, "KiB"))
def test_memory(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """What a service allocates for each client that has logged in and is silent."""
    count = _IDLE_COUNT // workspace.counts.crowd_divisor
    archives = stack.enter_context(written(workspace, workspace.inputs.lean, 1))
    host = make_host(archives.ids)
    cache = stack.enter_context(spawn_ready(archives.data_dir, host))
    config = PageServiceConfig(listen=Address("127.0.0.1", 0), max_connections=count)
    source = CacheSource(host, cache, config)
    allow_many_descriptors()

    def run() -> float:
        with (
            PageService(source, config, registry=CollectorRegistry()) as service,
            traced_growth() as growth,
        ):
            crowd = (service.address.port, count, 0)
            with child(slow_clients.__name__, crowd, archives.directory / "crowd.log"):
                return growth() / count / _KIB

    rounds.add(_MEMORY, lambda: run)
    rounds.run(MEMORY_PACE)
