"""The simulated fleets: what the kernel in C decides is what the product decides."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("numpy", reason="needs numpy, of the extra `bench`")

import numpy as np

from bbcache.eviction import Never, Oldest, ReturnRate, return_rate
from benchmarks.fleets import __main__ as command
from benchmarks.fleets import figures, kernel, measure, product
from benchmarks.fleets.fleets import INVERSE, RECIPES, START, STOP, Recipe, build_fleet, make_fleet
from benchmarks.fleets.kernel import Footprint, Policy
from benchmarks.fleets.replay import TraceError, read_trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.fleets.fleets import Fleet

PAIRS: list[tuple[Callable[..., Any], Policy]] = [
    (ReturnRate, Policy.RULE),
    (Oldest, Policy.OLDEST),
    (Never, Policy.SKIP),
]
SMALL = {"mixed": (80, 3), "cron": (25, 3), "ephemeral": (80, 4)}  # living timelines, days
DAY_S = 86_400.0


@functools.cache
def small(name: str) -> Fleet:
    """A small fleet."""
    living, days = SMALL[name]
    return make_fleet(name, 5, living=living, days=days)


@functools.cache
def drawn(name: str) -> Fleet:
    """A smaller fleet with draws for the oracle."""
    return make_fleet(name, 1, living=300, days=5, draws=10)


def hit_rate(fleet: Fleet, policy: Policy, share: float = 0.1) -> float:
    """The hit rate with room for a share of the living timelines."""
    return kernel.run(fleet, policy, max_entries=fleet.max_entries(share)).hit_rate


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("limit", ["entries", "bytes", "both"])
@pytest.mark.parametrize(("make", "policy"), PAIRS, ids=lambda each: getattr(each, "__name__", ""))
def test_the_kernel_decides_as_the_product(
    name: str, limit: str, make: Callable[..., Any], policy: Policy
) -> None:
    """Each build, refusal and eviction is the same, in the same order."""
    fleet = small(name)
    max_entries = None if limit == "bytes" else fleet.max_entries(0.1)
    max_size_bytes = None if limit == "entries" else fleet.max_size_bytes(0.1)
    gets, hits, log = product.run(fleet, make(max_entries, max_size_bytes))
    run = kernel.run(
        fleet,
        policy,
        max_entries=max_entries,
        max_size_bytes=max_size_bytes,
    )
    assert (run.gets, run.hits) == (gets, hits)
    np.testing.assert_array_equal(run.log, log)
    if policy is Policy.RULE:  # the comparison has seen every kind of decision
        assert {kernel.LOG_BUILT, kernel.LOG_DECLINED} < set(log.tolist())


def test_the_kernel_samples_as_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many timelines both learn from the same ones."""
    fleet = small("mixed")
    monkeypatch.setattr(return_rate, "ALL_COUNTED", 100)
    _, _, log = product.run(fleet, ReturnRate(fleet.max_entries(0.1)))
    run = kernel.run(fleet, Policy.RULE, max_entries=fleet.max_entries(0.1), all_counted=100)
    np.testing.assert_array_equal(run.log, log)


@pytest.mark.parametrize("name", RECIPES)
def test_the_events_of_a_fleet(name: str) -> None:
    """Each timeline stops and starts in turn, and each stop knows its start."""
    fleet = make_fleet(name, 2, living=60, days=3)
    assert (np.diff(fleet.times_s) >= 0).all()
    for timeline in range(fleet.count):
        mine = np.flatnonzero(fleet.timelines == timeline)
        kinds, times_s = fleet.kinds[mine], fleet.times_s[mine]
        assert (kinds[1:] != kinds[:-1]).all()
        is_known = (kinds[:-1] == STOP) & (kinds[1:] == START)
        np.testing.assert_allclose(fleet.returns_s[mine][:-1][is_known], times_s[1:][is_known])
    again = make_fleet(name, 2, living=60, days=3, draws=3)
    np.testing.assert_array_equal(again.times_s, fleet.times_s)
    assert again.sleeps_s.shape == (int((fleet.kinds == STOP).sum()), 3)


