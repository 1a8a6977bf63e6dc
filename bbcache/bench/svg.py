"""Plots as SVG, drawn here: lines and points between two axes. Every text is escaped."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

WIDTH: Final = 640
HEIGHT: Final = 360
_LEFT: Final = 70
_RIGHT: Final = 20
_TOP: Final = 16
_BOTTOM: Final = 50
_INNER_WIDTH: Final = WIDTH - _LEFT - _RIGHT
_INNER_HEIGHT: Final = HEIGHT - _TOP - _BOTTOM
_DOT_RADIUS: Final = 3.5
_LOG_STEPS: Final = (1, 2, 5)
_MOST_TICKS: Final = 7
_LEAST_TICKS: Final = 3
_MARGIN: Final = 0.04  # of an axis, beyond the outermost values
_COLOURS: Final = 8  # classes c0 to c7 of `STYLE`
_TITLE: Final = 30
_ROW: Final = 18

# Colours for light and dark, and how a plot is drawn in them.
STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --rule: #d9dbe0;
  --paper: #fff; --good: #18794e; --bad: #c62a2f; --none: #8a6100;
  --c0: #0b68cb; --c1: #c2410c; --c2: #18794e; --c3: #8e4ec6; --c4: #a16207; --c5: #0e7490;
  --c6: #be185d; --c7: #4b5563; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #a1a5ad; --rule: #3a3d43;
  --paper: #111315; --good: #4cc38a; --bad: #ff8b8b; --none: #e2b14c;
  --c0: #70b8ff; --c1: #ff9b6a; --c2: #4cc38a; --c3: #c99bf5; --c4: #f1c04d; --c5: #5cd3e5;
  --c6: #ff8fc0; --c7: #b6bbc4; } }
.paper { fill: var(--paper); } .title { font-size: 14px; font-weight: 600; fill: var(--ink); }
.grid { stroke: var(--rule); } .tick, .mark { font-size: 11px; fill: var(--soft); }
.label { font-size: 12px; fill: var(--ink); }
.line { fill: none; stroke: currentColor; stroke-width: 2; } .dot { fill: currentColor; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.c6 { color: var(--c6); } .c7 { color: var(--c7); }
"""


class Axis(NamedTuple):
    """One axis.

    Attributes:
        label: what it shows, with the unit.
        low: the value at its beginning.
        high: the value at its end.
        ticks: values, each with its text.
        is_log: whether it is logarithmic.
    """

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    is_log: bool

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the beginning, 1 at the end."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)


class Series(NamedTuple):
    """Points that belong together.

    Attributes:
        name: in the legend.
        points: x, y, and a text that is written beside the point; may be empty.
        has_dots: whether the points are marked, or only the line between them is drawn.
    """

    name: str
    points: Sequence[tuple[float, float, str]]
    has_dots: bool = True


def log_axis(label: str, values: Iterable[float], text: Callable[[float], str]) -> Axis:
    """A logarithmic axis around some positive values.

    Args:
        label: what it shows.
        values: one at least.
        text: writes a tick.
    """
    known = list(values)
    room = (max(known) / min(known)) ** _MARGIN * 1.05
    low, high = min(known) / room, max(known) * room
    ticks = list(_log_ticks(low, high))
    while len(ticks) > _MOST_TICKS:
        ticks = ticks[::2]
    if len(ticks) < _LEAST_TICKS:
        ticks = [tick for tick in _even_ticks(high - low, high) if low <= tick <= high]
    return Axis(label, low, high, [(tick, text(tick)) for tick in ticks], is_log=True)


def _log_ticks(low: float, high: float) -> Iterator[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    has_few = last - first <= len(_LOG_STEPS)
    for power in range(first, last + 1):
        for step in _LOG_STEPS if has_few else (1,):
            if low <= step * 10.0**power <= high:
                yield step * 10.0**power


def linear_axis(label: str, values: Iterable[float], text: Callable[[float], str]) -> Axis:
    """An axis from zero to the greatest of some values; arguments as of `log_axis`."""
    high = max(values) * (1 + _MARGIN)
    ticks = [(tick, text(tick)) for tick in _even_ticks(high, high)]
    return Axis(label, 0.0, high, ticks, is_log=False)


def _even_ticks(length: float, high: float) -> list[float]:
    """Round numbers from 0 to `high`, of which a few are in any stretch of this length."""
    rough = length / _MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough)
    return [number * step for number in range(math.floor(high / step) + 1)]


class Plot(NamedTuple):
    """A picture.

    Attributes:
        name: of its file.
        title: what it shows.
        x_axis: to the right.
        y_axis: upwards.
        series: points, each row in a colour of its own.
    """

    name: str
    title: str
    x_axis: Axis
    y_axis: Axis
    series: Sequence[Series]


