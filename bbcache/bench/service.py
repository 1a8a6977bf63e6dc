"""The page service beside nginx, which sends the same files over kept connections."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.bench.bars import Bar, Sense
from bbcache.bench.contest import Contest, Figures
from bbcache.bench.entries import make_places, write_entries
from bbcache.bench.exchanges import Exchange, http_server, page_server
from bbcache.bench.latency import P50, Latencies
from bbcache.bench.nginx import nginx_process
from bbcache.bench.rounds import timed
from bbcache.bench.service_process import service_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from bbcache import TenantTimelineId
    from bbcache.bench.exchanges import Server
    from bbcache.bench.rounds import Lineup
    from bbcache.bench.scene import Scene

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


class Archives(NamedTuple):
    """A cache's directory with archives in it, and what is in them.

    Attributes:
        directory: where servers may put what they need.
        data_dir: the cache's directory.
        places: the timelines.
        paths: their files.
    """

    directory: Path
    data_dir: Path
    places: Sequence[TenantTimelineId]
    paths: Sequence[str]

    def contents(self) -> list[bytes]:
        """The bytes of each archive."""
        return [Path(path).read_bytes() for path in self.paths]


@contextmanager
def written(scene: Scene, tarball: bytes, count: int) -> Iterator[Archives]:
    """A directory with archives of one tarball, removed after the block."""
    with scene.scratch() as directory:
        data_dir = directory / "cache"
        data_dir.mkdir(mode=0o700)
        places = make_places(count)
        yield Archives(directory, data_dir, places, write_entries(data_dir, places, tarball))


@contextmanager
def served(archives: Archives, most_connections: int = _CONNECTIONS) -> Iterator[Server]:
    """The page service over them, in a process of its own."""
    log_path = archives.directory / "service.log"
    with service_process(
        archives.data_dir, len(archives.places), most_connections, log_path
    ) as port:
        yield page_server(port, archives.places)


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


def _race(
    scene: Scene,
    lineup: Lineup,
    archives: Archives,
    names: tuple[str, str],
    connection_count: int,
    rounds_of: Callable[[str, Exchange], Callable[[], float]],
) -> None:
    """Race the page service and nginx, each by what `rounds_of` makes of its connections."""
    with ExitStack() as stack:
        for name, serve in zip(names, (served, _served_by_nginx), strict=True):

            def enter(name: str = name, serve: Serve = serve) -> Callable[[], float]:
                server = stack.enter_context(serve(archives))
                exchange = connected(stack, server, archives, connection_count)
                return rounds_of(name, exchange)

            lineup.add(name, enter)
        lineup.race(scene.counts.pace)


def _many(scene: Scene, lineup: Lineup) -> Figures:
    round_s = _ROUND_S * scene.counts.latency_s
    with written(scene, scene.inputs.lean, _CONNECTIONS) as archives:
        _race(
            scene,
            lineup,
            archives,
            (_SERVICE, _NGINX),
            _CONNECTIONS,
            lambda _, exchange: lambda: exchange.seconds_a_request(round_s),
        )
    return Figures()


def _big(scene: Scene, lineup: Lineup) -> Figures:
    with written(scene, os.urandom(_BIG_SIZE_BYTES), 1) as archives:
        _race(
            scene,
            lineup,
            archives,
            (_SERVICE_BIG, _NGINX_BIG),
            1,
            lambda _, exchange: timed(lambda: exchange.latencies(1, 0)),
        )
    return Figures()


def _first_byte(scene: Scene, lineup: Lineup) -> Figures:
    taken: dict[str, Latencies] = {}
    how_many = (scene.counts.calls, scene.counts.latency_s)

    def rounds_of(name: str, exchange: Exchange) -> Callable[[], float]:
        taken[name] = Latencies(lambda: exchange.first_byte_latencies(*how_many), P50)
        return taken[name].round

    with written(scene, scene.inputs.lean, 1) as archives:
        _race(scene, lineup, archives, (_SERVICE_FIRST, _NGINX_FIRST), 1, rounds_of)
    return Figures(distributions={name: each.distribution() for name, each in taken.items()})


CONTESTS: Final = (
    Contest(
        "page service, lean archives",
        (Bar("service-lean", _SERVICE, _NGINX, Sense.AT_LEAST, 0.25),),
        _many,
    ),
    Contest(
        "page service, 200 MB",
        (Bar("service-big", _SERVICE_BIG, _NGINX_BIG, Sense.AT_LEAST, 0.7),),
        _big,
    ),
    Contest(
        "page service, first byte",
        (Bar("service-first-byte", _SERVICE_FIRST, _NGINX_FIRST, Sense.AT_MOST, 3.0),),
        _first_byte,
    ),
)
