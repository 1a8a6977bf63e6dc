"""`pytest benchmarks/`, from its options to its files."""

from __future__ import annotations

import json
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


def suite(*options: object) -> subprocess.CompletedProcess[str]:
    """Run the suite."""
    command = [sys.executable, "-m", "pytest", "benchmarks", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


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


def test_a_worse_ratio_fails_if_asked(tmp_path: Path) -> None:
    """With `--check-bars` a ratio beyond its baseline fails its case and is named."""
    (tmp_path / "conftest.py").write_text(
        "from benchmarks import baseline, conftest\n"
        "worse = {'get-miss': baseline.Baseline(1e-6, 0.25)}\n"
        "conftest.read_baseline = lambda: worse\n"
    )
    plugin = ("-p", "conftest", f"--override-ini=pythonpath=. {tmp_path}")
    done = suite(*ONE, "--check-bars", *plugin)
    assert done.returncode == 1, done.stdout
    assert "get-miss is " in done.stdout
    assert "the baseline is 1e-06x" in done.stdout


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
