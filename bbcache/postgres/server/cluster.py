"""A PostgreSQL cluster on this machine: initdb, start, stop.

The server runs as a child of this process, without pg_ctl: started and found
ready in about 30 ms.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from bbcache.arguments import check_passable
from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.postmaster_file import PostmasterFile
from bbcache.postgres.pgdata.write_behind import WriteBehind
from bbcache.postgres.server.binaries import PostgresBinaries
from bbcache.postgres.server.child import end_child, leave, quit_child
from bbcache.postgres.server.guard import Guard
from bbcache.postgres.server.socket_dir import make_socket_dir, quote_directory
from bbcache.postgres.server.superuser import read_superuser
from bbcache.postgres.server.user import ServerUser

log = logging.getLogger(__name__)

__all__ = ["Cluster", "PostgresBinaries", "StopMode"]

StopMode = Literal["smart", "fast", "immediate"]
_STOP_SIGNALS = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_SUPERUSER = "postgres"
_PORT = 5432  # names the socket only, which has a directory of its own
# Settings that the caller's PG* variables must not change, each known to libpq 13 and later.
_PINNED = (
    "hostaddr='' options='' sslmode=disable gssencmode=disable channel_binding=disable "
    "sslrootcert='' target_session_attrs=any requirepeer=''"
)
_SOCKET_DIRS = "unix_socket_directories"
_POLL_S = 0.001
_LOG_TAIL_LINES = 12


class Cluster:
    """One data directory and at most one server on it, listening on a private socket.

    Not thread-safe: use a cluster from one thread at a time. A server that still runs
    when its cluster is collected or the interpreter exits is shut down then; it
    outlives only a process that was killed, and with a `guard` not even that.

    Args:
        binaries: the programs to run; of the major version of the data directory.
        pgdata_dir: the data directory. As root, it and all in it are given to the
            server's user; it need not exist before `initdb`.
        settings: server settings for every start, which override the configuration files.
            Sockets are in the directories of these settings and in a private one.
        log_path: the file of the server's log, which is appended to; `<pgdata_dir>.log` if None.
        guard: ends the server, and removes the directory of its socket, when this process is
            killed; it may serve many clusters. The data directory stays, unless it was given
            to the guard, too.

    Attributes:
        binaries: as given.
        pgdata_dir: as given, absolute.
        log_path: as given, absolute.

    Raises:
        PostgresError: a path has a NUL.
    """

    def __init__(
        self,
        binaries: PostgresBinaries,
        pgdata_dir: Path | str,
        *,
        settings: Mapping[str, str] | None = None,
        log_path: Path | str | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.binaries = binaries
        self.pgdata_dir = Path(pgdata_dir).absolute()
        default_log_path = self.pgdata_dir.with_name(f"{self.pgdata_dir.name}.log")
        self.log_path = Path(log_path or default_log_path).absolute()
        check_passable("the data directory", self.pgdata_dir, PostgresError)
        check_passable("the path of the server's log", self.log_path, PostgresError)
        self._settings = dict(settings or {})
        self._user = ServerUser.current()
        self._guard = guard
        self._server: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None
        self._port = str(_PORT)
        self._superuser: str | None = None  # not read yet
        self._log_offset = 0  # where the log of the last start begins
        self._ender: weakref.finalize[..., Cluster] | None = None

    def initdb(self, extra_args: Sequence[str] = (), *, timeout_s: float = 120.0) -> None:
        """Make the data directory: UTF-8, C locale, superuser `postgres`, local trust.

        Network connections are refused by its pg_hba.conf.

        Args:
            extra_args: arguments for initdb after ours, such as ``--no-sync``.
            timeout_s: seconds after which it is killed.

        Raises:
            PostgresError: initdb failed, or the server's user cannot reach the directory.
        """
        with self._naming_errors():
            self._user.require_reachable(self.pgdata_dir, "data directory")
            self.pgdata_dir.mkdir(mode=0o700, exist_ok=True)
            if not any(self.pgdata_dir.iterdir()):  # else initdb refuses it
                self._user.own_tree(self.pgdata_dir)
        self.binaries.run(
            "initdb",
            f"--pgdata={self.pgdata_dir}",
            f"--username={_SUPERUSER}",
            "--encoding=UTF8",
            "--locale=C",
            "--auth-local=trust",
            "--auth-host=reject",
            "--no-instructions",
            *extra_args,
            timeout_s=timeout_s,
        )

    def start(self, settings: Mapping[str, str] | None = None, *, timeout_s: float = 60.0) -> None:
        """Start the server and wait until it accepts connections.

        Args:
            settings: server settings for this start, which override those of the constructor.
            timeout_s: seconds to wait; recovery counts too. The default is that of pg_ctl.

        Raises:
            PostgresError: it is already running, is of another major version than the data
                directory, cannot be reached by the server's user, or did not start
                (the last lines of its log are quoted).
        """
        if self.is_running:
            raise PostgresError(f"the server on {self.pgdata_dir} is already running")
        self._forget_server()
        self._superuser = None
        with self._naming_errors():
            self.binaries.check_version_of(self.pgdata_dir)
            self._user.require_reachable(self.pgdata_dir, "data directory")
            self._user.own_tree(self.pgdata_dir)
        stale = self._read_pid_file()
        try:
            # In a thread: a Ctrl-C during the fork leaves a server behind that no object knows.
            with self._naming_errors(), WriteBehind(self._launch, at_once=0) as behind:
                behind.put({**self._settings, **(settings or {})})
                behind.finish()
            assert self._server is not None
            self._wait_ready(self._server, stale, time.monotonic() + timeout_s)
        except BaseException:
            self._kill()
            raise

    @contextlib.contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """Make an error of the operating system name the data directory and the file."""
        try:
            yield
        except OSError as error:
            what = os.fsdecode(error.filename or self.pgdata_dir)
            hint = self._user.permission_hint(self.pgdata_dir, str(error))
            raise PostgresError(
                f"the data directory {self.pgdata_dir} cannot be used: {what}: "
                f"{error.strerror}{hint}"
            ) from error

    def _launch(self, settings: Mapping[str, str]) -> None:
        """Start the server, and record everything that ends it."""
        self._socket_dir = make_socket_dir(self._user, self._guard)
        self._server = self._spawn(settings)
        self._ender = weakref.finalize(self, end_child, os.getpid(), self._server, self._socket_dir)

    def _spawn(self, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
        assert self._socket_dir is not None
        effective = {
            "listen_addresses": "",
            "port": str(_PORT),
            "logging_collector": "off",
            "log_destination": "stderr",
            **settings,
        }
        socket_dirs = (quote_directory(self._socket_dir), settings.get(_SOCKET_DIRS))
        effective[_SOCKET_DIRS] = ",".join(filter(None, socket_dirs))
        self._port = effective["port"]
        for name, value in effective.items():
            check_passable(f"the setting {name!r}", value, PostgresError)
        flags = [f"--{name}={value}" for name, value in effective.items()]
        fd = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(fd, "ab") as log:
            self._log_offset = os.fstat(fd).st_size
            return subprocess.Popen(
                **self._user.subprocess_kwargs(
                    [self.binaries.tool("postgres"), "-D", self.pgdata_dir, *flags]
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is for this process
            )

    def _wait_ready(
        self, server: subprocess.Popen[bytes], stale: PostmasterFile | None, deadline_s: float
    ) -> None:
        while not self._is_ready(server.pid, stale):
            if server.poll() is not None:
                raise self._error(f"did not start (exit status {server.returncode})")
            if time.monotonic() > deadline_s:
                raise self._error("was not ready in time")
            time.sleep(_POLL_S)

    def _is_ready(self, pid: int, stale: PostmasterFile | None = None) -> bool:
        """Whether postmaster.pid says so; a file of an earlier server does not count.

        Its times are not compared with a clock, which may be set meanwhile.
        """
        file = self._read_pid_file()
        return file is not None and file.pid == pid and file.is_ready and file != stale

    def _read_pid_file(self) -> PostmasterFile | None:
        try:
            return PostmasterFile.read(self.pgdata_dir)
        except PostgresError:
            return None  # the server itself reports the fault

    def stop(self, mode: StopMode = "fast", *, timeout_s: float = 60.0) -> None:
        """Stop the server and wait until it has ended; do nothing if none runs.

        Args:
            mode: as pg_ctl has it: ``smart`` waits for clients, ``fast`` disconnects
                them, ``immediate`` crashes (the next start recovers).
            timeout_s: seconds to wait; the stop continues after a timeout.

        Raises:
            PostgresError: it did not end in time, or ended without a shutdown
                checkpoint where `mode` asks for one.
        """
        server = self._server
        if server is None:
            return
        if server.poll() is None:
            server.send_signal(_STOP_SIGNALS[mode])
        try:
            status = server.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._error(f"did not stop within {timeout_s:g} s") from None
        self._forget_server()
        if status != 0 and mode != "immediate":
            raise self._error(f"did not shut down cleanly (exit status {status})")

    def _kill(self) -> None:
        """Crash the started server, and wait for it."""
        if self._server is not None:
            quit_child(self._server)
        self._forget_server()

    def detach(self) -> None:
        """Leave the server and its socket's directory to themselves, for good.

        Nothing of this object ends the server any more; a guard does, unless it is closed.
        """
        if self._server is not None:
            leave(self._server)
        self._socket_dir = None
        self._forget_server()

    def _forget_server(self) -> None:
        self._server = None
        if self._ender is not None:
            self._ender.detach()
            self._ender = None
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None

    @property
    def is_running(self) -> bool:
        """Whether the server that this object started is running."""
        return self._server is not None and self._server.poll() is None

    @property
    def is_ready(self) -> bool:
        """Whether that server accepts connections: one that shuts down runs, but does not."""
        return self._server is not None and self.is_running and self._is_ready(self._server.pid)

    @property
    def pid(self) -> int:
        """The server's process id; raises `PostgresError` when none runs."""
        return self._running().pid

    @property
    def socket_dir(self) -> Path:
        """The directory of the server's socket; raises `PostgresError` when none runs."""
        self._running()
        assert self._socket_dir is not None
        return self._socket_dir

    @property
    def port(self) -> int:
        """The port number that names the socket."""
        return int(self._port, 0)

    @property
    def superuser(self) -> str:
        """The role that initdb created; its name is read at the first use after a start."""
        if self._superuser is None:
            try:
                self._superuser = read_superuser(self.pgdata_dir)
            except PostgresError as error:  # the server is ready, so this is an unknown format
                log.warning("%s; taking %s for the superuser", error, _SUPERUSER)
                self._superuser = _SUPERUSER
        return self._superuser

    def conninfo(self, dbname: str = "postgres") -> str:
        """A libpq connection string for the superuser.

        It overrides the caller's ``PG*`` variables, such as PGHOSTADDR and PGOPTIONS,
        but a PGSERVICE that does not exist is still an error.

        Raises:
            PostgresError: no server runs, or the name has a NUL.
        """
        check_passable("the name of the database", dbname, PostgresError)
        host, user, quoted = _quote(str(self.socket_dir)), _quote(self.superuser), _quote(dbname)
        return f"host={host} port={self.port} user={user} dbname={quoted} {_PINNED}"

    def psql(self, sql: str, dbname: str = "postgres", *, timeout_s: float = 120.0) -> str:
        """Run SQL with psql and return its rows, unaligned, without the last line end.

        Raises:
            PostgresError: a statement failed, psql is missing, or no server runs.
        """
        flags = ("-XAtq", "--set=ON_ERROR_STOP=1", f"--dbname={self.conninfo(dbname)}")
        return self.binaries.run("psql", *flags, f"--command={sql}", timeout_s=timeout_s).rstrip(
            "\n"
        )

    def _running(self) -> subprocess.Popen[bytes]:
        if self._server is None or self._server.poll() is not None:
            raise PostgresError(f"no server is running on {self.pgdata_dir}")
        return self._server

    def _error(self, what: str) -> PostgresError:
        tail = self.read_log().splitlines()[-_LOG_TAIL_LINES:]
        return PostgresError(
            f"the server on {self.pgdata_dir} {what}; the end of {self.log_path}:\n"
            + "\n".join(f"    {line}" for line in tail)
            + self._user.permission_hint(self.pgdata_dir, "\n".join(tail))
        )

    def read_log(self) -> str:
        """The server's log since its last start; empty before the first."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(self._log_offset)
            return log.read().decode(errors="replace")

    def __enter__(self) -> Self:
        """Return the cluster as it is, started or not."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the server if it runs: fast, or immediately after an exception."""
        if kind is None:
            self.stop()
        else:
            self._kill()


def _quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
