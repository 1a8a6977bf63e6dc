"""``bbcache fetch``: its arguments, and what it needs. What it does is tested in tests/fetch."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from cli.test_cli_usage import _WITHOUT, run_python
from support.helpers import TENANT, TIMELINE

from bbcache.cli import main
from bbcache.cli.fetch import add_parser
from bbcache.ids import Lsn

URL = "postgresql://127.0.0.1:1/"
IDS = (str(TENANT), str(TIMELINE))


def parsed(*words: str) -> argparse.Namespace:
    """What the command makes of its arguments."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["fetch", *words])


@pytest.mark.parametrize(
    ("words", "lsn"), [(["0/28"], Lsn(0x28)), (["latest"], "latest"), ([], None)]
)
def test_the_lsn_may_be_left_out(words: list[str], lsn: Lsn | str | None) -> None:
    """Options go before the arguments, or behind them."""
    for argv in (["--json", URL, *IDS, *words, "d"], [URL, *IDS, *words, "d", "--json"]):
        options = parsed(*argv)
        assert (options.url, options.tenant, options.timeline) == (URL, TENANT, TIMELINE)
        assert (options.lsn, str(options.dest), options.json) == (lsn, "d", True)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "the following arguments are required: URL, TENANT, TIMELINE, DEST"),
        ([URL, "x", IDS[1], "d"], "argument TENANT: TenantId takes 32 hex digits, not 'x'"),
        ([URL, IDS[0], "x", "d"], "argument TIMELINE: TimelineId takes 32 hex digits, not 'x'"),
        ([URL, *IDS, "x", "d"], "argument LSN: Lsn takes a text such as 0/16B5A50, not 'x'"),
        (["--attempts", "x", URL, *IDS, "d"], "argument --attempts: invalid int value: 'x'"),
    ],
)
def test_wrong_arguments(
    capsys: pytest.CaptureFixture[str], argv: list[str], complaint: str
) -> None:
    """They are named, and the status is 2."""
    with pytest.raises(SystemExit) as ended:
        main(["fetch", *argv])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_errors_before_the_first_attempt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad limit, owner, token file or DEST: one line, and the status is 2."""
    empty = tmp_path / "empty"
    empty.touch()
    dest = str(tmp_path / "dest")
    for argv, said in (
        (["--attempts", "0", URL, *IDS, dest], "attempt_count is 0, but must be at least 1"),
        (["--timeout", "nan", URL, *IDS, dest], "timeout_s is nan"),
        (["--owner", "no.such.user", URL, *IDS, dest], "there is no user no.such.user"),
        (["--token-file", str(empty), URL, *IDS, dest], f"there is no token in {empty}"),
        (["--token-file", f"{empty}0", URL, *IDS, dest], "No such file or directory"),
        ([URL, *IDS, str(tmp_path)], f"{tmp_path} is not empty: empty is there"),
    ):
        assert main(["fetch", *argv]) == 2
        assert capsys.readouterr().err.startswith("bbcache: error: ")
        assert main(["fetch", *argv]) == 2
        assert said in capsys.readouterr().err


def test_attempts_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, each with the pause behind it; nothing is on stdout but a summary."""
    argv = ["fetch", "--attempts", "2", URL, *IDS, str(tmp_path / "dest")]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    first, last = err.splitlines()[0], err.splitlines()[1]
    assert out == ""
    assert first.startswith("bbcache: attempt 1 of 2 failed: ")
    assert "Connection refused; retrying in 0." in first
    assert last.startswith("bbcache: error: attempt 2 of 2 failed, and no attempt is left: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["google_crc32c", "psycopg"])
def test_without_a_package(package: str) -> None:
    """The package is named, the extra that brings it is said, and help is there all the same."""
    status, out, err = run_python("-c", _WITHOUT, package, "fetch", URL, *IDS, "d")
    assert (status, out) == (2, "")
    assert err == (
        f"bbcache: error: bbcache fetch cannot start: No module named '{package}'\n"
        "hint: Install what it needs with `pip install 'bbcache[fetch]'`.\n"
    )
    status, out, _ = run_python("-c", _WITHOUT, package, "fetch", "--help")
    assert status == 0
    assert "bbcache fetch [options] URL TENANT TIMELINE [LSN] DEST" in out


def test_every_option_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/fetch.md names each that the help has."""
    with pytest.raises(SystemExit):
        main(["fetch", "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    page = (Path(__file__).parents[2] / "docs/fetch.md").read_text()
    assert options == {option for option in options if f"`{option}" in page}
    assert len(options) == 9
