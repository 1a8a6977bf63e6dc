"""The charts of a run, drawn by matplotlib: points with direct labels, for light and dark."""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from benchmarks.bars import Sense
from benchmarks.latency import SHOWN
from benchmarks.units import format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.axes import Axes

    from benchmarks.results import Record

DEFAULT: Final = "ISA-L 2"  # the codec of the default settings
_WIDTH_IN: Final = 6.0
_NARROW: Final = 3  # a range of less than this factor has a linear axis
# Matplotlib draws in these colours; the style of the picture, or of the page, gives
# each its value for light and for dark.
COLORS: Final[Mapping[str, tuple[str, str, str]]] = {  # drawn, light, dark
    "ink": ("#000001", "#1c2024", "#edeef0"),
    "soft": ("#000002", "#60646c", "#a1a5ad"),
    "rule": ("#000003", "#d9dbe0", "#3a3d43"),
    "paper": ("#000004", "#ffffff", "#111315"),
    "good": ("#000005", "#18794e", "#4cc38a"),
    "bad": ("#000006", "#c62a2f", "#ff8b8b"),
    "c0": ("#000010", "#0b68cb", "#70b8ff"),
    "c1": ("#000011", "#c2410c", "#ff9b6a"),
    "c2": ("#000012", "#8e4ec6", "#c99bf5"),
    "c3": ("#000013", "#a16207", "#f1c04d"),
    "c4": ("#000014", "#0e7490", "#5cd3e5"),
    "c5": ("#000015", "#be185d", "#ff8fc0"),
}
_INK, _SOFT, _RULE, _GOOD, _BAD = (
    COLORS[name][0] for name in ("ink", "soft", "rule", "good", "bad")
)
_SERIES: Final = [drawn for name, (drawn, _, _) in COLORS.items() if name.startswith("c")]
# Where a label may stand beside its point: offsets in points, and alignments.
_SIDES: Final = (
    *((7, 0, "left", "center"), (-7, 0, "right", "center")),
    *((0, 8, "center", "bottom"), (0, -8, "center", "top")),
    *((6, 8, "left", "bottom"), (6, -8, "left", "top")),
    *((-6, 8, "right", "bottom"), (-6, -8, "right", "top")),
    *((0, side * far, "center", "center") for far in (20, 31, 42, 53) for side in (1, -1)),
)
_ABOVE_BELOW: Final = [(0, each, "center", "center") for each in (-10, 10, -21)]
_OUTSIDE: Final = 3  # a corner outside of the axes is as bad as so many covered labels
_LEADER_PT: Final = 15  # a label that is farther away has a line to its point


def style() -> str:
    """Return the CSS variables of all colours, for light and dark."""
    light, dark = (
        " ".join(f"--{name}: {values[shade]};" for name, values in COLORS.items())
        for shade in (1, 2)
    )
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    )


def standalone(svg: str) -> str:
    """Return a chart as a file of its own: with its colours, and a ground behind it."""
    head, mark, body = svg.partition(">")
    ground = '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
    return f"{head}{mark}<style>{style()}</style>{ground}{body}"


def codec_chart(codecs: Sequence[Record], title: str) -> str:
    """Draw time against size of every codec on one input, both as ratios to the default."""
    figure, axes = _axes(4.6, title, "lower left is better")
    default = next(each for each in codecs if each["codec"] == DEFAULT)
    libraries = list(dict.fromkeys(each["codec"].rpartition(" ")[0] for each in codecs))
    x = [each["in_isal_2"] for each in codecs]
    y = [each["size_bytes"] / default["size_bytes"] for each in codecs]
    colors = [_SERIES[libraries.index(each["codec"].rpartition(" ")[0])] for each in codecs]
    axes.scatter(x, y, s=26, c=colors, zorder=3)
    axes.scatter([1], [1], s=130, facecolors="none", edgecolors=_INK, linewidths=1.5, zorder=4)
    _ratio_axis(axes, "x", x, "time, in times of ISA-L 2")
    _ratio_axis(axes, "y", y, "size, in times of ISA-L 2")
    names = [each["codec"] + " (default)" * (each is default) for each in codecs]
    points = zip(x, y, names, colors, strict=True)
    _label(axes, sorted(points, key=lambda point: "default" not in point[2]))
    return _svg(figure, f"{title}: time and size of each codec; the table has the figures")


def latency_chart(latencies: Sequence[Record], title: str) -> str:
    """Draw the quantiles of each contender as points on one row."""
    figure, axes = _axes(1.2 + 0.7 * len(latencies), title, "left is better")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_seconds(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.6, len(latencies) - 0.3)
    axes.yaxis.set_visible(False)
    points = []
    for row, record in enumerate(reversed(latencies)):
        seconds = [record["seconds"][name] for name in SHOWN]
        axes.scatter(seconds, [row] * len(seconds), s=26, color=_SERIES[0], zorder=3)
        name = axes.text(0, row + 0.36, record["name"], transform=axes.get_yaxis_transform())
        name.set_in_layout(False)  # a long one leaves the axes their width
        points += [(each, row, name, _SOFT) for each, name in zip(seconds, SHOWN, strict=True)]
    _label(axes, points, sides=_ABOVE_BELOW)
    return _svg(figure, f"{title}: quantiles of the latencies of each contender")


