"""A process that cleans up after this one, however this one ends.

A server outlives a process that was killed with SIGKILL, and its directories stay. The guard
is a shell in a session of its own. It reads the names of directories from a pipe. Where the
pipe ends before the guard was released, it ends every PostgreSQL program that has one of the
directories in its command line, and removes the directories.

The kernel's PR_SET_PDEATHSIG is not an alternative: it fires when the thread that has started a
server ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import threading
import weakref
from pathlib import Path
from typing import Final

from bbcache.arguments import check_passable
from bbcache.errors import PostgresError
from bbcache.postgres.server.child import leave

# Names are random, so that a command line with one belongs to what this process has started.
# The first process of a server has them in its command line, its children do not. A program
# that has only been forked when the pipe ends shows up in one of the next rounds, and finds
# its directory gone. The programs that initdb has started have the directory in PGDATA. They end
# by themselves once initdb has gone, and free their shared memory, unless the directory goes first.
# A server that was killed leaves a segment of System V shared memory, whose key and identifier are
# in line 7 of its postmaster.pid (PostgreSQL's pidfile.h). The private directory of its socket is
# not among the guarded ones where this guard cleans up after another that was killed.
_SCRIPT: Final = r"""
trap '' HUP INT QUIT TERM
PATH=/usr/bin:/bin:$PATH
set --
remove() {
  for directory do
    for file in "$directory"/postmaster.pid "$directory"/*/postmaster.pid; do
      { sed -n 7p "$file" | { read -r key id && ipcrm -m "$id"; }; } 2>/dev/null
    done
  done
  rm -rf -- "$@"
}
while IFS= read -r line; do
  case $line in
    "") exit 0 ;;
    -*) remove "${line#-}" & ;;
    *) set -- "$@" "$line" ;;
  esac
done
for directory do
  for name in $(sed -n 's/.*--unix_socket_directories=\([^ ]*\).*/\1/p' \
    "$directory"/postmaster.opts "$directory"/*/postmaster.opts 2>/dev/null | tr '",' '\n\n' |
    grep '^/.*/bbcache-[0-9a-f]\{12\}$'); do set -- "$@" "$name"; done
done
round=0 quiet=0
while [ $# -gt 0 ] && [ "$quiet" -lt 5 ] && [ "$round" -lt 300 ]; do
  pids= ending=
  for directory do
    for file in $(grep -lsF -e "$directory" /proc/[0-9]*/cmdline); do
      pid=${file#/proc/} pid=${pid%/cmdline} name=
      { IFS= read -r name <"/proc/$pid/comm"; } 2>/dev/null
      case $name in postgres|initdb) pids="$pids $pid" ;; esac
    done
    for file in $(grep -lsF -e "PGDATA=$directory" /proc/[0-9]*/environ); do
      { IFS= read -r name <"${file%environ}comm"; } 2>/dev/null
      case $name in postgres) ending=yes quiet=0 ;; esac
    done
  done
  signal=QUIT
  [ "$round" -lt 100 ] || signal=KILL
  if [ -n "$pids" ]; then kill -CONT $pids; kill -"$signal" $pids; quiet=0; fi
  [ -n "$ending" ] && [ "$round" -lt 50 ] || remove "$@"
  for directory do [ ! -e "$directory" ] || quiet=0; done
  [ -n "$pids" ] || quiet=$((quiet + 1))
  round=$((round + 1))
  sleep 0.1
