"""How the tests are shared out among workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.scheduling import LONG

_ROOT = Path(__file__).parents[2]
_CONFTEST = """
from support.scheduling import BedScheduling

def pytest_xdist_make_scheduler(config, log):
    return BedScheduling(config, log)
"""
# The worker of this file is lost in the test in the middle, the first time.
_FATAL = """
import os, pathlib, signal

def test_first():
    pass

def test_fatal():
    mark = pathlib.Path(__file__).with_suffix(".mark")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

def test_last():
    pass
"""
_ONE = "def test_one(): pass\n"


def test_what_begins_first_is_there() -> None:
    """A file that is renamed is renamed in the list, too."""
    assert [name for name in LONG if not (_ROOT / name).exists()] == []


@pytest.mark.parametrize("others", [0, 1, 5])
def test_the_tests_of_a_lost_worker_are_run(tmp_path: Path, others: int) -> None:
    """By the worker that takes its place, also when nothing else was left to do."""
    pytest.importorskip("xdist")
    (tmp_path / "conftest.py").write_text(_CONFTEST)
    (tmp_path / "test_fatal.py").write_text(_FATAL)
    for number in range(others):
        (tmp_path / f"test_{number}.py").write_text(_ONE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "1", "--dist", "loadfile", tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"1 failed, {others + 3} passed" in done.stdout, done.stdout
