"""How the demo's report looks."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from bbcache import Lsn
from bbcache.cli.demo_report import Progress, print_report
from bbcache.cli.demo_scenario import Codec, Report, Round

if TYPE_CHECKING:
    from collections.abc import Callable

_LSN = Lsn(0xFF_1234_5678)
_ROUND = Round(
    number=1,
    is_hit=False,
    lsn=_LSN,
    get_s=0.3456,
    unpack_s=0.25,
    start_s=0.125,
    archive_bytes=7_654_321,
    build_s=0.1,
)
_METRICS = {"count": 1234567.0, "seconds": 0.25}


def make_report() -> Report:
    """A report of two rounds."""
    return Report(
        "18.6",
        rounds=[_ROUND, replace(_ROUND, number=2, is_hit=True)],
        tar_bytes=42_000_000,
        codecs=[Codec("gzip level 9", 0.5, 8_000_000, 2_000_000)],
        cleaned_lsn=_LSN,
        metrics=_METRICS,
    )


def printed(report: Report, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The words of each line."""
    print_report(report)
    return [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]


def test_what_came_over_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    """It is said where it is so."""
    said = ["Every", "basebackup", "came", "over", "the", "network,"]
    assert said not in [line[:6] for line in printed(make_report(), capsys)]
    report = replace(make_report(), is_via_page_service=True)
    assert said in [line[:6] for line in printed(report, capsys)]


def test_everything_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Rounds, codecs, the clean-up, metrics and the verdict, in the units of the headings."""
    lines = printed(make_report(), capsys)
    figures = ["345.60", "250.00", "125.00", "FF/12345678", "7.65", "100.0"]
    assert ["1", "miss", *figures] in lines
    assert ["2", "hit", *figures] in lines
    words = ["bbcache's", "build:", "read,", "compress,", "write"]
    assert [*words, "42.0", "7.65", "100.0", "420"] in lines
    assert [*["gzip", "level", "9,", "in", "memory"], "8.0", "2.00", "500.0", "16"] in lines
    assert ["count", "1,234,567"] in lines
    assert ["seconds", "0.250000"] in lines
    assert lines[-1] == ["Everything", "checked:", "as", "promised."]
    assert any("FF/12345678" in line and "was" in line for line in lines)


def test_failures_are_in_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """No claim without a figure, and no division by a time of zero."""
    report = make_report()
    report.failures.append("a lie")
    report.cleaned_lsn = None
    report.rounds[-1] = replace(_ROUND, build_s=0.0)
    lines = printed(report, capsys)
    assert lines[-1] == ["Everything", "checked:", "not", "as", "promised."]
    assert not any("cleaned" in line for line in lines)


@pytest.mark.parametrize("columns", ["20", "80", "200"])
def test_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    """Nothing is cut off in a terminal of the usual width, nor in a narrow one."""
    monkeypatch.setattr(Console, "is_terminal", property(lambda _: True))
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    print_report(make_report())
    text = capsys.readouterr().out
    assert "…" not in text
    assert "FF/12345678" in text


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("stdout", lambda: print_report(make_report())),
        ("stderr", lambda: Progress(2).advance("first")),
    ],
)
def test_broken_pipe_is_for_the_command_to_judge(
    monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[], None]
) -> None:
    """It passes through, instead of an exit with a status that means something else."""
    reader, writer = os.pipe()
    os.close(reader)
    closed = open(writer, "w")  # noqa: SIM115 - its close fails, too
    monkeypatch.setattr(sys, name, closed)
    with pytest.raises(BrokenPipeError):
        write()
    with pytest.raises(BrokenPipeError):
        closed.close()


def test_progress_off_a_terminal_is_a_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    """A log gets plain lines on stderr; stdout stays for the result."""
    with Progress(2) as progress:
        progress.advance("first step")
        progress.advance("second")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["first step", "second"]


def test_progress_on_a_terminal_without_a_cursor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no bar can be drawn, a terminal gets a line a step, too."""
    monkeypatch.setattr(Console, "is_terminal", property(lambda _: True))
    monkeypatch.setenv("TERM", "dumb")
    with Progress(2) as progress:
        progress.advance("first step")
        progress.advance("second")
    assert capsys.readouterr().err.splitlines() == ["first step", "second"]