done
"""
_END_TIMEOUT_S: Final = 10.0
_TOKEN_BYTES: Final = 6


class Guard:
    """Removes directories, and ends the servers that use them, once this process has died.

    It starts with the object and ends with `close`. All methods are thread-safe. A forked
    child has no part in it: the pipe is closed there.

    Raises:
        PostgresError: there is no ``/bin/sh``, or it cannot be started.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards writes to the pipe, and its end
        self._owner_pid = os.getpid()
        self._process = _start()
        _guards.add(self)

    @property
    def pid(self) -> int:
        """The process id of the guard."""
        return self._process.pid

    def add(self, directory: Path | str) -> None:
        """Have a directory removed, and the servers that use it ended, when this process dies.

        It need not exist yet. Its name has to be unlikely to be in any other command line:
        `make_directory` makes one.

        Raises:
            PostgresError: the name has a line break or a NUL, or the guard is gone.
        """
        self._send(_line(directory))

    def remove(self, directory: Path | str) -> None:
        """Have a directory removed now, by the guard, and do not wait for that.

        Raises:
            PostgresError: as `add`.
        """
        self._send(b"-" + _line(directory))

    def make_directory(self, parent: Path | str, prefix: str) -> Path:
        """Make a guarded directory with a random name and mode 0700.

        Raises:
            OSError: it cannot be made.
            PostgresError: as `add`.
        """
        return make_directory(parent, prefix, self)

    def clean_up(self) -> None:
        """Let the guard clean up now, as if this process had died, and do not wait for that.

        It ends with this. Does nothing once it was closed.
        """
        if self._close_pipe(b""):
            leave(self._process)

    def close(self) -> None:
        """End the guard, and leave its directories as they are. Does nothing a second time."""
        if not self._close_pipe(b"\n"):
            return
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _close_pipe(self, last_line: bytes) -> bool:
        """Close the pipe behind a last line; return False where it was closed before."""
        with self._lock:
            pipe = self._process.stdin
            if os.getpid() != self._owner_pid or pipe is None or pipe.closed:
                return False
            with contextlib.suppress(OSError):  # it was killed
                os.write(pipe.fileno(), last_line)
            pipe.close()
            return True

    def _send(self, line: bytes) -> None:
        with self._lock:
            pipe = self._process.stdin
            if pipe is None or pipe.closed:
                raise PostgresError(f"the guard with pid {self.pid} is closed")
            try:
                os.write(pipe.fileno(), line)
            except BrokenPipeError as error:
                raise PostgresError(
                    f"the guard with pid {self.pid} is gone, so nothing would end a server of this "
                    "process if it were killed\nhint: Find out what has killed that process."
                ) from error

    def _forget_in_child(self) -> None:
        """Close the pipe in a forked child: the guard waits until its last copy is closed."""
        pipe = self._process.stdin
        self._process.returncode = 0  # of the parent: nothing here waits for it
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


def _line(directory: Path | str) -> bytes:
    name = os.fspath(directory)
    check_passable("the guarded directory", name, PostgresError)  # a shell drops a NUL
    if "\n" in name or not os.path.isabs(name):
        raise PostgresError(f"{name!r} cannot be guarded: it is not an absolute path of one line")
    return os.fsencode(name) + b"\n"


def make_directory(parent: Path | str, prefix: str, guard: Guard | None = None) -> Path:
    """Make a directory with a random name and mode 0700.

    Args:
        parent: the directory to make it in.
        prefix: the beginning of its name.
        guard: the guard that removes it; it is told before the directory is made.

    Raises:
        OSError: it cannot be made.
        PostgresError: as `Guard.add`.
    """
    path = Path(parent).absolute() / f"{prefix}{secrets.token_hex(_TOKEN_BYTES)}"
    check_passable("the directory", path, PostgresError)
    if guard is not None:
        guard.add(path)
    path.mkdir(mode=0o700)
    return path


def clean_up(directory: Path | str) -> None:
    """Let a guard of its own do at once what it does for a process that has died.

    For directories that a killed process has left together with its guard. Returns before it
    is done.

    Args:
        directory: the directory, with a name that `make_directory` has made.

    Raises:
        PostgresError: as `Guard`.
    """
    process = _start()
    assert process.stdin is not None
    process.stdin.write(os.fsencode(os.fspath(directory)) + b"\n")
    process.stdin.close()
    leave(process)


def _start() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 - our own script
            ["/bin/sh", "-c", _SCRIPT, "bbcache-guard"],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # a Ctrl-C at the terminal is not for it
        )
    except OSError as error:
        raise PostgresError(f"cannot start the guard: /bin/sh: {error.strerror}") from error


def _in_forked_child() -> None:
    for guard in list(_guards):
        guard._forget_in_child()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_in_forked_child)
