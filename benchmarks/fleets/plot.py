"""The chart of docs/eviction.md: hit rate by the room, one line for each policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks import charts
from benchmarks.fleets.fleets import RECIPES
from benchmarks.fleets.kernel import TITLES, Policy
from benchmarks.fleets.measure import SHARES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.fleets.measure import Row

_COLORS: Final = {
    "belady": charts.COLORS["soft"][0],
    "rule": charts.COLORS["c0"][0],
    "s3fifo": charts.COLORS["c1"][0],
    "gdsf": charts.COLORS["c3"][0],
    "sieve": charts.COLORS["c4"][0],
    "oldest": charts.COLORS["c2"][0],
    "skip": charts.COLORS["bad"][0],
}
_LEAST_GAP: Final = 0.037  # between two labels, as a share of the height


def draw(rows: Sequence[Row], fleet: str) -> str:
    """Draw the hit rates of a fleet.

    Args:
        rows: of `measure_shares`.
        fleet: its name.

    Returns:
        A file of its own, for light and dark.
    """
    title = f"Hit rate of a full cache: {RECIPES[fleet].title} fleet"
    figure, axes = charts._axes(4.2, title, "higher is better")
    begins = {}
    for policy, color in _COLORS.items():
        mine = [row for row in rows if row["fleet"] == fleet and row["policy"] == policy]
        rates = [row["hit_rate"] for row in sorted(mine, key=lambda row: row["share"])]
        width = 2.6 if policy == "rule" else 1.4
        dashes = "--" if policy == "belady" else "-"
        axes.plot(SHARES, rates, dashes, color=color, linewidth=width, marker="o", markersize=3)
        begins[policy] = rates[0]
    axes.set_xscale("log")
    axes.set_xlim(SHARES[0] * 0.55, SHARES[-1] * 1.05)
    axes.set_ylim(0, 1.02)
    axes.set_xticks(SHARES, [f"{share:.0%}" for share in SHARES])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("room, as a share of the living timelines")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    for policy, height in _spread(begins).items():
        weight = "bold" if policy == "rule" else "normal"
        axes.annotate(
            TITLES[Policy[policy.upper()]],
            (SHARES[0] * 0.95, height),
            ha="right",
            va="center",
            size=8,
            color=_COLORS[policy],
            weight=weight,
        )
    return charts.standalone(charts._svg(figure, f"{title}; the table has the figures"))


def _spread(begins: dict[str, float]) -> dict[str, float]:
    """Heights of labels where lines begin, moved apart upwards where they would overlap."""
    found, below = {}, -1.0
    for policy, height in sorted(begins.items(), key=lambda item: item[1]):
        below = max(height, below + _LEAST_GAP)
        found[policy] = below
    return found
