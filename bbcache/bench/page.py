"""A run as one HTML file: it refers to nothing outside of it, and all text is escaped."""

from __future__ import annotations

import math
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Final

from bbcache.bench.bars import Verdict
from bbcache.bench.svg import Axis, Series, linear_axis, log_axis, plot, strip
from bbcache.bench.table import limit_text, summary
from bbcache.bench.units import format_bytes, format_figure, format_seconds, format_spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bbcache.bench.bars import Outcome
    from bbcache.bench.contest import CodecPoint, Curve
    from bbcache.bench.latency import Distribution
    from bbcache.bench.report import Report

# A page that may load nothing at all, whatever should slip into it.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --rule: #d9dbe0;
  --paper: #fff; --good: #18794e; --bad: #c62a2f; --none: #8a6100;
  --c0: #0b68cb; --c1: #c2410c; --c2: #18794e; --c3: #8e4ec6; --c4: #a16207; --c5: #0e7490;
  --c6: #be185d; --c7: #4b5563; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #a1a5ad; --rule: #3a3d43;
  --paper: #111315; --good: #4cc38a; --bad: #ff8b8b; --none: #e2b14c;
  --c0: #70b8ff; --c1: #ff9b6a; --c2: #4cc38a; --c3: #c99bf5; --c4: #f1c04d; --c5: #5cd3e5;
  --c6: #ff8fc0; --c7: #b6bbc4; } }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
