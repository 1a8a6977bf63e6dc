"""What drivers do around a command works: cancelling, transactions, pools, choosing a server."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import psycopg
import pytest
from page_service import wire
from page_service.certificates import certificate, write_certificate
from page_service.test_real_clients import conninfo
from page_service.wire import WireClient, kinds
from psycopg.pq import TransactionStatus
from support.cache_helpers import DEADLINE_S, LSN_A, LSN_B, Gate, Worker, stop_while_sending
from support.helpers import wait_until

from bbcache.page_service.auth.tls import Certificate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from page_service.conftest import Bench


@pytest.mark.parametrize("has_tls", [True, False])
def test_a_cancel_of_psycopg(
    make_bench: Callable[[], Bench], tmp_path: Path, *, has_tls: bool
) -> None:
    """It reports success, over TLS too, where libpq waits for the end of the connection."""
    bench = make_bench()
    bench.serve(tls=certificate(tmp_path)[0] if has_tls else None)
    timeline = bench.harness.timeline()
    where = conninfo(bench.service.address, sslmode="require" if has_tls else "disable")
    with Gate() as gate, psycopg.connect(where, autocommit=True) as connection:
        stop_while_sending(timeline, gate)
        waiting = Worker(connection.execute, bench.command(timeline, LSN_A, "gzip").encode())
        gate.wait_for()
        connection.cancel_safe(timeout=DEADLINE_S)
        with pytest.raises(psycopg.errors.QueryCanceled):
            waiting.result()
        gate.open()


def ended_by(how: str, bench: Bench, client: WireClient) -> None:
    """End a connection in one of the ways that there are."""
    if how == "terminate":
        client.send(wire.TERMINATE)
    elif how == "rubbish":
        client.send(b"?\0\0\0\4")
    elif how == "drain":
        bench.service.drain(0)
    elif how == "close":
        bench.service.begin_close()
    elif how == "close in a command":
        client.send(wire.query(bench.command(bench.harness.timeline(LSN_A), LSN_B)))
        wait_until(lambda: bench.counts("pageserver_compute_commands_total"))
        bench.service.begin_close()


@pytest.mark.parametrize(
    "how",
    [
        "terminate",
        "rubbish",
        "drain",
        "close",
        "close in a command",
        "idle",
        "bad login",
        "evicted",
    ],
)
def test_tls_ends_with_a_close_notify(
    make_bench: Callable[[], Bench], tmp_path: Path, how: str
) -> None:
    """However a connection ends: a client then knows that nothing was cut off."""
    server, trusting = certificate(tmp_path)
    bench = make_bench()
    bench.serve(
        tls=server,
        idle_timeout_s=0.1 if how == "idle" else DEADLINE_S,
        max_connections=1 if how == "evicted" else 10,
    )
    sock = bench.socket()
    sock.sendall(wire.ssl_request())
    assert sock.recv(1) == b"S"
    tls = trusting.wrap_socket(sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
    client = WireClient(tls)
    if how == "bad login":
        client.send(wire.SYNC * 2)
    else:
        client.log_in()
        ended_by(how, bench, client)
    if how == "evicted":
        other = WireClient(_tls_socket(bench, trusting))
        other.log_in()
        other.close()
    client.rest()  # raises SSLEOFError where there is no close_notify
    client.close()


def _tls_socket(bench: Bench, trusting: ssl.SSLContext) -> ssl.SSLSocket:
    sock = bench.socket()
    sock.sendall(wire.ssl_request())
    assert sock.recv(1) == b"S"
    return trusting.wrap_socket(sock, server_hostname="127.0.0.1")


@pytest.mark.parametrize(
    ("wanted", "is_served"),
    [
        ("any", True),
        ("read-write", True),
        ("primary", True),
        ("prefer-standby", True),
        ("read-only", False),
        ("standby", False),
    ],
)
def test_target_session_attrs(bench: Bench, wanted: str, *, is_served: bool) -> None:
    """The service is a primary that takes writes; libpq finds out without a query."""
    where = conninfo(bench.service.address, target_session_attrs=wanted)
    if is_served:
        with psycopg.connect(where) as connection:
            assert connection.pgconn.parameter_status(b"in_hot_standby") == b"off"
    else:
        with pytest.raises(psycopg.OperationalError, match=r"read-only|standby"):
            psycopg.connect(where)
    assert bench.counts("pageserver_compute_commands_total") == {}


def test_nested_transactions(bench: Bench) -> None:
    """Psycopg begins, nests, rolls back to a savepoint, and ends; each status is right."""
    timeline = bench.harness.prepared()
    command = bench.command(timeline, LSN_A, "gzip").encode()
    statuses = []
    with psycopg.connect(conninfo(bench.service.address)) as connection:
        with connection.transaction():
            statuses.append(connection.info.transaction_status)
            with pytest.raises(psycopg.Error), connection.transaction():
                connection.execute("wrong")
            statuses.append(connection.info.transaction_status)
            with (
                connection.transaction(),
                connection.cursor() as cursor,
                cursor.copy(command) as copy,
            ):
                archive = b"".join(map(bytes, copy))
        statuses.append(connection.info.transaction_status)
    in_transaction = TransactionStatus.INTRANS
    assert statuses == [in_transaction, in_transaction, TransactionStatus.IDLE]
    assert archive == bench.harness.path(timeline).read_bytes()


def test_the_check_of_a_pool(bench: Bench) -> None:
    """Psycopg's pool sends an empty query, rolls back what is open, and resets the session."""
    statuses = []
    with psycopg.connect(conninfo(bench.service.address)) as connection:
        connection.execute("")
        statuses.append(connection.info.transaction_status)
        with pytest.raises(psycopg.Error):
            connection.execute("wrong")
        statuses.append(connection.info.transaction_status)
        connection.rollback()
        statuses.append(connection.info.transaction_status)
        connection.execute("DISCARD ALL")
    status = TransactionStatus
    assert statuses == [status.INTRANS, status.INERROR, status.IDLE]


