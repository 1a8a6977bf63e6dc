"""The script that runs the suite many times."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_SCRIPT = Path(__file__).with_name("many_runs.py")
_TEST = """
import os, signal, sys, tempfile

def test_circumstances():
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    in_memory = tempfile.gettempdir().startswith("/dev/shm/")
    alone = os.getsid(0) == os.getpid()
    assert (ignored, in_memory, alone) == {expected}
"""


def run(tmp_path: Path, expected: tuple[bool, bool, bool], *kinds: str) -> tuple[int, list[str]]:
    """Run the script with one test; returns its status and the lines that it prints."""
    # A name for each: of two texts of one size and second, Python would compile the first alone.
    test_path = tmp_path / f"test_{kinds[0].partition('=')[0]}.py"
    test_path.write_text(_TEST.format(expected=expected))
    pytest_args = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(test_path)]
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), "--here", *kinds, "--pytest", *pytest_args],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={
            **os.environ,
            "TMPDIR": "/tmp",  # noqa: S108 - the outer run may be in memory
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # to load them takes most of the time
        },
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_each_kind_of_run_has_its_circumstances(tmp_path: Path) -> None:
    """Ignored signals, a session of its own, TMPDIR in memory; and all of them are green."""
    for kind, expected in {
        "nohup": (True, False, False),
        "setsid": (False, False, True),
        "tmpfs": (False, True, False),
    }.items():
        status, lines = run(tmp_path, expected, kind)
        assert status == 0, lines
        assert lines[0].startswith(f"{kind}: status 0 after ")
        assert "1 passed" in lines[0]
        assert lines[-1] == "all runs passed"


def test_a_run_that_is_not_green_is_told(tmp_path: Path) -> None:
    """By the status, in the closing line, and with what the tests have printed."""
    status, lines = run(tmp_path, (True, True, True), "plain=1")
    assert status == 1
    assert lines[0].startswith("plain: status 1 after ")
    assert any("AssertionError" in line for line in lines)
    assert lines[-1] == "1 of 1 runs failed"
