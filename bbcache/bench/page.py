"""A run as one HTML file: it refers to nothing outside of it, and all text is escaped."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Final

from bbcache.bench.bars import Verdict
from bbcache.bench.plots import codec_plots, growth_plots, latency_plots
from bbcache.bench.svg import STYLE, figure, strip
from bbcache.bench.table import limit_text, summary
from bbcache.bench.units import format_figure, format_spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from bbcache.bench.bars import Outcome
    from bbcache.bench.report import Report
    from bbcache.bench.svg import Plot

# A page that may load nothing at all, whatever should slip into it.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE: Final = """
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
.bar { stroke: var(--ink); stroke-width: 2; } .met { fill: var(--good); opacity: .6; }
.unmet { fill: var(--bad); opacity: .6; }
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


def page(report: Report) -> str:
    """The whole file."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
    yield f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}"/>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    yield f"<title>bbcache bench</title><style>{STYLE}{_STYLE}</style></head><body>"
    yield "<h1>bbcache beside its peers, and beside the least work there is</h1>"
    counts = escape(str(report.counts["name"]))
    yield f'<p class="soft">{escape(report.started_at)}, {counts} counts</p>'
    yield f"<p><strong>{escape(summary(report.outcomes))}.</strong> Every figure is the median of "
    yield "rounds in turn, with half the distance between their quartiles; a ratio is taken within "
    yield "each round. Dots are rounds, and the upright line is the bar.</p>"
    yield from _table(report.outcomes)
    figures = report.figures
    yield from _plots("Codecs: time against size", codec_plots(figures.codecs))
    yield from _plots("Latencies of get", latency_plots(figures.distributions))
    yield from _plots("Growth with the number of entries", growth_plots(figures.curves))
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


def _plots(heading: str, plots: Iterable[Plot]) -> Iterator[str]:
    shown = list(plots)
    if shown:
        yield f'<h2>{escape(heading)}</h2><div class="plots">'
        for plot in shown:
            yield f"<figure><figcaption>{escape(plot.title)}</figcaption>{figure(plot)}</figure>"
        yield "</div>"


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
