"""A run as one HTML page, and as the figures and pictures of the docs.

``python -m benchmarks.report FILE --html PAGE --docs docs`` writes those of a run that
was measured before, from its ``--results FILE``.
"""

from __future__ import annotations

import argparse
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

import jinja2

from benchmarks import charts
from benchmarks.bars import Outcome, Verdict
from benchmarks.results import read_results
from benchmarks.table import summary
from benchmarks.units import format_bytes, format_figure, format_seconds, format_spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.results import Record

_TEMPLATE: Final = "report.html"
_END: Final = "<!-- end of figures -->"
_BUSY: Final = """\
**Other work kept the processors busy.** Ratios that need all processors, an fsync or a calm tail
are worse here than on a quiet machine; `benchmarks/baseline.toml` has what was reached there."""
_RESULT: Final = {
    Verdict.PASS: "met",
    Verdict.FAIL: "**not met**",
    Verdict.MISSING: "peer missing",
    Verdict.ERROR: "error",
}
_INPUTS: Final = {
    "full": "a whole data directory with pgbench's tables",
    "lean": "what a serverless pageserver sends: one WAL segment, nearly all zeros",
}


def render(records: Sequence[Record]) -> str:
    """Return the page of a run; it refers to nothing outside of it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "seconds": format_seconds,
        "spread": format_spread,
        "bytes": format_bytes,
    }
    outcomes = outcomes_of(records)
    codecs = codecs_of(records)
    return environment.get_template(_TEMPLATE).render(
        run=next(iter(_of("run", records))),
        inputs={name: text for name, text in _INPUTS.items() if name in codecs},
        codecs=codecs,
        smaller={name: fastest_smaller(each) for name, each in codecs.items()},
        default=charts.DEFAULT,
        groups=[(group, list(each)) for group, each in groupby(outcomes, lambda each: each.group)],
        summary=summary(outcomes),
        notes=[each["text"] for each in _of("note", records)],
        charts=draw(records),  # markup: the charts escape their texts
        style=charts.style(),
        figure=format_figure,
    )


def _of(kind: str, records: Sequence[Record]) -> list[Record]:
    return [each for each in records if each["kind"] == kind]


def outcomes_of(records: Sequence[Record]) -> list[Outcome]:
    """Return the bars of a run."""
    return [
        Outcome(**{name: value for name, value in each.items() if name != "kind"})
        for each in _of("bar", records)
    ]


def codecs_of(records: Sequence[Record]) -> dict[str, dict[str, Record]]:
    """Return the codecs by input and name; the first one counts, for the reference runs twice."""
    made: dict[str, dict[str, Record]] = {}
    for record in _of("codec", records):
        made.setdefault(record["input"], {}).setdefault(record["codec"], record)
    return made


def fastest_smaller(codecs: Mapping[str, Record]) -> Record | None:
    """Return the fastest codec whose archive is smaller than that of the default."""
    size_bytes = codecs[charts.DEFAULT]["size_bytes"]
    smaller = [each for each in codecs.values() if each["size_bytes"] < size_bytes]
    return min(smaller, key=lambda each: each["in_isal_2"], default=None)


def draw(records: Sequence[Record]) -> Mapping[str, str]:
    """Return every chart of a run, as SVG by name."""
    made = {}
    for name, codecs in codecs_of(records).items():
        size = format_bytes(next(iter(codecs.values()))["input_bytes"])
        made[f"codecs-{name}"] = charts.codec_chart([*codecs.values()], f"Codecs on {name}, {size}")
    latencies = _of("latency", records)
    for number, (group, members) in enumerate(groupby(latencies, lambda each: each["group"]), 1):
        made[f"latencies-{number}"] = charts.latency_chart([*members], group)
    if points := _of("growth", records):
        made["growth"] = charts.growth_chart(points, "get, by the number of entries")
    if bars := [each for each in _of("bar", records) if each["value"]]:
        made["bars"] = charts.bars_chart(bars)
    return made


def figures(records: Sequence[Record]) -> Iterator[str]:
    """Yield the lines of Markdown with the figures of a run."""
    run, outcomes = next(iter(_of("run", records))), outcomes_of(records)
    machine, version = run["machine"], run["versions"]["bbcache"]
    where = ", ".join(machine[name] for name in ("CPU", "system", "file system", "Python"))
    yield f"One run of bbcache {version} with {run['counts']} counts on {where}."
    yield f"The load was {machine['load at the start']} at the start. {summary(outcomes)}."
    if float(machine["load at the start"].split()[0]) > int(machine["CPU"].split()[0]):
        yield _BUSY
    yield "\n| bar | figure | | bar | figure | |\n| --- | --- | --- | --- | --- | --- |"
    cells = [_cells(each) for each in outcomes]
    half = (len(cells) + 1) // 2
    for left, right in zip_longest(cells[:half], cells[half:], fillvalue=("", "", "")):
        yield f"| {' | '.join((*left, *right))} |"


def _cells(outcome: Outcome) -> tuple[str, str, str]:
    figure = ""
    if outcome.value is not None:
        figure = f"{format_figure(outcome.value, outcome.unit)} {format_spread(outcome.spread)}"
    return f"`{outcome.name}`", figure, _RESULT[Verdict(outcome.verdict)]


def write_docs(records: Sequence[Record], docs_dir: Path) -> None:
    """Write the figures of performance.md, and the charts to which it refers."""
    page = docs_dir / "performance.md"
    text = page.read_text()
    head, mark, rest = text.partition("-->\n")
    tail = rest[rest.index(_END) :]
    page.write_text("\n".join([head + mark.rstrip(), *figures(records), tail]))
    for name, svg in draw(records).items():
        if f"images/{name}.svg" in text:
            (docs_dir / "images" / f"{name}.svg").write_text(charts.standalone(svg))


def main() -> None:
    """Write a run that was measured before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="a file of `pytest benchmarks/ --results`")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write the page")
    parser.add_argument(
        "--docs", type=Path, metavar="DIR", help="write the figures and charts of performance.md"
    )
    options = parser.parse_args()
    records = read_results(options.results)
    if options.html is not None:
        options.html.write_text(render(records))
    if options.docs is not None:
        write_docs(records, options.docs)


if __name__ == "__main__":
    main()
