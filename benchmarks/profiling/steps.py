"""Which step of the work a stack belongs to, by the functions that are on it.

What was called last says most: a system call, a codec, or the GIL. Else it is the
innermost function of Python that belongs to a part of bbcache; the standard library
works on behalf of whoever calls it.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.profiling.stacks import Frame, Stack

GIL: Final = "waiting for the GIL"
ASLEEP: Final = "asleep"
HAND_OVER: Final = "hand-overs: no worker at work"
OTHER: Final = "other Python"
_MEMORY: Final = "memory: copy, compare, allocate"
KERNEL: Final = "kernel: "
CODEC: Final = "ISA-L"

# Done between rounds, or by the stopwatch: untimed.
_UNTIMED: Final = frozenset(
    (
        "_emptied",
        "fresh_directories",
        "_start.<locals>.close_last",
        "Pipeline.add_timeline",
        "Pipeline.add_pgdata_timeline",
        "building",
        "_threads",
        "clock_cost_ns",
        "quantile_of_sorted",
    )
)
_SORTING: Final = "Latencies.round"  # by itself, and not in what it calls


class Rule(NamedTuple):
    """What makes a step of a frame.

    Attributes:
        step: its name.
        functions: patterns, as of the shell; one has to match.
        files: the same, of the file; none means any.
    """

    step: str
    functions: tuple[str, ...] = ("*",)
    files: tuple[str, ...] = ("*",)

    def matches(self, frame: Frame) -> bool:
        """Whether this is such a frame."""
        return any(fnmatchcase(frame.function, each) for each in self.functions) and any(
            fnmatchcase(frame.file, each) for each in self.files
        )


# Of what Python has called outside of Python. Python's locks are semaphores on Linux, and
# the GIL alone is a condition variable, whose name is left in an interpreter without
# symbols. The first rule that matches any of the frames has it.
_NATIVE: Final = (
    Rule(
        GIL,
        (
            "take_gil",
            "drop_gil*",
            "PyEval_RestoreThread",
            "PyEval_AcquireThread",
            "PyEval_SaveThread",
            "*pthread_cond_*",
            "*pthread_mutex_*",
        ),
    ),
    Rule("locks", ("PyThread_*_lock*", "_PySemaphore_*", "sem_*wait*", "sem_post*")),
    Rule(
        ASLEEP,
        (
            "*poll",
            "epoll_*wait",
            "select",
            "accept*",
            "recv*",  # the page service's threads wait for their clients there
            "wait4",
            "waitpid",
            "clock_nanosleep",
        ),
        ("libc*", "libpython*", "python*", "*pthread*"),
    ),
    Rule(KERNEL + "fsync", ("fsync", "fdatasync")),
    Rule(KERNEL + "read", ("read", "readv", "pread*", "lseek*")),
    Rule(KERNEL + "write", ("write", "writev", "pwrite*")),
    Rule(KERNEL + "open, create, close", ("open", "open64", "openat*", "close")),
    Rule(KERNEL + "stat", ("*stat", "*stat64", "statx", "fstatat*", "access")),
    Rule(KERNEL + "list", ("readdir*", "getdents*", "opendir", "fdopendir", "closedir")),
    Rule(
        KERNEL + "rename, link, unlink",
        ("rename*", "unlink*", "link*", "mkdir*", "rmdir", "symlink*"),
    ),
    Rule(KERNEL + "times, modes", ("utimensat", "futimens", "*chmod*", "*chown*", "ftruncate*")),
    Rule(KERNEL + "send", ("send*",)),
    Rule(CODEC + ": compress, inflate, CRC", files=("isal/*", "*isal_zlib*", "*igzip*")),
    Rule("XXH3", files=("xxhash/*", "*xxhash*")),
    Rule(
        "garbage collector",
        ("gc_collect*", "deduce_unreachable", "visit_*", "subtract_refs", "update_refs"),
    ),
    Rule(_MEMORY, ("*mem*", "*alloc", "*free"), ("libc*",)),
)

_NAMELESS: Final = Rule("", ("0x*",), ("libc*",))
_RELEASES: Final = Rule("", ("os_*", "sock_*", "select_*", "time_*"))

# Where a thread waits for another one. Any other lock is rarely taken.
_WAITS: Final = (
    Rule(ASLEEP, ("Condition.wait", "Thread.join", "Thread._wait_for*"), ("threading.py",)),
    Rule(ASLEEP, files=("bbcache/waiters.py",)),
    Rule(ASLEEP, ("_worker",), ("concurrent/futures/thread.py",)),
    Rule(ASLEEP, ("Popen.*",), ("subprocess.py",)),
    Rule(ASLEEP, ("main",), ("*/service_process.py",)),
    Rule("rests, so that reads go before", files=("bbcache/pacer.py",)),
)

# Of functions of Python, from the innermost on.
_PYTHON: Final = (
    Rule("log", files=("logging/*", "*/logging/*")),
    Rule("metrics", files=("*prometheus_client/*", "bbcache/metrics.py")),
    Rule("archive writer", files=("bbcache/archive/format.py", "bbcache/archive/deflate.py")),
    Rule("tar headers", files=("bbcache/postgres/pgdata/tar_writer.py",)),
    Rule("walking the PGDATA", files=("bbcache/postgres/pgdata/tarball.py",)),
    Rule(
        "unpacking",
        files=(
            "bbcache/postgres/pgdata/tar_reader.py",
            "bbcache/postgres/pgdata/restore.py",
            "bbcache/postgres/pgdata/member_writer.py",
            "bbcache/postgres/pgdata/write_behind.py",
        ),
    ),
    Rule(
        "index and accounting", files=("bbcache/storage/index.py", "bbcache/storage/accounting.py")
    ),
    Rule("catalog: files and index together", files=("bbcache/storage/catalog.py",)),
    Rule("paths and files", files=("bbcache/storage/files.py", "bbcache/storage/dirlock.py")),
    Rule("names of entries", files=("bbcache/storage/entry_names.py", "bbcache/ids.py")),
    Rule("clean-up step", files=("bbcache/upkeep/cleanup.py",)),
    Rule("the host", files=("bbcache/testing/*", "bbcache/host.py")),
    Rule(
        "build, queue, hand-over",
        files=(
            "bbcache/prepare/builder.py",
            "bbcache/prepare/*.py",
            "bbcache/engine.py",
            "bbcache/work_counter.py",
            "bbcache/prepare/job.py",
            "bbcache/prepare/singleflight.py",
            "bbcache/prepare/backoff.py",
        ),
    ),
    Rule(
        "get",
        files=("bbcache/cache.py", "bbcache/storage/reader.py", "bbcache/prepare/shared_file.py"),
    ),
    Rule("page service", files=("bbcache/page_service/*", "bbcache/prepare/on_demand.py")),
    Rule("the benchmark's own loop", files=("bbcache/bench/*", "benchmarks/*")),
    Rule("rest of bbcache", files=("bbcache/*",)),
)


def step_of(stack: Stack) -> str:
    """The step that a stack belongs to; `ASLEEP` where the thread does nothing."""
    native = []
    for frame in reversed(stack.frames):
        if frame.is_python:
            break
        native.append(frame)
    python = [frame for frame in reversed(stack.frames) if frame.is_python]
    found = next((rule.step for rule in _NATIVE if any(map(rule.matches, native))), None)
    # Python 3.13 waits for a lock in functions without a name: the Python frame says more.
    waits = None if found == GIL else _first_match(_WAITS, python[:1])
    found = waits or found or _nameless_step(native)
    return found or _first_match(_PYTHON, python) or OTHER


def _nameless_step(native: list[Frame]) -> str | None:
    """The step of a function of the C library that has no name; the innermost is the first.

    What copies and compares is picked by processor, and lost its name by that. What has
    none and calls such a one, or is called at the end of a system call, hands a mutex on:
    the GIL's.
    """
    if not native or not _NAMELESS.matches(native[0]):
        return None
    caller = native[1:2]
    has_mutex = any(_NAMELESS.matches(each) or _RELEASES.matches(each) for each in caller)
    return GIL if has_mutex else _MEMORY


def _first_match(rules: Iterable[Rule], frames: Iterable[Frame]) -> str | None:
    pairs = ((frame, rule) for frame in frames for rule in rules)
    return next((rule.step for frame, rule in pairs if rule.matches(frame)), None)


def is_untimed(stack: Stack) -> bool:
    """Whether a stack of the thread that runs the rounds is from between two of them."""
    python = [frame.function for frame in stack.frames if frame.is_python]
    return python[-1:] == [_SORTING] or any(function in _UNTIMED for function in python)
