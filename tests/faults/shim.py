"""The fault injector: building `shim.c`, and what it is told.

A preloaded library and not ``strace -e inject``, because it

- counts the calls of all threads together, and only those below one directory;
  strace counts for each thread and each kind of call, wherever it goes to;
- can cut a transfer short, which strace can only pretend: the bytes it says were
  written are not there;
- kills on either side of a call, so that "done, but nobody has heard of it" is met;
- writes down what was written, from which `power_loss` builds what a disk may hold;
- costs a few microseconds a call, so that thousands of lives take minutes, and needs
  no right to trace a process.

strace has its use all the same: `test_shim` proves by it that no call below the
directory escapes the library.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SOURCE: Final = Path(__file__).with_name("shim.c")
COMPILERS: Final = ("cc", "gcc", "clang")
# Fortified headers would put wrappers of their own between a name and its function.
_FLAGS: Final = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE")
_PREFIX: Final = "BBCACHE_FAULT_"

Kind = Literal["error", "short-one", "short-half", "kill-before", "kill-after"]


def find_compiler() -> str | None:
    """The path of a C compiler; None where there is none."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def build(directory: Path, compiler: str) -> Path:
    """Compile the library into `directory`; returns its path."""
    library = directory / "shim.so"
    subprocess.run([compiler, *_FLAGS, "-o", library, SOURCE, "-ldl"], check=True)
    return library


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one call, or to several in a row.

    Attributes:
        kind: what happens: the call fails, transfers fewer bytes, or is the last.
        at: which call, counted from 1.
        errno: the error, where it fails.
        only: names of the calls that are counted, by commas; all where empty.
        count: how many calls in a row meet it; 0 for all that follow.
    """

    kind: Kind
    at: int
    errno: int = errno.EIO
    only: str = ""
    count: int = 1

    def __str__(self) -> str:
        what = errno.errorcode[self.errno] if self.kind == "error" else self.kind
        calls = f" of {self.only}" if self.only else ""
        rest = "" if self.count == 1 else " and on" if self.count == 0 else f" (x{self.count})"
        return f"{what} at call {self.at}{calls}{rest}"

    @property
    def kills(self) -> bool:
        """Whether the process does not outlive it."""
        return self.kind.startswith("kill-")


def settings(
    data_dir: str | os.PathLike[str],
    fault: Fault | None = None,
    log: str | os.PathLike[str] | None = None,
) -> dict[str, str]:
    """The environment that tells the library where to look, and what to do."""
    told = {"DIR": os.fspath(data_dir)}
    if log is not None:
        told["LOG"] = os.fspath(log)
    if fault is not None:
        told |= {"KIND": fault.kind, "AT": str(fault.at), "ERRNO": str(fault.errno)}
        told |= {"ONLY": fault.only, "COUNT": str(fault.count)}
    return {_PREFIX + name: text for name, text in told.items()}


def arm(told: Mapping[str, str]) -> None:
    """Begin to count in this very process, which was started with the library."""
    for name in [name for name in os.environ if name.startswith(_PREFIX)]:
        del os.environ[name]
    os.environ.update(told)
    ctypes.CDLL(None).bbcache_fault_arm()


def hits() -> int:
    """How many calls have met the fault; 0 in a process without the library."""
    count = getattr(ctypes.CDLL(None), "bbcache_fault_hits", None)
    return count() if count else 0


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Let this thread touch the directory as somebody else would: recorded, never failing."""
    set_outside = getattr(ctypes.CDLL(None), "bbcache_fault_outside", None)
    if set_outside is None:  # a process without the library
        yield
        return
    set_outside(1)
    try:
        yield
    finally:
        set_outside(0)
