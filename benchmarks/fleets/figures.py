"""The tables of docs/eviction.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.fleets.fleets import RECIPES
from benchmarks.fleets.kernel import TITLES, Policy
from benchmarks.fleets.measure import SHARE, SHARES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from benchmarks.fleets.measure import Row

BEGIN: Final = "<!-- figures: python -m benchmarks.fleets table --write -->\n"
END: Final = "<!-- end of figures -->"
_SHOWN: Final = ("skip", "oldest", "sieve", "s3fifo", "gdsf", "rule", "oracle", "belady")


def tables(rows: Sequence[Row], product_rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of all tables, in Markdown."""
    yield f"Hit rate with room for {SHARE:.0%} of the living timelines:"
    yield ""
    yield from _by_fleet(rows, product_rows)
    if not _of(rows, fleet="mixed"):
        return
    yield ""
    yield "Hit rate on the mixed fleet by the room:"
    yield ""
    yield from _by_share(rows)
    yield ""
    yield f"By the kind of limit, on the mixed fleet, with room for {SHARE:.0%}:"
    yield ""
    yield from _by_limit(rows)


def write(page: Path, lines: Iterable[str]) -> None:
    """Put the tables between the marks of a page."""
    text = page.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    assert begin, f"{page} has no line {BEGIN}"
    assert end, f"{page} has no line {END}"
    page.write_text("".join([head, begin, "\n", *(f"{line}\n" for line in lines), "\n", end, tail]))


def _by_fleet(rows: Sequence[Row], product_rows: Sequence[Row]) -> Iterator[str]:
    of_product = {row["fleet"]: row for row in product_rows}
    heads = ["fleet", *(TITLES[Policy[name.upper()]] for name in _SHOWN), "rule / oracle"]
    yield from _head([*heads, "the product's code, one seed"])
    for name in dict.fromkeys(row["fleet"] for row in rows):
        found = {
            row["policy"]: row["hit_rate"]
            for row in _of(rows, fleet=name, limit="entries", share=SHARE)
        }
        cells = [_rate(found[each], is_bold=each == "rule") for each in _SHOWN]
        product = of_product.get(name)
        own = "" if product is None else _product(product)
        ratio = f"{found['rule'] / found['oracle']:.2f}"
        yield _line([RECIPES[name].title, *cells, ratio, own])


def _product(row: Row) -> str:
    return f"{_rate(row['hit_rate'])} in {row['processor_s']:.1f} s"


def _by_share(rows: Sequence[Row]) -> Iterator[str]:
    yield from _head(["policy", *(f"{share:.0%}" for share in SHARES)])
    for policy in _SHOWN:
        found = {
            row["share"]: row["hit_rate"]
            for row in _of(rows, fleet="mixed", limit="entries", policy=policy)
        }
        if len(found) > 1:
            cells = [_rate(found[share], is_bold=policy == "rule") for share in SHARES]
            yield _line([TITLES[Policy[policy.upper()]], *cells])


def _by_limit(rows: Sequence[Row]) -> Iterator[str]:
    heads = ("limit", "policy", "hits", "bytes", "seconds of misses saved")
    yield from _head([*heads, "builds per get", "built in vain"])
    for limit in ("entries", "bytes", "both"):
        for policy in ("oldest", "s3fifo", "rule", "belady"):
            for row in _of(rows, fleet="mixed", limit=limit, share=SHARE, policy=policy):
                yield _line([_limit(row), *_cells(row)])


def _limit(row: Row) -> str:
    is_other = row["footprint"] != "both"
    return f"{row['limit']}, score per {row['footprint']} alone" if is_other else row["limit"]


def _cells(row: Row) -> list[str]:
    shares = [_rate(row[name]) for name in ("hit_rate", "size_share", "cost_share")]
    title = TITLES[Policy[row["policy"].upper()]]
    return [title, *shares, f"{row['builds_per_get']:.2f}", _rate(row["vain_share"])]


def _of(rows: Iterable[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if wanted.items() <= row.items()]


def _rate(value: float, *, is_bold: bool = False) -> str:
    text = f"{value:.3f}".lstrip("0")
    return f"**{text}**" if is_bold else text


def _head(cells: Sequence[str]) -> Iterator[str]:
    yield _line(cells)
    yield _line(["---"] * len(cells))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
