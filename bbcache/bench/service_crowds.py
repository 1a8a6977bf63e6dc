"""A good client of the page service beside many that are idle, and many that are slow."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from bbcache.bench import slow_clients
from bbcache.bench.bars import Bar, Sense
from bbcache.bench.contest import Contest, Figures
from bbcache.bench.latency import P99, Latencies
from bbcache.bench.service import connected, served, written
from bbcache.bench.service_process import child

if TYPE_CHECKING:
    from collections.abc import Callable

    from bbcache.bench.rounds import Lineup
    from bbcache.bench.scene import Scene

_IDLE_COUNT: Final = 2_000
_SLOW_COUNT: Final = 200
_MOST_CONNECTIONS: Final = 3_000

_ALONE: Final = "page service, p99 of a good client alone"
_BESIDE_IDLE: Final = f"the same beside {_IDLE_COUNT:,} idle connections"
_BESIDE_SLOW: Final = f"the same beside those and {_SLOW_COUNT} that send a byte a second"
CROWDS: Final = {
    _ALONE: (0, 0),
    _BESIDE_IDLE: (_IDLE_COUNT, 0),
    _BESIDE_SLOW: (_IDLE_COUNT, _SLOW_COUNT),
}


def _measure(scene: Scene, lineup: Lineup) -> Figures:
    taken: dict[str, Latencies] = {}
    with ExitStack() as stack:
        for name, crowd in CROWDS.items():

            def enter(name: str = name, crowd: tuple[int, int] = crowd) -> Callable[[], float]:
                taken[name] = _beside(stack, scene, *crowd)
                return taken[name].round

            lineup.add(name, enter)
        lineup.race(scene.counts.pace)
    return Figures(distributions={name: each.distribution() for name, each in taken.items()})


def _beside(stack: ExitStack, scene: Scene, idle_count: int, slow_count: int) -> Latencies:
    """Latencies of a good client of a service that has this crowd, too."""
    archives = stack.enter_context(written(scene, scene.inputs.lean, 1))
    server = stack.enter_context(served(archives, _MOST_CONNECTIONS))
    if idle_count or slow_count:
        counts = (server.port, idle_count, slow_count)
        log_path = archives.directory / "crowd.log"
        stack.enter_context(child(slow_clients.__name__, counts, log_path))
    exchange = connected(stack, server, archives, 1)
    how_many = (scene.counts.calls, scene.counts.latency_s)
    return Latencies(lambda: exchange.latencies(*how_many), P99)


CONTESTS: Final = (
    Contest(
        "page service, p99 beside a crowd",
        (
            Bar("service-p99-idle", _BESIDE_IDLE, _ALONE, Sense.AT_MOST, 2.0),
            Bar("service-p99-slow", _BESIDE_SLOW, _ALONE, Sense.AT_MOST, 2.0),
        ),
        _measure,
    ),
)
