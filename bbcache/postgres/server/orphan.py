"""Stopping a PostgreSQL server whose parent process is gone.

Its processes are found by their working directory, which is the data directory. The pid in
``postmaster.pid`` is not enough: it may belong to another process by now, or to none if the
postmaster was killed. In a container root may not be allowed to see
working directories of other users (CAP_SYS_PTRACE); then the postmaster is found by its
command line, and the others by their parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.postmaster_file import PostmasterFile
from bbcache.postgres.server.socket_dir import remove_left_socket_dirs

_PROC: Final = Path("/proc")
_PROGRAM: Final = "postgres"
_POLL_S: Final = 0.02
_PPID_FIELD: Final = 1  # of /proc/<pid>/stat, behind the name in parentheses (proc(5))
_FAST_TIMEOUT_S: Final = 60.0
_CRASH_TIMEOUT_S: Final = 10.0


def end_server(pgdata_dir: Path) -> None:
    """Stop the server on a data directory, whichever process has started it, and wait for it.

    It is shut down fast; if it does not end within a minute, it is crashed. Its
    ``postmaster.pid`` is removed then: the pid in it may be that of a zombie, or of another
    process by now, and no server starts while it names an existing process. So is the private
    directory of its socket.

    Does nothing if the system has no ``/proc``: `bbcache.postgres.pgdata.tarball` and the next
    server refuse a directory that is in use.

    Raises:
        PostgresError: a process of it cannot be stopped, or its ``postmaster.pid`` cannot be
            removed.
    """
    if not _PROC.is_dir():
        return
    _end_processes(pgdata_dir)
    # Of a process that may be the server, PostgreSQL's own checks must decide.
    if _recorded_pid(pgdata_dir) not in _Servers.scan(pgdata_dir).hidden:
        _remove_pid_file(pgdata_dir / "postmaster.pid")
        remove_left_socket_dirs(pgdata_dir)


def _recorded_pid(pgdata_dir: Path) -> int | None:
    """The pid in ``postmaster.pid``; None if there is none to be read."""
    try:
        file = PostmasterFile.read(pgdata_dir)
    except PostgresError:
        return None
    return file.pid if file is not None else None


def _remove_pid_file(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise PostgresError(
            f"cannot remove {path}: {error.strerror}\n"
            "hint: Remove it; no server starts while it is there."
        ) from error


def _end_processes(pgdata_dir: Path) -> None:
    if not _processes(pgdata_dir):
        return
    # A stopped process (SIGSTOP) must be continued first.
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
    raise PostgresError(f"the server on {pgdata_dir} cannot be stopped: its processes are {pids}")


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
                    f"the server with pid {pid} belongs to another user, and cannot be stopped"
                ) from error


def _first_processes(pgdata_dir: Path) -> set[int]:
    """The processes without a parent among the server: the postmaster, if it lives."""
    pids = _processes(pgdata_dir)
    return {pid for pid in pids if _parent(pid) not in pids}


def _processes(pgdata_dir: Path) -> set[int]:
    """The processes of a server on this directory, without programs that users have started."""
    return _Servers.scan(pgdata_dir).found


@dataclass(slots=True)
class _Servers:
    """The processes of PostgreSQL servers, as far as they matter to one directory.

    Attributes:
        found: the processes of the server on the directory.
        hidden: processes that may belong to it.
    """

    found: set[int]
    hidden: set[int]

    @classmethod
    def scan(cls, pgdata_dir: Path) -> Self:
        servers = cls(set(), set())
        try:
            status = pgdata_dir.stat()
        except OSError:
            return servers
        for name in os.listdir(_PROC):
            if name.isdigit():
                servers._add(int(name), status)
        first = {pid for pid in servers.hidden if _is_started_on(pid, status)}
        servers.found |= {pid for pid in servers.hidden if {pid, _parent(pid)} & first}
        servers.hidden -= servers.found
        return servers

    def _add(self, pid: int, directory: os.stat_result) -> None:
        try:
            cwd = os.stat(_PROC / str(pid) / "cwd")
            if os.path.samestat(cwd, directory) and _program(pid) == _PROGRAM:
                self.found.add(pid)
        except PermissionError:
            if _name(pid) == _PROGRAM:
                self.hidden.add(pid)
        except OSError:  # it has ended
            pass


def _is_started_on(pid: int, directory: os.stat_result) -> bool:
    """Whether a process has the directory in its command line, like a postmaster."""
    try:
        arguments = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    for argument in arguments[1:]:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(argument), directory):
                return True
    return False


def _program(pid: int) -> str:
    """The name of a process' program, whose file may have been replaced since the start."""
    path = os.readlink(_PROC / str(pid) / "exe")
    return os.path.basename(path.removesuffix(" (deleted)"))


def _name(pid: int) -> str:
    return _stat(pid).partition("(")[2].rpartition(")")[0]


def _parent(pid: int) -> int | None:
    fields = _stat(pid).rpartition(")")[2].split()
    return int(fields[_PPID_FIELD]) if fields else None


def _stat(pid: int) -> str:
    """The public state of a process; empty if it has ended."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return ""
