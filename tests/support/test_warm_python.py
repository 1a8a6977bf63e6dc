"""A fork of a warm Python is a process like one that was just started."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from support.process_children import say

if TYPE_CHECKING:
    from pathlib import Path

    from support.warm_python import WarmChild, WarmPython

_HERE = "support.test_warm_python"


def start(warm_python: WarmPython, code: str) -> WarmChild:
    """Run code in a process of its own."""
    return warm_python.start(f"{_HERE}:run", code)


def run(code: str) -> None:
    """Run code."""
    exec(code, {"say": say})  # noqa: S102 - of this module


@pytest.mark.parametrize(
    ("code", "status", "complaint"),
    [
        ("", 0, ""),
        ("import sys; sys.exit(5)", 5, ""),
        ("raise LookupError('the end')", 1, "LookupError: the end"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import signal; signal.raise_signal(signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_it_ends_as_python_does(
    warm_python: WarmPython, code: str, status: int, complaint: str
) -> None:
    """Its status is that of an exit, of an exception, or of a signal."""
    with start(warm_python, code) as child:
        _, err = child.communicate(60)
    assert child.returncode == status
    assert err.strip().rpartition("\n")[2] == complaint


def test_the_interpreter_exits_in_order(warm_python: WarmPython) -> None:
    """Threads are joined, then what was registered for the exit runs, and the output is flushed."""
    code = """
import atexit, threading
atexit.register(lambda: print("at the exit"))
threading.Thread(target=lambda: (threading.Event().wait(0.01), print("in a thread"))).start()
print("in the main thread")
"""
    with start(warm_python, code) as child:
        assert child.communicate(60) == ("in the main thread\nin a thread\nat the exit\n", "")


def test_it_has_streams_place_and_environment_of_its_starter(
    warm_python: WarmPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are when it starts, and no other descriptor."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOR_THE_CHILD", "yes")
    code = """
import os, sys
say(f"{sys.stdin.readline().strip()} {os.getcwd()} {os.environ['FOR_THE_CHILD']}")
say(" ".join(name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/dev/fd/{name}")))
"""
    with start(warm_python, code) as child:
        child.stdin.write("told\n")
        child.stdin.flush()
        out, err = child.communicate(60)
    assert (out.splitlines(), err) == ([f"told {tmp_path} yes", "0 1 2"], "")


def test_it_can_be_killed(warm_python: WarmPython) -> None:
    """It is the process of the pid, and lives until then."""
    with start(warm_python, "import os; say(str(os.getpid())); input()") as child:
        assert child.stdout.readline() == f"{child.pid}\n"
        assert child.poll() is None
        child.kill()
        assert child.wait(60) == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)
