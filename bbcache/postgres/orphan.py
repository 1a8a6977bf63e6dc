"""Ending a PostgreSQL server that a process which is gone has started.

Its processes are found by their working directory, which is the data directory: a pid in
``postmaster.pid`` may belong to another process by now, and a server whose first process
was killed has none that the file names.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from bbcache.errors import PostgresError

_PROC: Final = Path("/proc")
_PROGRAM: Final = "postgres"
_POLL_S: Final = 0.02
_PPID_FIELD: Final = 1  # of /proc/<pid>/stat, behind the name in parentheses (proc(5))
_FAST_TIMEOUT_S: Final = 60.0
_CRASH_TIMEOUT_S: Final = 10.0


def end_server(pgdata_dir: Path) -> None:
    """End the server on a data directory, whichever process has started it, and wait for it.

    It is shut down fast; where it does not end within a minute, it is crashed. Its
    ``postmaster.pid`` is removed then: the pid in it may be that of a zombie, or of another
    process by now, and no server starts while it names one that is there.

    Does nothing where the system has no ``/proc``: `bbcache.postgres.pgdata` and the next
    server refuse a directory that is in use.

    Raises:
        OSError: its ``postmaster.pid`` cannot be removed.
        PostgresError: a process of it cannot be ended.
    """
    if not _PROC.is_dir():
        return
    _end_processes(pgdata_dir)
    (pgdata_dir / "postmaster.pid").unlink(missing_ok=True)


def _end_processes(pgdata_dir: Path) -> None:
    if not _processes(pgdata_dir):
        return
    # A stopped process (SIGSTOP) has to be let go on first.
    _signal(_first_processes(pgdata_dir), signal.SIGCONT, signal.SIGINT)
    if _have_ended(pgdata_dir, _FAST_TIMEOUT_S):
        return
    _signal(_first_processes(pgdata_dir), signal.SIGQUIT)
    if _have_ended(pgdata_dir, _CRASH_TIMEOUT_S):
        return
    _signal(_processes(pgdata_dir), signal.SIGKILL)
    if _have_ended(pgdata_dir, _CRASH_TIMEOUT_S):
        return
    pids = sorted(_processes(pgdata_dir))
    raise PostgresError(f"the server on {pgdata_dir} cannot be ended: its processes are {pids}")


def _have_ended(pgdata_dir: Path, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while _processes(pgdata_dir):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def _signal(pids: set[int], *numbers: signal.Signals) -> None:
    for pid in pids:
        for number in numbers:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                break
            except PermissionError as error:
                raise PostgresError(
                    f"the server with pid {pid} belongs to another user, and cannot be ended"
                ) from error


def _first_processes(pgdata_dir: Path) -> set[int]:
    """Those that no other process of the server has started: the first one, if it lives."""
    pids = _processes(pgdata_dir)
    return {pid for pid in pids if _parent(pid) not in pids}


def _processes(pgdata_dir: Path) -> set[int]:
    """The processes of a server on this directory; what its users have started is none."""
    try:
        status = pgdata_dir.stat()
        names = os.listdir(_PROC)
    except OSError:
        return set()
    return {int(name) for name in names if name.isdigit() and _is_server(name, status)}


def _is_server(pid: str, directory: os.stat_result) -> bool:
    try:
        cwd = os.stat(_PROC / pid / "cwd")
        return os.path.samestat(cwd, directory) and _program(pid) == _PROGRAM
    except OSError:  # it has ended, or is somebody else's
        return False


def _program(pid: str) -> str:
    """The name of a process' program, which may have been replaced since it was started."""
    return os.path.basename(os.readlink(_PROC / pid / "exe").removesuffix(" (deleted)"))


def _parent(pid: int) -> int | None:
    try:
        status = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[_PPID_FIELD])
