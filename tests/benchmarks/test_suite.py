"""`pytest benchmarks/`, from its options to its files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import read_results

ROOT = Path(__file__).parents[2]
ONE = ("-k", "get-miss", "--quick")


@pytest.fixture(autouse=True)
def needs_extra() -> None:
    """The suite needs the extra `bench`."""
    for name in ("jinja2", "matplotlib", "pytest_benchmark"):
        pytest.importorskip(name, reason=f"needs {name}, of the extra `bench`")


CASES = """
from benchmarks import conftest
from benchmarks.bars import Bar, Sense, case
from benchmarks.baseline import Baseline
from benchmarks.peers import PeerMissingError
from benchmarks.rounds import Pace

conftest.read_baseline = lambda: {"good": Baseline(0.5, 0.25)}


def figure():
    return 1.0

def missing():
    raise PeerMissingError("it is not here")

def failing():
    raise OSError("no space")

def bar(name):
    return Bar(name, "ours", "theirs", Sense.AT_MOST, 2.0)

def run(rounds, ours, theirs):
    rounds.add("ours", ours)
    rounds.add("theirs", theirs)
    rounds.run(Pace(0, 2, 2))

@case("good", bar("good"))
def test_good(rounds, workspace):
    run(rounds, lambda: figure, lambda: figure)

@case("half", bar("half"))
def test_half(rounds):
    run(rounds, lambda: figure, missing)

@case("broken", bar("broken"))
def test_broken(rounds):
    run(rounds, lambda: figure, lambda: failing)

@case("raises", bar("raises"))
def test_raises(rounds):
    raise ValueError("it went wrong")

@case("alone", bar("alone"))
def test_alone(rounds):
    missing()
"""


def write_cases(directory: Path) -> Path:
    """Write a module of cases that measure nothing."""
    path = directory / "test_cases.py"
    path.write_text(CASES)
    return path


def suite(
    *options: object, cases: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the suite, or other cases as its own are run."""
    what = ["benchmarks"] if cases is None else ["-p", "benchmarks.conftest", str(cases)]
    plugins = ["-p", "pytest_benchmark.plugin", "-p", "pytest_timeout"]  # the others take time
    command = [*(sys.executable, "-m", "pytest", "-c", "setup.cfg"), *plugins, *what]
    command += map(str, options)
    # pytest-benchmark takes the variables of xdist for its own run, and does not measure.
    ours = re.compile("BBCACHE_REQUIRE_TOOLS|PYTEST_XDIST_.*")
    without = {each: value for each, value in os.environ.items() if not ours.fullmatch(each)}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=without | environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_bar_from_end_to_end(tmp_path: Path) -> None:
    """Both tables, the records, the page, and the bars in pytest-benchmark's own file."""
    results, page, bench = (tmp_path / each for each in ("r.jsonl", "r.html", "b.json"))
    done = suite(*ONE, "--results", results, "--report", page, "--benchmark-json", bench)
    assert done.returncode == 0, done.stdout
    assert re.search(r"benchmark 'get, miss': 2 tests", done.stdout)
    assert "bbcache get, no entry  vs  dict under RLock + counter" in done.stdout
    assert re.search(r"[01] of 1 bars met", done.stdout)
    run, bar = read_results(results)
    assert (run["counts"], bar["name"]) == ("quick", "get-miss")
    assert len(bar["values"]) == len(bar["what_samples"]) >= 3
    assert "get-miss" in page.read_text()
    kept = json.loads(bench.read_text())
    assert [each["name"] for each in kept["bars"]] == ["get-miss"]
    assert [each["stats"]["data"] for each in kept["benchmarks"]] == [
        bar["what_samples"],
        bar["against_samples"],
    ]


def test_each_case_ends_as_its_contenders_do(tmp_path: Path) -> None:
    """A missing peer skips, a failure fails, and neither stops the other contenders."""
    results = tmp_path / "r.jsonl"
    done = suite("--results", results, cases=write_cases(tmp_path))
    assert "2 failed, 2 passed, 1 skipped" in " ".join(done.stdout.split()), done.stdout
    assert "ValueError: it went wrong" in done.stdout
    assert "theirs failed: OSError: no space" in done.stdout
    bars = [each for each in read_results(results) if each["kind"] == "bar"]
    verdicts = {each["name"]: each["verdict"] for each in bars}
    assert verdicts == {
        "good": "pass",
        "half": "peer missing",
        "broken": "error",
        "raises": "error",
        "alone": "peer missing",
    }


def test_a_missing_peer_fails_where_all_are_required(tmp_path: Path) -> None:
    """With BBCACHE_REQUIRE_TOOLS=1, which CI sets."""
    done = suite(cases=write_cases(tmp_path), BBCACHE_REQUIRE_TOOLS="1")
    assert "4 failed, 1 passed" in " ".join(done.stdout.split()), done.stdout
    assert "BBCACHE_REQUIRE_TOOLS is set, and it is not here" in done.stdout


def test_a_worse_ratio_fails_if_asked(tmp_path: Path) -> None:
    """With `--check-bars` a ratio beyond its baseline fails its case and is named."""
    done = suite("-k", "good", "--check-bars", cases=write_cases(tmp_path))
    assert done.returncode == 1, done.stdout
    assert "good is 1x; the baseline is 0.5x, the limit at most 0.625x" in done.stdout


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--results", "/nonexistent/run.jsonl"], "/nonexistent/run.jsonl cannot be written"),
        (["--report", "."], ". cannot be written"),
        (["--check-bars", "--benchmark-disable"], "--check-bars needs figures"),
    ],
)
def test_an_option_that_cannot_work_is_refused_first(options: list[str], complaint: str) -> None:
    """The error names it, before anything is measured."""
    done = suite(*ONE, *options)
    assert done.returncode == 4
    assert complaint in done.stderr
