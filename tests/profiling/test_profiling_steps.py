"""From calls to the steps of the work."""

from __future__ import annotations

import pytest
from support.profiling_stacks import FSYNC, TIMED, WAIT, main_thread, service, worker

from benchmarks.profiling.steps import ASLEEP, GIL, OTHER, is_untimed, step_of

COMPRESS = "_Compressor._compress (bbcache/archive/format.py:226)"


@pytest.mark.parametrize(
    ("frames", "step"),
    [
        (f"{FSYNC};fsync (libc.so.6)", "kernel: fsync"),
        (f"{FSYNC};pthread_cond_timedwait (libc.so.6)", GIL),
        (f"{FSYNC};take_gil (python3.12);0x7f (libc.so.6)", GIL),
        (f"{FSYNC}", "paths and files"),
        (f"{COMPRESS};0x7f7c360ccba4 (isal/isal_zlib.so)", "ISA-L: compress, inflate, CRC"),
        (f"{COMPRESS};isal_deflate (isal/isal_zlib.so);take_gil (python3)", GIL),
        (COMPRESS, "archive writer"),
        (f"{COMPRESS};0x7fb1fa38bb75 (libc.so.6)", "memory: copy, compare, allocate"),
        (f"{COMPRESS};0x7fb1fa30 (libc.so.6);0x7fb1fa40 (libc.so.6)", GIL),
        (f"{FSYNC};0x7fb1fa30 (libc.so.6)", GIL),
        (f"{COMPRESS};realloc (libc.so.6);0x7f (libc.so.6)", "memory: copy, compare, allocate"),
        (
            "scan (bbcache/storage/files.py:1);os_lstat (libpython3.so);fstatat64 (libc.so.6)",
            "kernel: stat",
        ),
        ("inc (prometheus_client/metrics.py:3)", "metrics"),
        ("close (bbcache/storage/reader.py:1);basename (<frozen posixpath>:144)", "get"),
        (
            "load (bbcache/storage/index.py:1);gc_collect_main (libpython3.11.so.1.0)",
            "garbage collector",
        ),
        ("new_one (bbcache/not_known_yet.py:1)", "rest of bbcache"),
        ("run (somewhere.py:1)", OTHER),
        (f"PrepareQueue.take (bbcache/prepare/queue.py:176);{WAIT}", ASLEEP),
        (
            "Pacer.rest (bbcache/pacer.py:5);clock_nanosleep (libc.so.6)",
            "rests, so that reads go before",
        ),
        ("Condition.wait (threading.py:331);pthread_cond_timedwait (libc.so.6)", GIL),
        (
            "f (bbcache/storage/index.py:1);PyThread_acquire_lock_timed (libpython3.11.so.1.0)",
            "locks",
        ),
        ("f (bbcache/page_service/x.py:1);select_poll (x.c:1);epoll_wait (libc.so.6)", ASLEEP),
        ("f (bbcache/page_service/x.py:1);sock_send (x.c:1);send (libc.so.6)", "kernel: send"),
    ],
)
def test_the_innermost_call_that_is_known_decides(frames: str, step: str) -> None:
    """First what runs outside of Python, then the parts of bbcache."""
    assert step_of(worker(frames, 1)) == step


def test_a_service_that_waits_for_its_end_sleeps() -> None:
    """Its main thread reads its stdin all the time."""
    frames = "main (bbcache/bench/service_process.py:110);read (libc.so.6)"
    assert step_of(service(frames, 1)) == ASLEEP


def test_what_lies_between_rounds_is_untimed() -> None:
    """Emptying a directory and sorting latencies is; what comes between is the round."""
    assert is_untimed(main_thread(f"{TIMED};_emptied (bbcache/bench/restores.py:75)", 1))
    latencies = f"{TIMED};Latencies.round (bbcache/bench/latency.py:56)"
    assert is_untimed(main_thread(f"{latencies};list_sort (libpython3.11.so.1.0)", 1))
    assert not is_untimed(main_thread(f"{latencies};get_latencies (bbcache/bench/latency.py:9)", 1))
    assert not is_untimed(main_thread(f"{TIMED};restore (bbcache/bench/restores.py:52)", 1))
