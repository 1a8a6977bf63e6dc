"""The processes of `test_fill_close`: they fork, exit and are killed while callers wait."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    LSN_B,
    Gate,
    Harness,
    noise,
    stop_while_sending,
    tar_of,
)
from support.fill_helpers import fill, filled, fillers, unpublished_bytes, waiting_callers
from support.helpers import wait_until

from bbcache import ClosingError, FillError
from bbcache.storage.files import Store

if TYPE_CHECKING:
    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline


def fork_while_they_wait(data_dir: str, disk: str) -> None:
    """The child has the call, the files and the locks in memory, but no worker."""
    is_sick = disk == "sick"
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    sick_disk = mock.patch.object(Store, "create_temp", side_effect=error)
    aside = Path(f"{data_dir}-aside")
    aside.mkdir()
    with (
        Harness(Path(data_dir), prepare_concurrency=1, unpublished_dir=aside) as harness,
        Gate() as gate,
        sick_disk if is_sick else contextlib.nullcontext(),
    ):
        outgrown, timeline = harness.timeline(LSN_B), harness.timeline()
        file = fill(harness, outgrown, LSN_A)
        stop_while_sending(timeline, gate)
        workers = fillers(harness, timeline, 2)
        gate.wait_for()
        before_bytes = unpublished_bytes(harness)  # those of a fallback build are among them
        assert before_bytes >= file.size_bytes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns: there are threads
            pid = os.fork()
        if pid == 0:
            _use_in_child(harness, timeline)
            file.close()
            os._exit(7)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        assert unpublished_bytes(harness) == before_bytes
        file.close()
        assert unpublished_bytes(harness) == before_bytes - file.size_bytes
        gate.open()
        assert {str(worker.result()[0]) for worker in workers} == {"built", "joined"}  # type: ignore[index]
        harness.wait_idle()
        assert harness.counts("bbcache_fallback_builds_total").get("ok", 0) == 2 * is_sick
        harness.check_accounting()
    print("done")  # noqa: T201 - read by the parent


def _use_in_child(harness: Harness, timeline: MemoryTimeline) -> None:
    signal.alarm(20)  # a lock that is wanted ends this process by its signal
    try:
        fill(harness, timeline, timeout_s=None)
    except FillError as error:
        if "forked from\nhint: " not in str(error):
            raise
    else:
        raise AssertionError("a forked child has got an answer")
    harness.cache.close()


def exit_while_they_wait(data_dir: str, kind: str) -> None:
    """End without a close; threads wait without limit for a build and for an LSN."""
    harness = Harness(Path(data_dir), prepare_concurrency=1)
    harness.open()
    harness.opened.pop_all()
    busy = threading.Event()
    timeline, other = harness.timeline(), harness.timeline()

    def write(writer: TarballWriter, _lsn: Lsn) -> None:
        busy.set()
        while True:
            writer.write(noise(1000))

    timeline.on_send = write

    def ask(asked: MemoryTimeline) -> None:
        try:
            fill(harness, asked, timeout_s=None)
        except ClosingError:
            os.write(1, b"ClosingError\n")

    for asked in (timeline, timeline, other):
        threading.Thread(target=ask, args=(asked,), daemon=kind == "daemon").start()
    assert busy.wait(DEADLINE_S)
    wait_until(lambda: waiting_callers() == 3)
    sys.exit(3)


def die_while_it_is_built(data_dir: str) -> None:
    """Be killed with one unpublished archive open, and half of another written."""
    harness = Harness(Path(data_dir))
    harness.open()
    timeline, dying = harness.timeline(LSN_B), harness.timeline(LSN_B)
    file = fill(harness, timeline, LSN_A)
    assert filled(harness, timeline, LSN_A) == ("built", tar_of(timeline))

    def send(writer: TarballWriter, _lsn: Lsn) -> None:
        writer.write(noise(1 << 21))
        assert len(harness.temp_files()) == 1
        os.kill(os.getpid(), signal.SIGKILL)

    dying.on_send = send
    fill(harness, dying, LSN_A)
    file.close()
