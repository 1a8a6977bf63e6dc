"""Time against size of every codec: for the plots, no bar is on it."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Final

from bbcache.bench.codecs import CODECS, decompress
from bbcache.bench.contest import CodecPoint, Contest, Figures
from bbcache.bench.rounds import Lineup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bbcache.bench.codecs import Codec
    from bbcache.bench.scene import Scene

# Half a minute a round; and seconds a round, on the input called full.
VERY_SLOW: Final = frozenset({"libdeflate-12"})
SLOW: Final = frozenset({"zlib-6", "zlib-9", "zlib-ng-9", "flate2-6", "flate2-9"})


def _measure(scene: Scene, lineup: Lineup) -> Figures:
    """Fast codecs, then slow ones, so that nobody waits for a round of zlib 9 on full."""
    left_out = VERY_SLOW | (SLOW if scene.counts.is_slow_left_out else frozenset())
    pairs = [(name, codec) for name in ("lean", "full") for codec in CODECS]
    slow = [(name, codec) for name, codec in pairs if name == "full" and codec.name in SLOW]
    never = [(name, codec) for name, codec in pairs if name == "full" and codec.name in left_out]
    figures = Figures()
    _race(scene, lineup, [each for each in pairs if each not in slow + never], figures)
    slow_lineup = Lineup()
    _race(scene, slow_lineup, [each for each in slow if each not in never], figures)
    figures.notes += [
        f"codec left out on full, since it takes long: {each.name}" for _, each in never
    ]
    for each in (lineup, slow_lineup):
        reasons = {*each.missing.values(), *each.failed.values()}
        figures.notes += sorted(f"codec left out: {reason.splitlines()[0]}" for reason in reasons)
    return figures


def _race(
    scene: Scene, lineup: Lineup, pairs: Sequence[tuple[str, Codec]], figures: Figures
) -> None:
    sizes: dict[tuple[str, str], int] = {}
    for name, codec in pairs:

        def enter(name: str = name, codec: Codec = codec) -> Callable[[], float]:
            return _timed(codec, scene.inputs.tarball(name), name, sizes)

        lineup.add(f"{name}, {codec.name}", enter)
    lineup.race(scene.counts.pace._replace(least=1))
    figures.codecs += [
        CodecPoint(
            name,
            codec.name,
            statistics.median(lineup.samples[f"{name}, {codec.name}"]),
            sizes[name, codec.name],
            len(scene.inputs.tarball(name)),
        )
        for name, codec in pairs
        if f"{name}, {codec.name}" not in lineup.missing | lineup.failed
    ]


def _timed(
    codec: Codec, tarball: bytes, name: str, sizes: dict[tuple[str, str], int]
) -> Callable[[], float]:
    """Rounds that note the size; what comes out of the first is checked."""
    compress = codec.load()

    def run() -> float:
        started_s = time.perf_counter()
        archive = compress(tarball)
        taken_s = time.perf_counter() - started_s
        if (name, codec.name) not in sizes:
            if decompress(archive) != tarball:
                raise ValueError(f"{codec.name} does not give back what it was given")
            sizes[name, codec.name] = len(archive)
        return taken_s

    return run


CONTESTS: Final = (Contest("codecs", (), _measure),)
