"""The fault injector itself: what it counts, what it does, and that nothing escapes it."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest
from faults import fixed_host, shim
from faults.calls import Call, read_log
from faults.fork_server import HANG_S, TESTS_DIR, python_path
from faults.shim import Fault
from support.helpers import tool

if TYPE_CHECKING:
    from pathlib import Path

    from faults.harness import FaultHarness

# Every call that the shim knows and Python can make, with what it is recorded as.
_ALL_CALLS: Final = """
import fcntl, os
os.mkdir("sub")                                         # mkdir
fd = os.open("sub/f", os.O_RDWR | os.O_CREAT)           # open
os.write(fd, b"hello")                                  # write
os.pwrite(fd, b"J", 0)                                  # pwrite
os.pread(fd, 5, 0)                                      # pread
os.lseek(fd, 1, 0)                                      # lseek
os.read(fd, 4)                                          # read
os.ftruncate(fd, 3)                                     # ftruncate
os.fsync(fd); os.fdatasync(fd)                          # fsync fsync
os.fstat(fd); os.stat("sub/f"); os.lstat("sub/f")       # stat stat stat
fcntl.flock(fd, fcntl.LOCK_EX)                          # flock
fcntl.fcntl(fd, fcntl.F_GETFL)                          # fcntl
os.fchmod(fd, 0o600); os.chmod("sub/f", 0o600)          # chmod chmod
other = os.dup2(fd, 50); os.close(other); os.close(fd)  # dup close close
os.rename("sub/f", "sub/g"); os.link("sub/g", "sub/h")  # rename link
os.listdir("sub")                                       # opendir readdir*5 closedir
os.access("sub/g", os.R_OK); os.truncate("sub/g", 1)    # access truncate
os.statvfs("sub/g")                                     # statvfs
os.unlink("sub/g"); os.remove("sub/h"); os.rmdir("sub") # unlink unlink rmdir
"""
_PATH_CALLS: Final = {
    "openat": "open",
    "open": "open",
    "creat": "open",
    "newfstatat": "stat",
    "stat": "stat",
    "lstat": "stat",
    "fstat": "stat",
    "statx": "stat",
    "rename": "rename",
    "renameat": "rename",
    "renameat2": "rename",
    "unlink": "unlink",
    "unlinkat": "unlink",
    "mkdir": "mkdir",
    "mkdirat": "mkdir",
    "close": "close",
    "read": "read",
    "pread64": "pread",
    "write": "write",
    "pwrite64": "pwrite",
    "fsync": "fsync",
    "fdatasync": "fsync",
    "lseek": "lseek",
    "ftruncate": "ftruncate",
    "flock": "flock",
    "ioctl": "ioctl",
    "fcntl": "fcntl",
    "fchmod": "chmod",
    "chmod": "chmod",
    "getdents64": "readdir",
    "rmdir": "rmdir",
    "statfs": "statvfs",
}


def run(
    harness: FaultHarness, code: str, data_dir: Path, fault: Fault | None = None
) -> tuple[int, str]:
    """Run Python code under the shim, in the directory; returns exit code and stdout."""
    data_dir.mkdir(exist_ok=True)
    child = subprocess.run(
        [sys.executable, "-P", "-S", "-c", code],
        check=False,
        cwd=data_dir,
        env={
            **os.environ,
            "LD_PRELOAD": str(harness.library),
            **shim.settings(data_dir, fault, data_dir.parent / "log"),
        },
        stdout=subprocess.PIPE,
        text=True,
        timeout=HANG_S,
    )
    return child.returncode, child.stdout


def recorded(data_dir: Path) -> list[Call]:
    """What the code did."""
    return read_log(data_dir.parent / "log")


def test_every_call_is_written_down(harness: FaultHarness, tmp_path: Path) -> None:
    """Each call below the directory is recorded, by path or by descriptor, in order."""
    status, _ = run(harness, _ALL_CALLS, tmp_path / "d")
    assert status == 0
    words = " ".join(re.findall(r"# (.*)", _ALL_CALLS)).replace("readdir*5", "readdir " * 5)
    calls = recorded(tmp_path / "d")
    assert [call.op for call in calls] == words.split()
    assert {call.path for call in calls} <= {str(tmp_path / "d/sub") + end for end in _ENDS}
    assert [call.sequence for call in calls] == sorted(call.sequence for call in calls)
    written = [(call.offset, call.data) for call in calls if call.data]
    assert written == [(0, b"hello"), (0, b"J")]
    assert not any(call.error or call.is_injected for call in calls)


_ENDS: Final = ("", "/f", "/g", "/h")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES, errno.EMFILE])
def test_a_call_fails_with_the_error(harness: FaultHarness, tmp_path: Path, number: int) -> None:
    """The call chosen raises the error chosen and does nothing; those around it succeed."""
    code = """
import os
for name in "abc":
    try: os.mkdir(name)
    except OSError as error: print(name, error.errno)
"""
    fault = Fault("error", 2, number, only="mkdir")
    assert run(harness, code, tmp_path / "d", fault) == (0, f"b {number}\n")
    assert sorted(os.listdir(tmp_path / "d")) == ["a", "c"]
    assert [call.error for call in recorded(tmp_path / "d") if call.is_injected] == [number]


def test_all_calls_from_one_on_fail(harness: FaultHarness, tmp_path: Path) -> None:
    """A dead disk stays dead."""
    code = """
import os
for name in "abcd":
    try: os.mkdir(name)
    except OSError as error: print(name, error.errno)
