"""A running PostgreSQL for tests, restored from a snapshot."""

from __future__ import annotations

import contextlib
import functools
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from bbcache.errors import PostgresError
from bbcache.postgres.server.cluster import Cluster, StopMode
from bbcache.postgres.server.socket_dir import quote_directory
from bbcache.testing.postgres.database import Address, Database
from bbcache.testing.postgres.databases import DatabasePool
from bbcache.testing.postgres.driver import MAINTENANCE, Connection, connect

_LOOPBACK: Final = "127.0.0.1"
_PORT_TRIES: Final = 5
# Logged (in sysv_shmem.c) where processes of a server that was killed have not yet noticed it.
_ORPHANS: Final = "pre-existing shared memory block"
_ORPHANS_TIMEOUT_S: Final = 10.0
_HBA: Final = (
    f"local all,replication all trust\nhost all,replication all {_LOOPBACK}/32 scram-sha-256\n"
)


class Server:
    """A PostgreSQL server of its own, with the data of a snapshot. Thread-safe, but for `restart`.

    Made by `postgres`, and by the fixtures ``pg_server`` and ``pg_fresh_server``.

    Args:
        cluster: the data directory, not started.
        socket_dir: a directory for its socket, which stays the same over restarts; removed at
            the end.
        root: the root of the snapshot.
        pool: how many databases are made ahead.
        tcp: whether it listens on 127.0.0.1, too.
        keep: whether databases are kept.

    Attributes:
        cluster: the same.
    """

    def __init__(
        self,
        cluster: Cluster,
        socket_dir: Path,
        root: Path,
        *,
        pool: int,
        tcp: bool = False,
        keep: bool = False,
    ) -> None:
        self.cluster = cluster
        self._socket_dir = socket_dir
        self._root = root
        self._password = secrets.token_hex(16) if tcp else None
        self._last_name = MAINTENANCE
        self._port: int | None = None  # of TCP
        self._is_pid_known = False  # outside
        self._pool = DatabasePool(self._connect, cluster.binaries.major, pool, keep=keep)

    def start(self) -> None:
        """Start the server; raises `PostgresError` if it does not start."""
        settings = {"unix_socket_directories": quote_directory(self._socket_dir)}
        if self._password is None:
            self.cluster.start(settings)
            return
        (self.cluster.pgdata_dir / "pg_hba.conf").write_text(_HBA)
        for tries_left in reversed(range(_PORT_TRIES)):
            try:
                port = self._port or _free_port()
                self.cluster.start({**settings, "listen_addresses": _LOOPBACK, "port": str(port)})
                self._port = port
                break
            except PostgresError as error:
                if "could not bind" not in str(error) or not tries_left:
                    raise
                self._port = None
        with self._connect(MAINTENANCE) as connection:
            connection.run(f"ALTER ROLE {self.cluster.superuser} PASSWORD '{self._password}'")

    def stop(self) -> None:
        """End the server at once, and what makes databases for it."""
        self._pool.close()
        with contextlib.suppress(PostgresError):
            self.cluster.stop("immediate")
        shutil.rmtree(self._socket_dir, ignore_errors=True)

    def detach(self) -> None:
        """Leave the server running after the end of this process."""
        self._pool.close()
        self.cluster.detach()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server and start it again on the same data, at the same address.

        With TCP, the port is another one where a program has taken it meanwhile.

        Args:
            mode: ``immediate`` crashes it, so that the start recovers.

        Raises:
            PostgresError: it does not stop or start.
        """
        self.cluster.stop(mode)
        deadline_s = time.monotonic() + _ORPHANS_TIMEOUT_S
        while True:
            try:
                return self.start()
            except PostgresError as error:
                if _ORPHANS not in str(error) or time.monotonic() > deadline_s:
                    raise

    def takes_connections(self) -> bool:
        """Whether the server accepts connections.

        Its state tells. Once the process id is known outside, a signal may be under way, so a
        connection is tried: the server sees the signal first.
        """
        if self._is_pid_known and self.cluster.is_ready:
            with contextlib.suppress(PostgresError):
                self._connect(MAINTENANCE).close()
                return True
            return False
        return self.cluster.is_ready

    @property
    def pid(self) -> int:
        """The process id of the server."""
        self._is_pid_known = True
        return self.cluster.pid

    @property
    def data_dir(self) -> Path:
        """Its data directory."""
        return self.cluster.pgdata_dir

    @property
    def url(self) -> str:
        """The URL of a database that belongs to the server; see `Database.url`."""
        return self.main_database.url

    @property
    def dsn(self) -> str:
        """The connection string of a database that belongs to the server."""
        return self.main_database.dsn

    @property
    def main_database(self) -> Database:
        """A database with the data of the snapshot, made when it is first asked for."""
        return self._database(self._main_name)

    @functools.cached_property
    def _main_name(self) -> str:
        return self.take_database().name

    @contextmanager
    def database(self) -> Iterator[Database]:
        """Lend a database with the data of the snapshot; it is dropped some time after the block.

        Raises:
            PostgresError: it cannot be made.
        """
        database = self.take_database()
        try:
            yield database
        finally:
            self.give_back(database)

    def take_database(self) -> Database:
        """As `database`, for callers that end its use by `give_back`."""
        self._last_name = self._pool.take()
        return self._database(self._last_name)

    def give_back(self, database: Database) -> None:
        """End the use of a database, which may still have connections."""
        self._pool.give_back(database.name)

    @property
    def maintenance_database(self) -> Database:
        """The database ``postgres``, which is empty, for statements on the whole server."""
        return self._database(MAINTENANCE)

    @property
    def kept_dsn(self) -> str:
        """The connection string of the database that was used last."""
        return self._database(self._last_name).dsn

    def psql(self, sql: str) -> str:
        """Run SQL on the main database; see `Database.psql`."""
        return self.main_database.psql(sql)

    def read_log(self) -> str:
        """Return what the server has logged since its start."""
        return self.cluster.read_log()

    def _database(self, name: str) -> Database:
        return Database(name, self._address(), self.cluster.binaries, self._root)

    def _address(self) -> Address:
        if self._password is None:
            return self._socket_address()
        return Address(_LOOPBACK, self.cluster.port, self.cluster.superuser, self._password)

    def _socket_address(self) -> Address:
        return Address(str(self._socket_dir), self.cluster.port, self.cluster.superuser)

    def _connect(self, name: str) -> Connection:
        return connect(Database(name, self._socket_address(), self.cluster.binaries, self._root))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])