def figure(plot: Plot) -> str:
    """A plot with its legend below, for a page that has `STYLE`."""
    lines = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(plot.title)}">',
        *_draw(plot),
        "</svg>",
        '<ul class="legend">',
        *(
            f'<li><span class="swatch c{number % _COLOURS}"></span>{escape(each.name)}</li>'
            for number, each in enumerate(plot.series)
        ),
        "</ul>",
    ]
    return "\n".join(lines)


def standalone(plot: Plot) -> str:
    """A plot as a file of its own, with title and legend in the picture."""
    height = _TITLE + HEIGHT + _ROW * len(plot.series) + _RIGHT
    title = escape(plot.title)
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">',
        f"<style>{STYLE} text {{ font-family: system-ui, sans-serif; }}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="{_LEFT}" y="{_TITLE - 8}">{title}</text>',
        f'<g transform="translate(0 {_TITLE})">',
        *_draw(plot),
    ]
    for number, each in enumerate(plot.series):
        y = HEIGHT + _ROW * (number + 1) - 4
        colour = f"c{number % _COLOURS}"
        lines.append(f'<circle class="dot {colour}" cx="{_LEFT + 5}" cy="{y - 4}" r="5"/>')
        lines.append(f'<text class="label" x="{_LEFT + 18}" y="{y}">{escape(each.name)}</text>')
    return "\n".join([*lines, "</g>", "</svg>", ""])


def _draw(plot: Plot) -> Iterator[str]:
    yield from _draw_x(plot.x_axis)
    yield from _draw_y(plot.y_axis)
    for number, each in enumerate(plot.series):
        yield from _draw_series(each, f"c{number % _COLOURS}", plot.x_axis, plot.y_axis)


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.share(value) * _INNER_WIDTH


def _y(axis: Axis, value: float) -> float:
    return _TOP + (1 - axis.share(value)) * _INNER_HEIGHT


def _draw_x(axis: Axis) -> Iterator[str]:
    bottom = HEIGHT - _BOTTOM
    for value, text in axis.ticks:
        x = _x(axis, value)
        yield f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">'
        yield f"{escape(text)}</text>"
    middle = _LEFT + _INNER_WIDTH / 2
    yield f'<text class="label" x="{middle:.1f}" y="{HEIGHT - 8}" text-anchor="middle">'
    yield f"{escape(axis.label)}</text>"


def _draw_y(axis: Axis) -> Iterator[str]:
    right = WIDTH - _RIGHT
    for value, text in axis.ticks:
        y = _y(axis, value)
        yield f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
        yield f"{escape(text)}</text>"
    middle = _TOP + _INNER_HEIGHT / 2
    yield f'<text class="label" transform="translate(14 {middle:.1f}) rotate(-90)" '
    yield f'text-anchor="middle">{escape(axis.label)}</text>'


def _draw_series(series: Series, colour: str, x_axis: Axis, y_axis: Axis) -> Iterator[str]:
    places = [(_x(x_axis, x), _y(y_axis, y), text) for x, y, text in series.points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
    yield f'<polyline class="line {colour}" points="{line}"/>'
    if not series.has_dots:
        return
    for x, y, text in places:
        hint = escape(f"{series.name} {text}".strip())
        yield f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="{_DOT_RADIUS}">'
        yield f"<title>{hint}</title></circle>"
        if text:
            yield f'<text class="mark" x="{x + 6:.1f}" y="{y - 5:.1f}">{escape(text)}</text>'


def strip(values: Sequence[float], limit: float, *, is_met: bool) -> str:
    """The rounds of one bar as dots on a logarithmic line, with the bar across it.

    Args:
        values: positive ones, one a round.
        limit: where the bar is.
        is_met: gives the colour.
    """
    width, height, edge = 180, 22, 6
    known = [value for value in (*values, limit) if value > 0]
    low, high = math.log10(min(known)), math.log10(max(known))
    scale = (width - 2 * edge) / ((high - low) or 1)

    def place(value: float) -> float:
        return edge + (math.log10(value) - low) * scale

    colour = "met" if is_met else "unmet"
    dots = "".join(
        f'<circle class="{colour}" cx="{place(value):.1f}" cy="{height / 2}" r="3"/>'
        for value in values
        if value > 0
    )
    bar = place(limit)
    return (
        f'<svg class="strip" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'aria-hidden="true"><line class="bar" x1="{bar:.1f}" y1="1" x2="{bar:.1f}" '
        f'y2="{height - 1}"/>{dots}</svg>'
    )
