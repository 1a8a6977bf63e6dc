"""The plots of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from bbcache.bench.svg import Axis, Plot, Series, linear_axis, log_axis
from bbcache.bench.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bbcache.bench.contest import CodecPoint, Curve, Figures
    from bbcache.bench.latency import Distribution

_WIDE: Final = 20
_SHARES: Final = ((0.0, "0%"), (0.5, "50%"), (0.9, "90%"), (0.99, "99%"), (0.999, "99.9%"))


def plots(figures: Figures) -> list[Plot]:
    """All that there is something to show in."""
    return [
        *codec_plots(figures.codecs),
        *latency_plots(figures.distributions),
        *growth_plots(figures.curves),
    ]


def codec_plots(points: Sequence[CodecPoint]) -> Iterator[Plot]:
    """Time against size, one plot an input, one line a library."""
    for input_name in dict.fromkeys(point.input_name for point in points):
        chosen = [point for point in points if point.input_name == input_name]
        libraries: dict[str, list[tuple[float, float, str]]] = {}
        for point in chosen:
            library, _, level = point.codec.rpartition("-")
            place = (point.seconds, float(point.size_bytes), level)
            libraries.setdefault(library, []).append(place)
        yield Plot(
            f"codecs-{input_name}",
            f"Codecs on {input_name}, {format_bytes(chosen[0].input_bytes)}, by their levels",
            log_axis("time, log", (point.seconds for point in chosen), format_seconds),
            log_axis("size, log", (point.size_bytes for point in chosen), format_bytes),
            [Series(name, places) for name, places in libraries.items()],
        )


def latency_plots(distributions: Mapping[str, Distribution]) -> Iterator[Plot]:
    """So many calls took no longer, in one plot; each further nine has as much room."""
    series = [
        Series(
            f"{name} ({each.call_count:,} calls)",
            [  # what the clock's own cost has swallowed has no logarithm
                (_nines(share), seconds, "")
                for share, seconds in zip(each.shares, each.seconds, strict=True)
                if seconds > 0
            ],
            has_dots=False,
        )
        for name, each in distributions.items()
    ]
    series = [each for each in series if each.points]
    points = [point for each in series for point in each.points]
    if not points:
        return
    nines = max(1.0, *(x for x, _, _ in points))
    ticks = [(_nines(share), text) for share, text in _SHARES if _nines(share) <= nines]
    yield Plot(
        "latencies",
        "So many calls took no longer",
        Axis("share of the calls", 0.0, nines, ticks, is_log=False),
        log_axis("latency, log", (y for _, y, _ in points), format_seconds),
        series,
    )


def _nines(share: float) -> float:
    return -math.log10(1 - share)


def growth_plots(curves: Sequence[Curve]) -> Iterator[Plot]:
    """Time against the number of entries, one plot a curve."""
    for number, curve in enumerate(curves, 1):
        points = [point for each in curve.series.values() for point in each]
        series = [
            Series(name, [(x, y, "") for x, y in each]) for name, each in curve.series.items()
        ]
        if points:
            yield Plot(
                f"growth-{number}",
                f"Growth: {curve.title}",
                log_axis("entries, log", (x for x, _ in points), lambda value: f"{value:,.0f}"),
                _time_axis([y for _, y in points]),
                series,
            )


def _time_axis(seconds: Sequence[float]) -> Axis:
    """From zero, unless small values would be lost there beside great ones."""
    if min(seconds) > 0 and max(seconds) / min(seconds) > _WIDE:
        return log_axis("time, log", seconds, format_seconds)
    return linear_axis("time", seconds, format_seconds)