th[scope=rowgroup] { padding-top: 1.2rem; font-weight: 600; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.pass { color: var(--good); } .fail, .error { color: var(--bad); } .missing { color: var(--none); }
.verdict { font-weight: 600; white-space: nowrap; } .soft { color: var(--soft); }
.wide { overflow-x: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: .4rem; }
svg { max-width: 100%; height: auto; } .strip { display: block; }
.grid { stroke: var(--rule); } .tick, .mark { font-size: 11px; fill: var(--soft); }
.label { font-size: 12px; fill: var(--ink); }
.line { fill: none; stroke: currentColor; stroke-width: 2; } .dot { fill: currentColor; }
.bar { stroke: var(--ink); stroke-width: 2; } .met { fill: var(--good); opacity: .6; }
.unmet { fill: var(--bad); opacity: .6; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.c6 { color: var(--c6); } .c7 { color: var(--c7); }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
.swatch { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem;
  background: currentColor; border-radius: 2px; }
"""
_CLASSES: Final = {
    Verdict.PASS: "pass",
    Verdict.FAIL: "fail",
    Verdict.MISSING: "missing",
    Verdict.ERROR: "error",
}
_WIDE: Final = 20
_SHARES: Final = ((0.0, "0%"), (0.5, "50%"), (0.9, "90%"), (0.99, "99%"), (0.999, "99.9%"))


def page(report: Report) -> str:
    """The whole file."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
    yield f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}"/>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    yield f"<title>bbcache bench</title><style>{_STYLE}</style></head><body>"
    yield "<h1>bbcache beside its peers, and beside the least work there is</h1>"
    counts = escape(str(report.counts["name"]))
    yield f'<p class="soft">{escape(report.started_at)}, {counts} counts</p>'
    yield f"<p><strong>{escape(summary(report.outcomes))}.</strong> Every figure is the median of "
    yield "rounds in turn, with half the distance between their quartiles; a ratio is taken within "
    yield "each round. Dots are rounds, and the upright line is the bar.</p>"
    yield from _table(report.outcomes)
    yield from _codecs(report.figures.codecs)
    yield from _latencies(report.figures.distributions)
    yield from _curves(report.figures.curves)
    yield from _notes(report.figures.notes)
    yield from _facts("The machine", report.machine)
    yield from _facts("Versions", report.versions)
    yield "</body></html>"


def _table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "<h2>Bars</h2>"
    yield '<div class="wide"><table><thead><tr>'
    for heading in ("", "bar", "figure", "spread", "wanted", "rounds", "what, and against what"):
        yield f'<th scope="col">{heading}</th>'
    yield "</tr></thead>"
    for group, members in groupby(outcomes, key=lambda outcome: outcome.group):
        yield f'<tbody><tr><th colspan="7" scope="rowgroup">{escape(group)}</th></tr>'
        for outcome in members:
            yield from _row(outcome)
        yield "</tbody>"
    yield "</table></div>"


def _row(outcome: Outcome) -> Iterator[str]:
    bar = outcome.bar
    against = f'<br/><span class="soft">vs {escape(bar.against)}</span>' if bar.against else ""
    reason = "".join(f"<br/>{escape(line)}" for line in outcome.reason.split("\n") if line)
    figure, rounds = "", ""
    if outcome.value is not None:
        figure = format_figure(outcome.value, bar.unit)
        rounds = strip(outcome.values, bar.limit, is_met=outcome.verdict is Verdict.PASS)
    yield f'<tr><td class="verdict {_CLASSES[outcome.verdict]}">{escape(outcome.verdict)}</td>'
    yield f"<td>{escape(bar.name)}</td>"
    yield f'<td class="number">{escape(figure)}</td>'
    yield f'<td class="number">{escape(format_spread(outcome.spread)) if figure else ""}</td>'
    yield f'<td class="number">{escape(limit_text(bar))}</td><td>{rounds}</td>'
    yield f"<td>{escape(bar.what)}{against}{reason}</td></tr>"


def _figure(title: str, content: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{content}</figure>"


def _codecs(points: Sequence[CodecPoint]) -> Iterator[str]:
    if not points:
        return
    yield '<h2>Codecs: time against size</h2><div class="plots">'
    for input_name in dict.fromkeys(point.input_name for point in points):
        chosen = [point for point in points if point.input_name == input_name]
        title = f"{input_name}, {format_bytes(chosen[0].input_bytes)}; the number is the level"
        times = log_axis("time, log", (point.seconds for point in chosen), format_seconds)
        sizes = log_axis("size, log", (point.size_bytes for point in chosen), format_bytes)
        libraries: dict[str, list[tuple[float, float, str]]] = {}
        for point in chosen:
            library, _, level = point.codec.rpartition("-")
            place = (point.seconds, float(point.size_bytes), level)
            libraries.setdefault(library, []).append(place)
        series = [Series(name, places) for name, places in libraries.items()]
        yield _figure(title, plot(title, times, sizes, series))
    yield "</div>"


def _latencies(distributions: Mapping[str, Distribution]) -> Iterator[str]:
    if not distributions:
        return
    title = "Latencies: so many calls took no longer"
    yield '<h2>Latencies of get</h2><div class="plots">'
    nines = max(_nines(each.shares[-1]) for each in distributions.values())
    ticks = [(_nines(share), text) for share, text in _SHARES if _nines(share) <= nines]
    shares = Axis("share of the calls", 0.0, max(nines, 1.0), ticks, is_log=False)
    # A first call that the clock's own cost has swallowed would be no place on a logarithm.
    series = [
        Series(
            f"{name} ({each.call_count:,} calls)",
            [
                (_nines(share), seconds, "")
                for share, seconds in zip(each.shares, each.seconds, strict=True)
                if seconds > 0
            ],
            has_dots=False,
        )
        for name, each in distributions.items()
    ]
    seconds = [point[1] for each in series for point in each.points]
    if seconds:
        times = log_axis("latency, log", seconds, format_seconds)
        yield _figure(title, plot(title, shares, times, series))
    yield "</div>"


def _nines(share: float) -> float:
    return -math.log10(1 - share)


def _curves(curves: Sequence[Curve]) -> Iterator[str]:
    if not curves:
        return
    yield '<h2>Growth with the number of entries</h2><div class="plots">'
    for curve in curves:
        points = [point for each in curve.series.values() for point in each]
        if not points:
            continue
        entries = log_axis("entries, log", (x for x, _ in points), lambda value: f"{value:,.0f}")
        times = _time_axis([y for _, y in points])
        series = [
            Series(name, [(x, y, "") for x, y in each]) for name, each in curve.series.items()
        ]
        yield _figure(curve.title, plot(curve.title, entries, times, series))
    yield "</div>"


def _time_axis(seconds: Sequence[float]) -> Axis:
    """From zero, unless small values would be lost there beside great ones."""
    if min(seconds) > 0 and max(seconds) / min(seconds) > _WIDE:
        return log_axis("time, log", seconds, format_seconds)
    return linear_axis("time", seconds, format_seconds)


def _notes(notes: Sequence[str]) -> Iterator[str]:
    if notes:
        yield "<h2>Left out</h2><ul>"
        yield from (f"<li>{escape(note)}</li>" for note in notes)
        yield "</ul>"


def _facts(title: str, facts: Mapping[str, str]) -> Iterator[str]:
    yield f"<h2>{escape(title)}</h2><table>"
    for name, value in facts.items():
        yield f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
    yield "</table>"