"""
    _, out = run(harness, code, tmp_path / "d", Fault("error", 2, only="mkdir", count=0))
    assert out == "b 5\nc 5\nd 5\n"


@pytest.mark.parametrize(("kind", "size"), [("short-one", 1), ("short-half", 5)])
def test_a_transfer_is_short(
    harness: FaultHarness, tmp_path: Path, kind: shim.Kind, size: int
) -> None:
    """A short write writes less, says so, and has really written that."""
    code = """
import os
fd = os.open("f", os.O_RDWR | os.O_CREAT)
print(os.write(fd, b"0123456789"), os.write(fd, b"x"))
"""
    _, out = run(harness, code, tmp_path / "d", Fault(kind, 1, only="write"))
    assert out == f"{size} 1\n"
    assert (tmp_path / "d/f").read_bytes() == b"0123456789"[:size] + b"x"
    assert [call.data for call in recorded(tmp_path / "d") if call.op == "write"] == [
        b"0123456789"[:size],
        b"x",
    ]


@pytest.mark.parametrize(("kind", "left"), [("kill-before", ["a"]), ("kill-after", ["a", "b"])])
def test_a_kill_comes_before_or_after(
    harness: FaultHarness, tmp_path: Path, kind: shim.Kind, left: list[str]
) -> None:
    """The process dies by SIGKILL with the call's effect on the disk, or without."""
    code = "import os; [os.mkdir(name) for name in 'abc']"
    status, _ = run(harness, code, tmp_path / "d", Fault(kind, 2, only="mkdir"))
    assert status == -signal.SIGKILL
    assert sorted(os.listdir(tmp_path / "d")) == left


def test_only_what_is_below_is_counted(harness: FaultHarness, tmp_path: Path) -> None:
    """A neighbour whose name begins alike is none of our business; `..` is no way out."""
    (tmp_path / "d2").mkdir()
    code = "import os; os.mkdir('../d2/x'); os.mkdir('in'); os.stat('in')"
    assert run(harness, code, tmp_path / "d", Fault("error", 1, only="stat"))[0] == 1
    assert [call.op for call in recorded(tmp_path / "d")] == ["mkdir", "mkdir", "stat"]


def test_threads_are_counted_together(harness: FaultHarness, tmp_path: Path) -> None:
    """Every call has a number of its own, whichever thread makes it."""
    code = """
import os, threading
def work(): [os.path.exists("f") for _ in range(200)]
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
"""
    run(harness, code, tmp_path / "d")
    calls = recorded(tmp_path / "d")
    assert len({call.number for call in calls}) == len(calls) == 800
    assert len({call.thread for call in calls}) == 4


def test_outside_calls_never_fail(harness: FaultHarness, tmp_path: Path) -> None:
    """What the test itself does is recorded, but neither counted nor hit."""
    code = f"""
import os, sys
sys.path[:0] = {[str(TESTS_DIR), str(TESTS_DIR.parent)]!r}
from faults.shim import outside
with outside(): os.mkdir("a")
try: os.mkdir("b")
except OSError: print("hit")
"""
    assert run(harness, code, tmp_path / "d", Fault("error", 1, only="mkdir"))[1] == "hit\n"
    made = [call for call in recorded(tmp_path / "d") if call.op == "mkdir"]
    assert [call.number == 0 for call in made] == [True, False]


def test_nothing_escapes_the_shim(harness: FaultHarness, tmp_path: Path) -> None:
    """The kernel sees no call below the directory that the shim has not recorded.

    Only what `opendir` does inside of libc is more: an open and a look at what it opened.
    """
    strace = tool("strace")
    data_dir, log, trace = tmp_path / "d", tmp_path / "log", tmp_path / "trace"
    fixed_host.seed(data_dir)
    told = {"LD_PRELOAD": str(harness.library), **shim.settings(data_dir, log=log)}
    told["PYTHONPATH"] = python_path()
    child = subprocess.run(
        [
            *(strace, "-f", "-y", "-qq", "-o", trace),
            *(part for name, text in told.items() for part in ("-E", f"{name}={text}")),
            *(sys.executable, "-P", "-m", "faults.life", data_dir),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    if child.returncode == 1 and "ptrace" in child.stderr:
        tool("strace that may trace a process")
    assert child.returncode == 0, child.stdout + child.stderr
    seen = _seen_by_kernel(trace.read_text(errors="replace"), data_dir)
    made = Counter(call.op for call in read_log(log))
    made["close"] += made.pop("closedir")
    opened = made.pop("opendir")
    made["open"] += opened
    assert opened <= seen.pop("readdir")
    assert made["stat"] <= seen.pop("stat") <= made.pop("stat") + opened
    del made["readdir"]
    assert dict(seen) == dict(made)


def _seen_by_kernel(trace: str, data_dir: Path) -> Counter[str]:
    """Calls at or below the directory, by the shim's names."""
    lines = trace.splitlines()
    below = re.escape(str(data_dir)) + r'(?:/[^">]*)?'
    on_fd = re.compile(rf"\d+ +(\w+)\(\d+<{below}(?: \(deleted\))?>")
    on_path = re.compile(rf'\d+ +(\w+)\((?:AT_FDCWD(?:<[^>]*>)?, )?"{below}"')
    # A thread's call may end on another line, so what it has opened is not to be seen here.
    again = re.compile(r'\d+ +(\w+)\(AT_FDCWD(?:<[^>]*>)?, "/proc/self/fd/\d+"')
    patterns = (on_fd, on_path, again)
    found = (next(filter(None, (each.match(line) for each in patterns)), None) for line in lines)
    return Counter(_PATH_CALLS.get(match[1], match[1]) for match in found if match)
