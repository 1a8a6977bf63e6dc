"""The processes of `test_process` whose signal handlers use the cache."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import prometheus_client
from cache_helpers import (
    CHILD_DEADLINE_S,
    LSN_A,
    LSN_B,
)
from process_children import fixed_rig, say

import bbcache
from bbcache.dirlock import DirectoryLock
from bbcache.testing import MemoryTimeline

if TYPE_CHECKING:
    from types import FrameType


_PACKAGE: Final = bbcache.__path__[0] + os.sep


def close_in_a_signal_handler(data_dir: str) -> None:
    """A handler of SIGTERM closes while the main thread waits for the cache."""
    rig, timeline = fixed_rig(data_dir)
    rig.open()

    def handle(*_: object) -> None:
        rig.cache.close()
        sys.exit(0)

    signal.signal(signal.SIGTERM, handle)
    timeline.on_wait = lambda _lsn, timeout: MemoryTimeline(LSN_A).wait_lsn(LSN_B, timeout)
    rig.send(timeline)
    say("ready")
    rig.cache.wait_idle()
    raise AssertionError("the prepare has ended")


def close_at_each_line(data_dir: str) -> None:
    """Close at each line of the cache's code in turn, as a signal handler might."""
    faulthandler.dump_traceback_later(CHILD_DEADLINE_S - 10, exit=True)
    line = 0
    while _close_at_line(data_dir, line):
        line += 1
    say(str(line))


def _close_at_line(data_dir: str, line: int) -> bool:
    """Whether there is a line of that number in a life of a cache."""
    rig, timeline = fixed_rig(data_dir)
    rig.open()
    timeline.on_wait = lambda _lsn, timeout: MemoryTimeline(LSN_A).wait_lsn(LSN_B, timeout)
    lines_left, handled = line, False

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal lines_left, handled
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        if event == "line":
            if lines_left == 0:
                sys.settrace(None)
                handled = True
                rig.cache.close()
            lines_left -= 1
        return trace

    sys.settrace(trace)
    try:
        rig.send(timeline)
        rig.get(timeline)
        rig.cache.wait_initialized(0)
        rig.cache.wait_idle(0)
        rig.cache.close()
    finally:
        sys.settrace(None)
    rig.cache.close()
    lock = DirectoryLock(data_dir)
    lock.acquire()
    lock.release()
    return handled


def use_in_a_signal_handler(data_dir: str) -> None:
    """Use the cache at every line of its code, as a signal handler might."""
    faulthandler.dump_traceback_later(CHILD_DEADLINE_S - 10, exit=True)
    rig, timeline = fixed_rig(data_dir)
    with rig:
        rig.prepare(timeline)
        other = rig.timeline()
        calls = 0
        # Prometheus' too: the locks of its own counters are not re-entrant.
        traced = (_PACKAGE, prometheus_client.__path__[0] + os.sep, threading.__file__)

        def handle() -> None:
            nonlocal calls
            calls += 1
            file = rig.open_file(timeline)
            assert file is not None
            file.close()
            rig.send(other)
            rig.cache.entries()

        def trace(frame: FrameType, event: str, _arg: object) -> Any:
            if not frame.f_code.co_filename.startswith(traced):
                return None
            if event == "line":  # signals are handled at calls and jumps: there is one a line
                sys.settrace(None)
                try:
                    handle()
                finally:
                    sys.settrace(trace)
            return trace

        sys.settrace(trace)
        try:
            rig.send(other)
            rig.holds(timeline)
            rig.get(timeline)
            rig.get(timeline, LSN_B)
            rig.cache.wait_idle(0)
            rig.cache.wait_initialized(0)
            rig.cache.run_cleanup()
        finally:
            sys.settrace(None)
        assert calls > 200, calls
        rig.wait_idle()
        rig.check_books()
