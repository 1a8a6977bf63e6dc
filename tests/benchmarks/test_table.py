"""The table of ratios, and the bars in the docs."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.bench_helpers import make_outcomes

import benchmarks
from benchmarks.baseline import read_baseline
from benchmarks.table import table
from benchmarks.units import format_bytes, format_figure, format_seconds, format_spread

if TYPE_CHECKING:
    from benchmarks.bars import Bar

PERFORMANCE = Path(__file__).parents[2] / "docs" / "performance.md"
COLUMNS = 6  # four, and the ends of the line


def all_bars() -> list[Bar]:
    """Return the bars of every case."""
    names = [each.name for each in pkgutil.iter_modules(benchmarks.__path__)]
    modules = [
        importlib.import_module(f"benchmarks.{each}") for each in names if each.startswith("test_")
    ]
    functions = [getattr(each, name) for each in modules for name in dir(each)]
    marks = [mark for each in functions for mark in getattr(each, "pytestmark", [])]
    return [bar for mark in marks if mark.name == "case" for bar in mark.args[1]]


def test_every_bar_has_its_lines() -> None:
    """Verdict, figure, spread, bar, rounds; what against what; why there is no figure."""
    lines = [line.split() for line in table(make_outcomes())]
    assert ["pass", "prepare-a", "1x", "+-5%", "at", "most", "1.5x", "3", "rounds"] in lines
    assert ["ours", "vs", "theirs"] in lines
    assert ["----", "prepare-b", "peer", "missing", "at", "least", "2x", "faster"] in lines
    assert ["plain", "is", "missing"] in lines
    assert ["hint:", "Get", "plain."] in lines
    assert ["FAIL", "memory-a", "300", "bytes", "once", "at", "most", "220", "bytes"] in [
        line[:9] for line in lines
    ]
    assert lines[-1][:5] == ["1", "of", "4", "bars", "met,"]


def test_every_bar_is_in_the_docs() -> None:
    """docs/performance.md has a row for each, with the bar as it is."""
    rows = {
        cells[1].strip(" `"): cells[3].strip()
        for line in PERFORMANCE.read_text().replace("\\|", "/").splitlines()
        if len(cells := line.split("|")) == COLUMNS
    }
    bars = all_bars()
    assert len({bar.name for bar in bars}) == len(bars) > 0
    assert {bar.name: bar.limit_text() for bar in bars}.items() <= rows.items()


def test_the_baseline_names_bars() -> None:
    """Each name is a bar's; a slack is more than nothing, and less than everything."""
    baseline = read_baseline()
    assert set(baseline) <= {bar.name for bar in all_bars()}
    assert all(0 < each.slack <= 2 and each.reached > 0 for each in baseline.values())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (format_seconds(1.234), "1.23 s"),
        (format_seconds(0.1234), "123 ms"),
        (format_seconds(4.2e-6), "4.2 us"),
        (format_seconds(3e-8), "30 ns"),
        (format_bytes(999), "999 B"),
        (format_bytes(16_800_000), "16.8 MB"),
        (format_figure(1.234, "x"), "1.23x"),
        (format_figure(211.4, "bytes"), "211 bytes"),
        (format_spread(0.034), "+-3%"),
        (format_spread(None), "once"),
    ],
)
def test_figures_have_three_digits(text: str, wanted: str) -> None:
    """More would claim what no run can hold."""
    assert text == wanted
