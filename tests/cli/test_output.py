"""Standard streams that are closed, full or without a reader, under every command."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cli.test_cli_usage import BUFFERED
from support.helpers import TENANT, TIMELINE

if TYPE_CHECKING:
    from pathlib import Path

NOWHERE = "postgresql://127.0.0.1:1/"
IDS = (str(TENANT), str(TIMELINE))


def run(redirections: str, *argv: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run the command with a shell's redirections; its status, stdout and stderr."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "bbcache.cli", *argv],
        check=False,
        capture_output=True,
        text=True,
        env=env or BUFFERED,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """A cache directory with a foreign file that cannot be printed, and nothing else."""
    (tmp_path / ".bbcache.lock").touch()
    (tmp_path / os.fsdecode(b"\xff\n")).touch()
    return tmp_path


@pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full", ">&-", "<&-", ">&- 2>&- <&-"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_stream_that_is_not_there_changes_no_status(
    cache_dir: Path, redirections: str, options: list[str]
) -> None:
    """A command that prints its result runs to its end, and says nothing in the wrong place."""
    status, out, err = run(redirections, "verify", *options, str(cache_dir))
    assert (status, err) == (0, "")
    assert bool(out) == (">&-" not in redirections.replace("2>&-", ""))


@pytest.mark.parametrize("redirections", ["2>&-", "2>/dev/full"])
def test_an_error_that_cannot_be_told_keeps_its_status(tmp_path: Path, redirections: str) -> None:
    """The complaint is dropped: stdout is for results."""
    for argv, wanted in (
        (["verify", str(tmp_path / "nowhere")], 2),
        (["verify", str(tmp_path)], 3),
        (["serve", "--root", str(tmp_path / "nowhere"), "--no-http"], 2),
        (["demo", "--pg-bin", str(tmp_path)], 2),
        (["fetch", "--attempts", "1", NOWHERE, *IDS, str(tmp_path / "dest")], 2),
        (["frobnicate"], 2),
    ):
        assert run(redirections, *argv) == (wanted, "", "")


def test_attempts_that_cannot_be_told_go_on(tmp_path: Path) -> None:
    """A line of progress does not end what it is about: all attempts are made."""
    reader, writer = os.pipe()
    os.close(reader)
    argv = ["fetch", "--attempts", "2", NOWHERE, *IDS]
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "bbcache.cli", *argv, str(tmp_path / "dest")],
            check=False,
            stdout=subprocess.PIPE,
            stderr=closed,
        )
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["serve", "--help"]])
def test_help_that_nobody_reads(argv: list[str]) -> None:
    """It ends quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "bbcache.cli", *argv],
            check=False,
            stdout=closed,
            stderr=subprocess.PIPE,
            env=BUFFERED,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_name_that_the_locale_cannot_print(cache_dir: Path) -> None:
    """It is escaped, also under the C locale."""
    path = cache_dir / "basebackup_ä"
    path.touch()
    env = {**BUFFERED, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    status, out, err = run("", "verify", str(cache_dir), env=env)
    assert (status, err) == (0, "")
    assert "2 foreign file" in out
