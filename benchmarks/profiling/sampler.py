"""py-spy and strace, which look into a process from outside."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bbcache.errors import BbcacheError
from benchmarks.profiling.stacks import Stack, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_SHOWN: Final = 800
_TIMEOUT_S: Final = 60.0
_CALLS_COLUMN: Final = 3


class ProfilerError(BbcacheError):
    """A profiler is not installed, or cannot look into the process."""


def find_py_spy() -> str:
    """The path of py-spy, beside this interpreter or on PATH.

    Raises:
        ProfilerError: it is not installed.
    """
    path = shutil.which("py-spy", path=os.path.dirname(sys.executable)) or shutil.which("py-spy")
    if path is None:
        raise ProfilerError(
            "py-spy is not installed\n"
            "hint: `tox -e profile` installs it by itself; else `pip install py-spy`."
        )
    return path


def sample(
    py_spy: str, work: Callable[[], object], duration_s: int, options: Sequence[str]
) -> list[Stack]:
    """Sample this process, and those that it has started, while some work is done.

    Args:
        py_spy: its path.
        work: called again and again until the profiler has ended.
        duration_s: how long it samples.
        options: for ``py-spy record``.

    Raises:
        ProfilerError: it has failed.
    """
    with tempfile.TemporaryDirectory(prefix="bbcache-profile-") as name:
        raw_path, log_path = Path(name) / "raw", Path(name) / "log"
        command = [py_spy, "record", "--pid", str(os.getpid()), "--duration", str(duration_s)]
        command += ["--format", "raw", "--threads", "--output", str(raw_path), *options]
        with log_path.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as spy:
            while spy.poll() is None:
                work()
        if spy.returncode != 0 or not raw_path.exists():
            raise ProfilerError(
                f"py-spy has failed: {log_path.read_text()[-_SHOWN:].strip()}\n"
                "hint: Run it as root, or allow a process to look into others of its user: "
                "`sysctl kernel.yama.ptrace_scope=0`."
            )
        return list(parse(raw_path.read_text().splitlines()))


def count_calls(work: Callable[[], object], duration_s: float) -> dict[str, float] | None:
    """System calls of this process, by name and a round, as ``strace -c -f`` counts them.

    Args:
        work: one round; called again and again.
        duration_s: how long.

    Returns:
        None where strace is not installed, or may not look into this process.
    """
    strace = shutil.which("strace")
    if strace is None:
        return None
    with tempfile.TemporaryDirectory(prefix="bbcache-profile-") as name:
        path = Path(name) / "calls"
        command = [strace, "-c", "-f", "-o", str(path), "-p", str(os.getpid())]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            process.stderr.readline()  # it has attached
            round_count = _repeat(work, duration_s)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=_TIMEOUT_S)
        text = path.read_text() if path.exists() else ""
    calls = parse_calls(text.splitlines())
    return {name: count / round_count for name, count in calls.items()} or None


def _repeat(work: Callable[[], object], duration_s: float) -> int:
    count, ends_s = 0, time.monotonic() + duration_s
    while time.monotonic() < ends_s:
        work()
        count += 1
    return count


def parse_calls(lines: Iterable[str]) -> dict[str, int]:
    """The numbers of calls in a table of ``strace -c``, by name."""
    rows = [line.split() for line in lines]
    known = [row for row in rows if len(row) > _CALLS_COLUMN and row[_CALLS_COLUMN].isdigit()]
    return {row[-1]: int(row[_CALLS_COLUMN]) for row in known if row[-1] != "total"}
