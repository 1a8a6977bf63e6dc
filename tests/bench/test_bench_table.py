"""What is printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.bench_helpers import COST, GAIN, make_report

from bbcache.bench.bars import Bar, judge
from bbcache.bench.suite import CONTESTS
from bbcache.bench.table import comparison, limit_text, listing, table
from bbcache.bench.units import format_bytes, format_figure, format_seconds, format_spread

PERFORMANCE = Path(__file__).parents[2] / "docs" / "performance.md"
COLUMNS = 6  # four, and what is left and right of the table


def words(lines: list[str]) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in lines]


def test_every_bar_has_its_lines() -> None:
    """Verdict, figure, spread, bar, rounds; what against what; why there is no figure."""
    lines = words(list(table(make_report())))
    assert ["pass", "prepare-a", "1x", "+-5%", "at", "most", "1.5x", "3", "rounds"] in lines
    assert ["ours", "vs", "theirs"] in lines
    assert ["----", "prepare-b", "peer", "missing", "at", "least", "2x", "faster"] in lines
    assert ["plain", "is", "missing"] in lines
    assert ["hint:", "Get", "plain."] in lines
    assert ["FAIL", "memory-a", "300", "bytes", "once", "at", "most", "220", "bytes"] in [
        line[:9] for line in lines
    ]
    assert ["plain", "was", "left", "out"] in lines
    assert lines[-1][:5] == ["1", "of", "4", "bars", "met,"]


@pytest.mark.parametrize(
    ("bar", "ours", "wanted"),
    [
        (COST, 1.2, "worse by 20%"),
        (COST, 0.8, "better by 20%"),
        (COST, 1.01, "about the same"),
        (GAIN._replace(against="theirs"), 0.5, "better by 100%"),
        (GAIN._replace(against="theirs"), 2.0, "worse by 50%"),
    ],
)
def test_old_and_new_ratios_side_by_side(bar: Bar, ours: float, wanted: str) -> None:
    """Better is what the bar calls so; what the spread explains is no change."""
    old, new = (
        replace(
            make_report(),
            outcomes=[judge(bar, "group", {"ours": [value] * 3, "theirs": [1.0] * 3}, {}, {})],
        )
        for value in (1.0, ours)
    )
    assert list(comparison(old, new))[-1].endswith(wanted)


def test_a_bar_without_a_past_is_shown() -> None:
    """And so is one without a figure; nothing is said of a change."""
    new = make_report()
    lines = list(comparison(replace(new, outcomes=[]), new))
    assert len(lines) == 1 + len(new.outcomes)
    assert lines[1].split() == ["prepare-a", "-", "->", "1x"]
    assert lines[2].split() == ["prepare-b", "-", "->", "-"]


def test_the_list_names_every_bar() -> None:
    """With the bar itself, and what is measured against what."""
    text = "\n".join(listing(CONTESTS))
    for contest in CONTESTS:
        assert contest.group in text
        assert all(f"  {bar.name}: {bar.sense} " in text for bar in contest.bars)


def test_every_bar_is_in_the_docs() -> None:
    """docs/performance.md has a row for each, with the bar as it is."""
    rows = {
        cells[1].strip(" `"): cells[3].strip()
        for line in PERFORMANCE.read_text().replace("\\|", "/").splitlines()
        if len(cells := line.split("|")) == COLUMNS
    }
    bars = [bar for contest in CONTESTS for bar in contest.bars]
    assert {bar.name: limit_text(bar) for bar in bars}.items() <= rows.items()


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
