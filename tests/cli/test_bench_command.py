"""``bbcache bench``: its arguments, what it prints and writes, its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.bench_helpers import TINY, make_report

from bbcache.bench import regressions, scene
from bbcache.bench.report import read_report
from bbcache.cli import main

if TYPE_CHECKING:
    from pathlib import Path

ONE = ("bench", "--quick", "--only", "get-miss")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Counts with which a bar takes no time, and a directory of this test's own."""
    monkeypatch.setattr(scene, "QUICK", TINY)
    (tmp_path / "work").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "work"))


def test_one_bar_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table on stdout, progress on stderr, JSON, the page, and old ratios beside new ones."""
    old, new, html = (tmp_path / name for name in ("old.json", "new.json", "run.html"))
    assert main([*ONE, "--json", str(old)]) == 0
    capsys.readouterr()
    options = ["--json", str(new), "--html", str(html), "--compare", str(old)]
    assert main([*ONE, *options]) == 0
    captured = capsys.readouterr()
    assert "get-miss" in captured.out
    assert "vs  dict under RLock + counter" in captured.out
    assert "1 of 1 bars met" in captured.out or "0 of 1 bars met" in captured.out
    assert " -> " in captured.out.splitlines()[-1]
    assert " 1 of 1  get, miss, 1 bar\n" in captured.err
    assert "quick: fewer rounds" in captured.err
    report = read_report(new)
    assert [outcome.bar.name for outcome in report.outcomes] == ["get-miss"]
    assert report.versions["isal"]
    assert set(report.machine) >= {"CPU", "Python", "file system"}
    assert "get-miss" in html.read_text()
    assert list((tmp_path / "work").iterdir()) == []


def test_plots_are_written_as_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file each, named after what it shows."""
    report = make_report()
    monkeypatch.setattr("bbcache.bench.suite.run", lambda *_: ([], report.figures))
    assert main([*ONE, "--svg", str(tmp_path)]) == 0
    names = {path.name for path in tmp_path.glob("*.svg")}
    assert names == {"codecs-lean.svg", "latencies.svg", "growth-1.svg"}


def test_the_list_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """It names what `--only` takes, and only that with `--only`."""
    assert main(["bench", "--list"]) == 0
    whole = capsys.readouterr()
    assert "prepare-lean: at most 1.2x" in whole.out
    assert whole.err == ""
    assert main(["bench", "--list", "--only", "restore*"]) == 0
    part = capsys.readouterr().out
    assert "restore-tar: at least 1.8x faster" in part
    assert "prepare-lean" not in part


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """What a bar is, every option, examples, and the exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    options = ("quick", "only", "list", "json", "html", "svg", "compare", "check", "dir", "pg-bin")
    wanted = [*(f"--{option}" for option in options), "examples:", "exit code", "Every line of"]
    assert [each for each in wanted if each not in text] == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--only", "frobnicate"], "no bar is called like frobnicate\nhint: "),
        (["--json", "/nonexistent/run.json"], "/nonexistent/run.json cannot be written"),
        (["--html", "."], ". cannot be written"),
        (["--svg", "/nonexistent"], "/nonexistent is not a directory"),
        (["--dir", "/nonexistent"], "/nonexistent is not a directory"),
        (["--compare", "/dev/null"], "/dev/null is no file of `bbcache bench --json`"),
        (["--compare", "/nonexistent/run.json"], "/nonexistent/run.json"),
    ],
)
def test_what_cannot_work_is_said_before_it_begins(
    capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    """It is named, and nothing has been measured."""
    assert main(["bench", "--quick", *options]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert "1 of" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("reached", "status", "complaint"),
    [(1e-6, 1, "bbcache: worse than before: get-miss is "), (1e6, 0, "")],
)
def test_check_fails_where_a_ratio_has_got_worse(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reached: float,
    status: int,
    complaint: str,
) -> None:
    """Only with `--check`, and only where it is worse than was reached once."""
    locked = {"get-miss": regressions.Locked(reached, 0.25)}
    monkeypatch.setattr(regressions, "read_locked", lambda: locked)
    assert main([*ONE, "--check"]) == status
    assert complaint in capsys.readouterr().err
    assert main(ONE) == 0


def test_an_error_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bar that could not be measured is not passed over, check or not."""
    report = make_report()
    monkeypatch.setattr("bbcache.bench.suite.run", lambda *_: (report.outcomes, report.figures))
    assert main(ONE) == 1
    assert "1 could not be measured" in capsys.readouterr().out


def test_nothing_of_it_is_loaded_before_it_is_wanted() -> None:
    """`bbcache --help`, and every other command, go without it."""
    script = (
        "import sys\n"
        "from bbcache.cli import main\n"
        "try:\n    main(['bench', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "import json; print('\\n' + json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in loaded if name.startswith("bbcache.bench")] == []
    assert "bbcache.cli.bench" in loaded