@pytest.mark.skipif(psycopg.pq.version() < 170000, reason="libpq has direct TLS since 17")
def test_direct_tls(make_bench: Callable[[], Bench], tmp_path: Path) -> None:
    """Libpq begins with TLS where it is told to, and saves a round trip."""
    files = write_certificate(tmp_path)
    bench = make_bench()
    bench.serve(tls=Certificate(*files).context)
    timeline = bench.harness.prepared()
    where = conninfo(
        *(bench.service.address,),
        sslmode="verify-full",
        sslrootcert=files.cert,
        sslnegotiation="direct",
    )
    with psycopg.connect(where) as connection, connection.cursor() as cursor:
        with cursor.copy(bench.command(timeline, LSN_A, "gzip").encode()) as copy:
            archive = b"".join(map(bytes, copy))
        assert connection.pgconn.ssl_in_use
    assert archive == bench.harness.path(timeline).read_bytes()


@pytest.mark.parametrize("protocols", [[], ["http/1.1"]])
def test_direct_tls_of_another_protocol(
    make_bench: Callable[[], Bench],
    tmp_path: Path,
    protocols: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A client that does not say `postgresql` by ALPN may be a confused one, and is refused."""
    caplog.set_level("INFO", logger="bbcache")
    server, trusting = certificate(tmp_path)
    if protocols:
        trusting.set_alpn_protocols(protocols)
    bench = make_bench()
    bench.serve(tls=server)
    client = WireClient(trusting.wrap_socket(bench.socket(), server_hostname="127.0.0.1"))
    (error,) = client.rest()
    assert error.fields()["C"] == "08P01"
    assert "ALPN protocol 'postgresql'" in caplog.text
    client.close()


def test_tls_where_there_is_none(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The log says that the client has begun TLS, and why it cannot go on."""
    caplog.set_level("INFO", logger="bbcache")
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLError):
        context.wrap_socket(bench.socket(), server_hostname="127.0.0.1")
    wait_until(lambda: "begins TLS without a request for it" in caplog.text)
    assert "the service has no certificate" in caplog.text
    assert kinds(bench.logged_in().ask("BEGIN")) == "CZ"
