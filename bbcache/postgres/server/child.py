"""The end of a child process: of one that is stopped, and of one that is left to itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Final

_EXIT_GRACE_S: Final = 5.0
_QUIT_PATIENCE_S: Final = 15.0  # a server kills its own children after 5 s
_QUIT_INTERVAL_S: Final = 0.1


def end_child(owner_pid: int, server: subprocess.Popen[bytes], socket_dir: Path) -> None:
    """Stop a server whose cluster was collected, except in a forked child."""
    if os.getpid() != owner_pid:
        return
    if server.poll() is None:
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_EXIT_GRACE_S)
    quit_child(server)
    shutil.rmtree(socket_dir, ignore_errors=True)


def quit_child(server: subprocess.Popen[bytes]) -> None:
    """Stop a server immediately; after a while by SIGKILL, which leaves its files behind."""
    deadline_s = time.monotonic() + _QUIT_PATIENCE_S
    while server.poll() is None:
        # Repeatedly: a server that has just been started may ignore the signal.
        is_patient = time.monotonic() < deadline_s
        server.send_signal(signal.SIGQUIT if is_patient else signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_QUIT_INTERVAL_S)


def leave(process: subprocess.Popen[bytes]) -> None:
    """Leave a child process to itself; once it ends, nothing of it stays.

    A thread waits for it, because a child that nobody waits for stays a zombie as long as this
    process lives. At the exit of the interpreter, which begins no more threads, init takes over.
    """
    process.returncode = 0  # so that neither the object nor a forked child waits for it
    reaper = threading.Thread(target=_reap, args=(process.pid,), name="bbcache-reaper", daemon=True)
    with contextlib.suppress(RuntimeError):
        reaper.start()


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # the program ignores SIGCHLD, or waits itself
        os.waitpid(pid, 0)