def test_no_policy_beats_the_one_that_knows_the_dice() -> None:
    """Belady's is the upper bound, the oracle is between it and the rule, skip is below."""
    fleet = drawn("mixed")
    rates = {policy: hit_rate(fleet, policy) for policy in Policy}
    assert max(rates, key=lambda policy: rates[policy]) is Policy.BELADY
    assert rates[Policy.SKIP] < rates[Policy.OLDEST] < rates[Policy.RULE] < rates[Policy.BELADY]


def test_limits_are_kept_by_every_policy() -> None:
    """At no moment are there more entries or bytes than allowed."""
    fleet = drawn("ephemeral")
    max_entries, max_size_bytes = fleet.max_entries(0.05), fleet.max_size_bytes(0.05)
    for policy in Policy:
        run = kernel.run(fleet, policy, max_entries=max_entries, max_size_bytes=max_size_bytes)
        held: set[int] = set()
        decisions = iter(run.log.tolist())
        for timeline, kind in zip(fleet.timelines.tolist(), fleet.kinds.tolist(), strict=True):
            held.discard(timeline)
            if kind == STOP:
                while (decision := next(decisions)) >= 0:
                    held.remove(decision)
                if decision == kernel.LOG_BUILT:
                    held.add(timeline)
                assert len(held) <= max_entries
                assert fleet.sizes_bytes[list(held)].sum() <= max_size_bytes
        assert next(decisions, None) is None


def test_inverse_habits() -> None:
    """The longer the last sleep, the shorter the next: the rule stays far above its rivals."""
    fleet = build_fleet("inverse", INVERSE, 1)
    rule = hit_rate(fleet, Policy.RULE)
    assert rule >= 0.26
    assert rule > 1.5 * max(hit_rate(fleet, Policy.SKIP), hit_rate(fleet, Policy.OLDEST))


@pytest.mark.parametrize(("entries", "size"), [(0.1, 0.1), (0.2, 0.1), (0.1, 0.2)])
def test_a_score_with_both_limits(entries: float, size: float) -> None:
    """By the scarcer one, it is as good as by the better of entries and bytes alone."""
    fleet = make_fleet("mixed", 1, days=8)
    rates = {
        footprint: kernel.run(
            fleet,
            Policy.RULE,
            max_entries=fleet.max_entries(entries),
            max_size_bytes=fleet.max_size_bytes(size),
            footprint=footprint,
        ).hit_rate
        for footprint in Footprint
    }
    by_both = rates.pop(Footprint.BOTH)
    assert by_both > max(rates.values()) - 0.01
    assert by_both > min(rates.values()) + 0.03


def test_the_oracle_needs_draws() -> None:
    """A fleet without them is refused."""
    with pytest.raises(ValueError, match="draws"):
        kernel.run(small("mixed"), Policy.ORACLE, max_entries=10)


def test_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of fleets become the tables of a page, between its marks."""
    tiny = {
        name: Recipe(recipe.title, recipe.shares, 40, 2)
        for name, recipe in RECIPES.items()
        if name in {"mixed", "cron"}
    }
    for name, recipe in tiny.items():
        monkeypatch.setitem(RECIPES, name, recipe)
    rows = measure.measure(tiny, [1])
    page = tmp_path / "page.md"
    page.write_text(f"above\n{figures.BEGIN}old\n{figures.END}\nbelow\n")
    figures.write(page, figures.tables(rows, measure.measure_product(["cron"])))
    text = page.read_text()
    assert text.startswith(f"above\n{figures.BEGIN}")
    assert text.endswith(f"{figures.END}\nbelow\n")
    assert "old" not in text.split("\n")
    assert "| cron |" in text
    assert "| both, score per entries alone | rule |" in text


def test_the_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture for light and dark that names each line where it begins."""
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra `bench`")
    recipe = RECIPES["cron"]
    monkeypatch.setitem(RECIPES, "cron", Recipe(recipe.title, recipe.shares, 40, 2))
    path = tmp_path / "chart.svg"
    assert command.main(["plot", "--fleet", "cron", "--seeds", "1", "--out", str(path)]) == 0
    svg = path.read_text()
    assert "prefers-color-scheme: dark" in svg
    assert "hit rate of a full cache" in svg.lower()
    assert "var(--c0)" in svg


