"""The ``bbcache`` command: its arguments, its exit codes, signals, and what it needs."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bbcache import __version__
from bbcache.cli import demo, main
from bbcache.cli.stop_signals import Stopped

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from pathlib import Path

BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
# Python's finders, with one in front that knows a package not to be there.
_WITHOUT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from bbcache.cli import main
sys.exit(main(sys.argv[2:]))
"""


def run_python(*args: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run Python; return its exit status, and what it wrote to stdout and stderr."""
    done = subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        check=False,
        text=True,
        env={**os.environ, **(env or {})},
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_is_installed() -> None:
    """The package brings a command of its name."""
    (entry_point,) = importlib.metadata.entry_points(group="console_scripts", name="bbcache")
    assert entry_point.load() is main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the package's."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"bbcache {__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        ("serve", "--root", ""),
        ("serve", "--root", "root", "--config", ""),
        ("fetch", "url", "0" * 32, "0" * 32, ""),
        ("verify", ""),
        ("why", "--root", "", "0" * 32, "0" * 32),
        ("demo", "--dir", ""),
    ],
    ids=lambda argv: argv[0],
)
def test_an_empty_path_is_not_the_current_directory(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is what an unset variable of a script becomes, and is refused."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "it is empty" in capsys.readouterr().err


def test_a_current_directory_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A relative path leads nowhere, which is an error with a hint."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for argv in (["serve", "--root", "root"], ["verify", "cache"]):
        assert main(argv) == 2
        assert f"{argv[0]} has failed: No such file or directory\nhint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["--help"], ["demo", "serve", "verify", "why", "exit codes: 0 success"]),
        (["why", "--help"], ["--url", "--root", "--json", "evictions", "examples:"]),
        (["demo", "--help"], ["--rounds", "--scale", "--dir", "--pg-bin", "--json", "20,000 rows"]),
    ],
)
def test_help(capsys: pytest.CaptureFixture[str], argv: list[str], wanted: list[str]) -> None:
    """`--help` names what there is."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert [each for each in wanted if each not in text] == []


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["demo", "--rounds", "1"], "--rounds: '1' is not a whole number of at least 2"),
        (["demo", "--scale", "0"], "--scale: '0' is not a whole number from 1 to 100"),
        (["demo", "--scale", "101"], "--scale: '101' is not a whole number from 1 to 100"),
        (["demo", "--rounds", "2.5"], "--rounds: '2.5' is not a whole number of at least 2"),
        (["demo", "--scale", "-3"], "--scale: '-3' is not a whole number from 1 to 100"),
        (["demo", "now"], "unrecognized arguments: now"),
    ],
)
def test_wrong_arguments(
    capsys: pytest.CaptureFixture[str], argv: list[str], complaint: str
) -> None:
    """They are named, and the status is 2."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_no_postgres_at_the_given_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The place is named, what to install is said, the status is 2."""
    assert main(["demo", "--pg-bin", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"bbcache: error: no initdb in {tmp_path}"
    assert lines[1].startswith("hint: Install PostgreSQL")


def test_a_directory_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named, and the status is 2."""
    path = tmp_path / "file"
    path.touch()
    assert main(["demo", "--dir", str(path)]) == 2
    assert capsys.readouterr().err == f"bbcache: error: {path} is not a directory\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_a_directory_that_is_closed_to_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As root, the closed directory is named, how to open it is said, the status is 2."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    tmp_path.chmod(0o700)
    assert main(["demo", "--dir", str(closed)]) == 2
    text = capsys.readouterr().err
    assert "is closed to it" in text
    assert "chmod o+x" in text


@pytest.mark.parametrize("package", ["google_crc32c", "psycopg", "rich"])
def test_demo_without_a_package(package: str) -> None:
    """The package is named, the extra that brings it is said, the status is 2."""
    status, out, err = run_python("-c", _WITHOUT, package, "demo")
    assert (status, out) == (2, "")
    assert err == (
        f"bbcache: error: the demo cannot start: No module named '{package}'\n"
        "hint: Install what it needs with `pip install 'bbcache[demo]'`.\n"
    )


_NO_SERVICE = "the service cannot start"
_NO_TOKENS = "bbcache.page_service.auth.tokens cannot be imported"


@pytest.mark.parametrize(
    ("package", "options", "complaint"),
    [
        ("google_crc32c", [], _NO_SERVICE),
        ("jwt", ["--auth-keys", "key.pem"], _NO_TOKENS),
        ("cryptography", ["--auth-keys", "key.pem"], _NO_TOKENS),
    ],
)
def test_serve_without_a_package(
    package: str, options: list[str], complaint: str, tmp_path: Path
) -> None:
    """The package is named, the extra that brings it is said, the status is 2."""
    argv = ["serve", "--create", "--root", str(tmp_path / "root"), *options]
    status, out, err = run_python("-c", _WITHOUT, package, *argv)
    assert (status, out) == (2, "")
    assert err == (
        f"bbcache: error: {complaint}: No module named '{package}'\n"
        "hint: Install what it needs with `pip install 'bbcache[serve]'`.\n"
    )
    assert not (tmp_path / "root").exists()
    assert run_python("-c", _WITHOUT, package, "serve", "--help")[0] == 0


def test_demo_with_a_driver_that_cannot_be_loaded() -> None:
    """A driver without its library is an error with a hint, too."""
    status, _, err = run_python("-m", "bbcache.cli", "demo", env={"PSYCOPG_IMPL": "none"})
    assert status == 2
    assert err.startswith("bbcache: error: the demo cannot start: ")
    assert err.endswith("hint: Install what it needs with `pip install 'bbcache[demo]'`.\n")


@pytest.mark.parametrize("package", ["google_crc32c", "psycopg", "rich"])
def test_the_rest_needs_no_extra(package: str) -> None:
    """Help is there in a bare installation."""
    status, out, _ = run_python("-c", _WITHOUT, package, "demo", "--help")
    assert status == 0
    assert "--rounds" in out


def test_a_command_imports_no_other() -> None:
    """A fetch need not wait for all that a service or a check of a cache imports."""
    code = "import sys; from bbcache.cli.main import make_parser; make_parser('fetch')"
    _, out, _ = run_python("-c", f"{code}; print(*sys.modules)")
    assert "bbcache.cli.fetch" in out.split()
    assert not {"bbcache.page_service", "bbcache.storage.verify"} & set(out.split())


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Stopped(signal.SIGHUP), 129, "bbcache: hung up\n"),
        (Stopped(signal.SIGINT), 130, "bbcache: interrupted\n"),
        (KeyboardInterrupt(), 130, "bbcache: interrupted\n"),
        (Stopped(signal.SIGTERM), 143, "bbcache: terminated\n"),
    ],
)
def test_stopped_by_a_signal(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: KeyboardInterrupt,
    status: int,
    said: str,
) -> None:
    """The status is what a shell makes of the signal."""

    def run(_options: argparse.Namespace) -> bool:
        raise error

    monkeypatch.setattr(demo, "run", run)
    assert main(["demo"]) == status
    assert capsys.readouterr().err == said


def test_output_that_nobody_reads(tmp_path: Path) -> None:
    """As with ``| head``: the status is that of SIGPIPE, and nothing is complained about."""
    (tmp_path / ".bbcache.lock").touch()
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        argv = [sys.executable, "-m", "bbcache.cli", "verify", str(tmp_path)]
        done = subprocess.run(
            argv, stdout=closed, stderr=subprocess.PIPE, check=False, env=BUFFERED
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    """A full disk is an error, also where it is met at the very end."""
    (tmp_path / ".bbcache.lock").touch()
    with open("/dev/full", "wb") as full:
        argv = [sys.executable, "-m", "bbcache.cli", "verify", str(tmp_path)]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, check=False, env=BUFFERED)
    assert done.returncode == 2
    assert done.stderr == (
        b"bbcache: error: verify has failed at standard output: No space left on device\n"
        b"hint: Free space on the file system.\n"
    )


def test_output_that_is_closed(tmp_path: Path) -> None:
    """Without a stdout, as a daemon has it, the status alone tells."""
    (tmp_path / ".bbcache.lock").touch()
    script = f'exec "{sys.executable}" -m bbcache.cli verify "$0" >&-'
    done = subprocess.run(["sh", "-c", script, tmp_path], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
