"""Reading what py-spy writes."""

from __future__ import annotations

from support.profiling_stacks import FSYNC, main_thread, one, service, worker

from benchmarks.profiling.stacks import Frame


def test_a_line_is_a_stack() -> None:
    """Thread, calls from the outermost on, and how often they were seen."""
    stack = worker(f"Thread.run (threading.py:982);{FSYNC};fsync (libc.so.6)", 74)
    assert stack.thread == "bbcache-prepare_0"
    assert not stack.is_main
    assert stack.sample_count == 74
    assert stack.frames == (
        Frame("Thread.run", "threading.py"),
        Frame("TempFile.sync", "bbcache/storage/files.py"),
        Frame("os_fsync", "libpython3.11.so.1.0"),
        Frame("fsync", "libc.so.6"),
    )
    assert [frame.is_python for frame in stack.frames] == [True, True, False, False]


def test_names_that_look_odd_are_kept() -> None:
    """Brackets, blanks and frames without a file are part of a name."""
    stack = main_thread("<module> (x.py:1);wait_for.<locals>.<lambda> (a b.py:2);f(x) (c.so);?", 1)
    assert [frame.function for frame in stack.frames] == [
        "<module>",
        "wait_for.<locals>.<lambda>",
        "f(x)",
        "?",
    ]


def test_the_innermost_process_counts() -> None:
    """A process stands below the one that has started it; the one looked at has no name."""
    assert service("f (x.py:1)", 1).process == (
        "python -m bbcache.bench.service_process /tmp/x 16 16"
    )
    assert one('process 1:"python x.py";thread (11): MainThread;f (x.py:1)', 1).is_main
    assert not one('process 1:"a";process 2:"b";thread (1): MainThread;f (x.py:1)', 1).is_main


def test_a_thread_without_a_name_has_its_id() -> None:
    """Such as one that C has started."""
    assert one("thread (0x7F): f;g (x.py:1)", 1).thread == "f"
    assert one("thread (0x7F);g (x.py:1)", 1).thread == "0x7F"