TRACE = """\
time,timeline,event,size
# a comment
1000,a,start,
1010,a,stop,100
1970-01-01T00:18:30Z,b,stop,50
1120,a,start,
1200,a,stop,
1300,b,start,
1400,a,start,
1500,c,stop,
1600,c,delete,
"""


def test_a_trace(tmp_path: Path) -> None:
    """Times in both forms, sizes that are not known, and a start that no cache could help."""
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    fleet = read_trace(path, 0.0)
    assert fleet.times_s.tolist() == [1010, 1110, 1120, 1200, 1300, 1400, 1500, 1600]
    assert fleet.count == 3
    assert fleet.sizes_bytes.tolist() == [100, 50, 75]
    assert fleet.returns_s[0] == 1120
    assert kernel.run(fleet, Policy.BELADY, max_entries=1).hits == 2
    assert kernel.run(fleet, Policy.BELADY, max_entries=2).hits == 3


def test_a_trace_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For people a table of each limit, for programs every figure."""
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    assert command.main(["replay", str(path), "--entries", "2", "--warm", "0"]) == 0
    out = capsys.readouterr().out
    assert "3 timelines, 8 events" in out
    assert "rule          1.000 hits" in out
    assert command.main(["replay", str(path), "--json", "--warm", "0"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["results"]) == (len(Policy) - 1) * len(measure.SHARES)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1,a", "line 1: 2 columns"),
        ("1,a,sleep", "line 1: the event 'sleep' is none of start, stop, delete"),
        ("1,a,stop,-5", "line 1: the size -5 is not a number of bytes"),
        ("time,timeline,event\nnoon,a,stop", "line 2: Invalid isoformat string"),
        ("-1,a,stop", "line 1: the time -1"),
        ("1,a,stop\n", "no timeline that starts after a stop"),
    ],
)
def test_a_trace_that_is_wrong(
    text: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line and what it should be are named."""
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match="hint: "):
        read_trace(path, 0.0)
    assert command.main(["replay", str(path)]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["--entries", "0"], ["--bytes", "x"], ["--warm", "1"], ["--warm", "x"]]
)
def test_a_limit_that_is_none(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The value and what it should be are named."""
    with pytest.raises(SystemExit, match="2"):
        command.main(["replay", "trace", *argv])
    assert f"{argv[1]!r} is not a" in capsys.readouterr().err


def test_a_machine_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told which program is missing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    kernel._library.cache_clear()
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    assert command.main(["replay", str(path)]) == 2
    assert "cc is not on PATH\nhint: Install a C compiler" in capsys.readouterr().err


def test_a_page_takes_all_fleets(capsys: pytest.CaptureFixture[str]) -> None:
    """A part of the tables does not replace the whole."""
    with pytest.raises(SystemExit, match="2"):
        command.main(["table", "--write", "--fleet", "cron"])
    assert "leave out --fleet" in capsys.readouterr().err


def test_a_trace_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The path is named."""
    assert command.main(["replay", str(tmp_path / "nowhere")]) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["table", "--help"], ["replay", "--help"]])
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The help teaches what the policies are, and the form of a trace."""
    with pytest.raises(SystemExit, match="0"):
        command.main(argv)
    out = capsys.readouterr().out
    assert {
        "--help": "knows the dice",
        "table": "--no-product",
        "replay": "time,timeline,event,size",
    }[argv[0]] in out