def growth_chart(points: Sequence[Record], title: str) -> str:
    """Draw the median of a call by the number of entries."""
    figure, axes = _axes(3.2, title, "lower is better; flat is best")
    axes.set_xscale("log")
    axes.set_xlabel("entries")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_seconds(value)))
    axes.set_ylim(0, 1.25 * max(each["seconds"] for each in points))
    for color, name in zip(_SERIES, dict.fromkeys(each["name"] for each in points), strict=False):
        mine = [each for each in points if each["name"] == name]
        entries, seconds = ([each[key] for each in mine] for key in ("entries", "seconds"))
        axes.scatter(entries, seconds, s=26, color=color, zorder=3)
        axes.annotate(
            name, (entries[0], seconds[0]), (0, 8), textcoords="offset points", color=color
        )
    return _svg(figure, f"{title}: the median of a call by the number of entries")


def bars_chart(bars: Sequence[Record]) -> str:
    """Draw every round of every bar as a share of the bar, and the median."""
    title = "Each ratio as a share of its bar"
    figure, axes = _axes(1.3 + 0.22 * len(bars), title, "left of the line, the bar is met")
    drawn = [1.0]
    for row, bar in enumerate(reversed(bars)):
        cost = bar["sense"] == Sense.AT_MOST
        shares = [each / bar["limit"] if cost else bar["limit"] / each for each in bar["values"]]
        share = bar["value"] / bar["limit"] if cost else bar["limit"] / bar["value"]
        color = _GOOD if share <= 1 else _BAD
        axes.scatter(shares, [row] * len(shares), s=10, color=color, alpha=0.4, linewidths=0)
        axes.scatter([share], [row], s=60, color=color, marker="|", linewidths=2)
        drawn += shares
    axes.axvline(1, color=_INK, linewidth=1)
    axes.set_yticks(range(len(bars)), [bar["name"] for bar in reversed(bars)])
    axes.set_ylim(-0.7, len(bars) - 0.3)
    _ratio_axis(axes, "x", drawn, "")
    return _svg(figure, f"{title}; the table has the figures")


def _axes(height_in: float, title: str, note: str) -> tuple[Figure, Axes]:
    settings: dict[str, Any] = {
        "font.size": 9,
        "svg.hashsalt": "bbcache",  # the same names in each run
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor"), _INK),
        "ytick.labelcolor": _INK,
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _RULE),
    }
    mpl.rcParams.update(settings)  # type: ignore[arg-type]  # the stubs want literal names
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", size=10)
    axes.set_title(note, loc="left", size=9, color=_SOFT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _ratio_axis(axes: Axes, which: str, values: Iterable[float], label: str) -> None:
    """Give an axis ratios, by a logarithm where they differ much."""
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    low, high = min(values), max(values)
    if high / low < _NARROW:
        axis.set_major_locator(MaxNLocator(6))
    else:
        {"x": axes.set_xscale, "y": axes.set_yscale}[which]("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
        axis.set_minor_locator(NullLocator())
    axes.margins(0.12)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.set_label_text(label)


def _label(
    axes: Axes,
    points: Sequence[tuple[float, float, str, str]],
    sides: Sequence[tuple[float, float, str, str]] = _SIDES,
) -> None:
    """Write the name of each point beside it, where it covers the least of the others."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # fixes the places
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]  # of Agg
    spots = axes.transData.transform([(x, y) for x, y, _, _ in points])
    taken = [mpl.transforms.Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in spots]
    for x, y, name, color in points:
        best = None
        for dx, dy, ha, va in sides:
            text = axes.annotate(
                name, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, size=8,
                color=color, weight="bold" if "default" in name else "normal",
                arrowprops={"arrowstyle": "-", "color": _RULE} if abs(dy) > _LEADER_PT else None,
            )  # fmt: skip
            text.update_positions(renderer)
            box = mpl.text.Text.get_window_extent(text, renderer)  # without its leader
            covered = sum(box.overlaps(other) for other in taken)
            corners = ((box.x0, box.y0), (box.x1, box.y1))
            covered += _OUTSIDE * sum(not axes.bbox.contains(*corner) for corner in corners)
            if best is None or covered < best[0]:
                if best is not None:
                    best[1].remove()
                best = (covered, text, box)
            else:
                text.remove()
        assert best is not None
        taken.append(best[2].padded(2))


def _svg(figure: Figure, description: str) -> str:
    """Return the picture, in the colours of `COLORS`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for name, (drawn, _, _) in COLORS.items():
        svg = svg.replace(drawn, f"var(--{name})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
