"""The profilers: found or not, and what they write."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.profiling.__main__ import main
from benchmarks.profiling.sampler import ProfilerError, parse_calls, sample

if TYPE_CHECKING:
    from pathlib import Path

CALLS = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 83,30    0,001000           8       120        10 futex
 16.70    0.000200         200         1           fsync
------ ----------- ----------- --------- --------- ----------------
100.00    0.001200           9       121        10 total
"""


def test_a_missing_profiler_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what to do about it, before anything is made."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["get-miss"]) == 1
    assert capsys.readouterr().err == (
        "py-spy is not installed\n"
        "hint: `tox -e profile` installs it by itself; else `pip install py-spy`.\n"
    )


def test_a_profiler_that_fails_is_told() -> None:
    """With a hint at what most often is the cause."""
    program = shutil.which("false")
    assert program is not None
    with pytest.raises(ProfilerError, match=r"py-spy has failed: \nhint: Run it as root"):
        sample(program, lambda: None, 1, ())


def test_calls_are_read_from_the_table_of_strace() -> None:
    """With errors and without, whatever the locale; the total is none."""
    assert parse_calls(CALLS.splitlines()) == {"futex": 120, "fsync": 1}
