"""The processes of `test_fill_close`: they fork, exit and are killed while callers wait."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    LSN_B,
    Gate,
    Rig,
    noise,
    stop_while_sending,
    tar_of,
)
from support.fill_helpers import aboard, fill, filled, fillers, unpublished_bytes
from support.helpers import wait_until

from bbcache import ClosingError, FillError

if TYPE_CHECKING:
    from bbcache import Lsn
    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline


def fork_while_they_wait(data_dir: str) -> None:
    """The child has the flight, the files and the locks in memory, but no worker."""
    with Rig(Path(data_dir), prepare_concurrency=1) as rig, Gate() as gate:
        outgrown, timeline = rig.timeline(LSN_B), rig.timeline()
        file = fill(rig, outgrown, LSN_A)
        stop_while_sending(timeline, gate)
        workers = fillers(rig, timeline, 2)
        gate.wait_for()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns: there are threads
            pid = os.fork()
        if pid == 0:
            _use_in_child(rig, timeline)
            file.close()
            os._exit(7)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        assert unpublished_bytes(rig) == file.size_bytes
        file.close()
        assert unpublished_bytes(rig) == 0
        gate.open()
        assert {str(worker.result()[0]) for worker in workers} == {"built", "joined"}  # type: ignore[index]
        rig.wait_idle()
        rig.check_books()
    print("done")  # noqa: T201 - read by the parent


def _use_in_child(rig: Rig, timeline: MemoryTimeline) -> None:
    signal.alarm(20)  # a lock that is wanted ends this process by its signal
    try:
        fill(rig, timeline, timeout_s=None)
    except FillError as error:
        if "forked from\nhint: " not in str(error):
            raise
    else:
        raise AssertionError("a forked child has got an answer")
    rig.cache.close()


def exit_while_they_wait(data_dir: str, kind: str) -> None:
    """End without a close; threads wait without limit for a build and for an LSN."""
    rig = Rig(Path(data_dir), prepare_concurrency=1)
    rig.open()
    rig.opened.pop_all()
    busy = threading.Event()
    timeline, other = rig.timeline(), rig.timeline()

    def write(writer: TarballWriter, _lsn: Lsn) -> None:
        busy.set()
        while True:
            writer.write(noise(1000))

    timeline.on_send = write

    def ask(asked: MemoryTimeline) -> None:
        try:
            fill(rig, asked, timeout_s=None)
        except ClosingError:
            os.write(1, b"ClosingError\n")

    for asked in (timeline, timeline, other):
        threading.Thread(target=ask, args=(asked,), daemon=kind == "daemon").start()
    assert busy.wait(DEADLINE_S)
    wait_until(lambda: aboard() == 3)
    sys.exit(3)


def die_while_it_is_built(data_dir: str) -> None:
    """Be killed with one unpublished archive open, and half of another written."""
    rig = Rig(Path(data_dir))
    rig.open()
    timeline, dying = rig.timeline(LSN_B), rig.timeline(LSN_B)
    file = fill(rig, timeline, LSN_A)
    assert filled(rig, timeline, LSN_A) == ("built", tar_of(timeline))

    def send(writer: TarballWriter, _lsn: Lsn) -> None:
        writer.write(noise(1 << 21))
        assert len(rig.temp_files()) == 1
        os.kill(os.getpid(), signal.SIGKILL)

    dying.on_send = send
    fill(rig, dying, LSN_A)
    file.close()
