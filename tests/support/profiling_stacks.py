"""Stacks as py-spy writes them, for tests of what is made of them."""

from __future__ import annotations

from typing import Final

from benchmarks.profiling.stacks import Stack, parse

ROUND: Final = "Lineup._run (bbcache/bench/rounds.py:108)"
TIMED: Final = f"{ROUND};timed.<locals>.run (bbcache/bench/rounds.py:131)"
BESIDE: Final = f"{ROUND};timed_beside.<locals>.run (bbcache/bench/rounds.py:160)"
WAIT: Final = (
    "Condition.wait (threading.py:331);lock_PyThread_acquire_lock (libpython3.11.so.1.0);"
    "PyThread_acquire_lock_timed (libpython3.11.so.1.0);0x7f7c368ae116 (libc.so.6)"
)
FSYNC: Final = "TempFile.sync (bbcache/storage/files.py:180);os_fsync (libpython3.11.so.1.0)"


def main_thread(frames: str, count: int) -> Stack:
    """A stack of the thread that runs the rounds."""
    return one(f"thread (11): MainThread;{frames}", count)


def worker(frames: str, count: int) -> Stack:
    """A stack of another thread."""
    return one(f"thread (12): bbcache-prepare_0;{frames}", count)


def service(frames: str, count: int) -> Stack:
    """A stack of a thread of the page service's process."""
    command = "python -m bbcache.bench.service_process /tmp/x 16 16"
    return one(f'process 1:"python";process 2:"{command}";thread (3): conn;{frames}', count)


def one(path: str, count: int) -> Stack:
    """The stack of one line."""
    (stack,) = parse([f"{path} {count}\n"])
    return stack
