"""The closing tables: every row of a group beside the group's reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Row(NamedTuple):
    """What one benchmark has measured.

    Attributes:
        group: the table it stands in.
        name: what was run.
        median_s: seconds, the median of all rounds.
        best_s: seconds, the shortest round.
        spread_s: seconds between the quartiles of the rounds.
        rounds: how many there were.
        size_bytes: size of what came out, where that matters.
        is_reference: whether the group's other rows are compared with it.
    """

    group: str
    name: str
    median_s: float
    best_s: float
    spread_s: float
    rounds: int
    size_bytes: int | None
    is_reference: bool


def tables(rows: Iterable[Row]) -> Iterator[str]:
    """The lines of one table a group, fastest row first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    for group, members in sorted(groups.items()):
        yield from _table(group, members)


def _table(group: str, rows: list[Row]) -> Iterator[str]:
    reference = next((row for row in rows if row.is_reference), None)
    width = max(len(group), *(len(row.name) for row in rows)) + 2
    yield f"{group:<{width}}  median    best      median  spread" + (
        "" if rows[0].size_bytes is None else "          bytes    size"
    )
    for row in sorted(rows, key=lambda row: row.median_s):
        line = f"  {row.name:<{width - 2}}"
        line += _ratio(row.median_s, reference and reference.median_s)
        line += _ratio(row.best_s, reference and reference.best_s)
        line += f" {_seconds(row.median_s)} {_spread(row)}"
        if row.size_bytes is not None:
            line += f"  {row.size_bytes:>13,}"
            line += _ratio(row.size_bytes, reference and reference.size_bytes)
        yield line
    yield (
        f"  (1.00x is {reference.name})"
        if reference
        else "  (no ratios: the reference was not run)"
    )
    yield ""


def _ratio(value: float, reference: float | None) -> str:
    return f"{value / reference:7.2f}x" if reference else f"{'-':>8}"


def _spread(row: Row) -> str:
    """Half the distance of the quartiles in percent of the median."""
    return f"+-{50 * row.spread_s / row.median_s:3.0f}%" if row.rounds > 1 else "  once"


def _seconds(seconds: float) -> str:
    for unit, factor in (("s ", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:8.2f} {unit}"
    return f"{seconds * 1e6:8.2f} us"
