"""Real clients get the right bytes, and PostgreSQL starts from them with its data."""

from __future__ import annotations

import io
import select
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING

import psycopg
import psycopg2
import pytest
from page_service import wire
from page_service.certificates import certificate
from page_service.tokens import Signer
from page_service.wire import WireClient, copied, kinds
from pageserver.conftest import make_lab  # noqa: F401 - a fixture
from prometheus_client import CollectorRegistry
from psycopg import pq
from support.cache_helpers import LSN_A, MIB
from support.helpers import samples, tool

from bbcache.page_service.auth.tokens import TokenKeys
from bbcache.page_service.config import Address, PageServiceConfig
from bbcache.page_service.server import PageService
from bbcache.page_service.source import CacheSource
from bbcache.postgres.pgdata.restore import restore_tarball
from bbcache.postgres.server.user import ServerUser

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import ClusterFactory
    from page_service.conftest import Bench
    from pageserver.conftest import Lab

    from bbcache.postgres.server.cluster import PostgresBinaries


def conninfo(address: Address, **parameters: object) -> str:
    """How libpq finds the service."""
    found = {"user": "u", "dbname": "d", "password": "none", **parameters}
    words = [f"{name}={value}" for name, value in found.items()]
    return " ".join([f"host={address.host} port={address.port}", *words])


def by_psql(where: str, command: str) -> bytes:
    """What psql writes to its output, with its command given as an argument."""
    argv = [tool("psql"), "-X", where, "-c", command]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout


def by_psql_script(where: str, command: str) -> bytes:
    """The same with the command in a script, where dashes would begin a comment."""
    argv = [tool("psql"), "-X", "-q", where]
    script = f"{command.replace('--', '')};\n".encode()
    return subprocess.run(argv, check=True, input=script, stdout=subprocess.PIPE).stdout


def by_psycopg2(where: str, command: str) -> bytes:
    """By psycopg2, which begins a transaction first."""
    connection = psycopg2.connect(where)
    try:
        out = io.BytesIO()
        connection.cursor().copy_expert(command, out)
        return out.getvalue()
    finally:
        connection.close()


def by_psycopg(where: str, command: str) -> bytes:
    """By psycopg 3, which begins a transaction first, and ends it."""
    with (
        psycopg.connect(where) as connection,
        connection.cursor() as cursor,
        cursor.copy(command.encode()) as copy,
    ):
        return b"".join(bytes(piece) for piece in copy)


def by_libpq_extended(where: str, command: str) -> bytes:
    """By libpq itself with the extended protocol: prepared, described, and run."""
    connection = psycopg.connect(where)
    pgconn = connection.pgconn

    def receive() -> None:  # libpq's own waits would keep Python's lock from the service
        select.select([pgconn.socket], [], [], 30.0)
        pgconn.consume_input()

    def status() -> pq.ExecStatus | None:
        while pgconn.is_busy():
            receive()
        result = pgconn.get_result()
        return None if result is None else pq.ExecStatus(result.status)

    try:
        pgconn.send_prepare(b"s0", command.encode())
        assert (status(), status()) == (pq.ExecStatus.COMMAND_OK, None)
        pgconn.send_describe_prepared(b"s0")
        assert (status(), status()) == (pq.ExecStatus.COMMAND_OK, None)
        pgconn.send_query_prepared(b"s0", [])
        if status() != pq.ExecStatus.COPY_OUT:
            raise psycopg.OperationalError(pgconn.get_error_message())
        out = bytearray()
        while (piece := pgconn.get_copy_data(1))[0] >= 0:
            out += piece[1]
            if piece[0] == 0:
                receive()
        assert (status(), status()) == (pq.ExecStatus.COMMAND_OK, None)
        return bytes(out)
    finally:
        connection.close()


def by_rust_postgres(where: str, command: str) -> bytes:
    """With the messages of rust-postgres' `copy_out`, in its packets, up to where it stops.

    They are as tokio-postgres 0.7.7 was seen to send them. Neon's compute node is such
    a client. It looks at nothing behind the CopyDone, and takes any message for an
    error that is not the one it waits for.
    """
    found = dict(word.split("=") for word in where.split())
    client = WireClient(socket.create_connection((found["host"], int(found["port"])), 30.0))
    try:
        if found.get("sslmode", "disable") != "disable":
            client.send(wire.ssl_request())
            assert client.sock.recv(1) == b"S"
            context = ssl.create_default_context(cafile=found.get("sslrootcert"))
            if found["sslmode"] == "require":
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            client = WireClient(context.wrap_socket(client.sock, server_hostname=found["host"]))
        client.send(wire.startup(client_encoding="UTF8", user=found["user"], database="d"))
        if (first := client.receive()) == wire.Reply("R", b"\0\0\0\3"):
            client.send(wire.password(found["password"]))
            first = client.receive()
        assert first == wire.Reply("R", b"\0\0\0\0"), first
        assert set(kinds(client.until("Z"))) <= {"S", "K", "Z"}
        client.send(wire.parse(command, "s0"), wire.describe("s0"), wire.SYNC)
        assert kinds(client.until("Z")) == "1tnZ"
        no_parameters, binary_results = b"\0\0\0\0", b"\0\1\0\1"
        bind = wire.packed(b"B", wire.text("", "s0") + no_parameters + binary_results)
        client.send(bind, wire.execute(), wire.SYNC)
        replies = client.until("c")
        assert kinds(replies) == "2Hdc"
        client.send(wire.packed(b"C", b"S" + wire.text("s0")), wire.SYNC)
        client.send(wire.TERMINATE)
        return copied(replies)
    finally:
        client.close()


FETCHERS = [
    by_psql,
    by_psql_script,
    by_psycopg2,
    by_psycopg,
    by_libpq_extended,
    by_rust_postgres,
]


@pytest.mark.parametrize("size_bytes", [1000, 3 * MIB])
@pytest.mark.parametrize("fetch", FETCHERS)
def test_bytes(bench: Bench, fetch: Callable[[str, str], bytes], size_bytes: int) -> None:
    """Every client gets the file's own bytes."""
    timeline = bench.harness.prepared(size_bytes=size_bytes)
    got = fetch(conninfo(bench.service.address), bench.command(timeline, LSN_A, "--gzip"))
    assert got == bench.harness.path(timeline).read_bytes()
    bench.wait_queries({"ok hit": 1})


@pytest.mark.parametrize("fetch", [by_psycopg2, by_psycopg])
def test_errors(bench: Bench, fetch: Callable[[str, str], bytes]) -> None:
    """Drivers raise what the service says."""
    timeline = bench.harness.timeline()
    with pytest.raises((psycopg.Error, psycopg2.Error), match="is no lsn"):
        fetch(conninfo(bench.service.address), bench.command(timeline, "nowhere"))


def test_token(make_bench: Callable[[], Bench], tmp_path: Path) -> None:
    """A token is libpq's password, and longer than psql would take at its prompt."""
    signer, bench = Signer(), make_bench()
    bench.serve(verifier=TokenKeys(signer.write_public(tmp_path / "key.pem")))
    timeline = bench.harness.prepared()
    token = signer.sign(scope="tenant", tenant_id=str(bench.harness.tenant.tenant_id))
    assert len(token) > 100
    where = conninfo(bench.service.address, password=token)
    got = by_psql(where, bench.command(timeline, "gzip"))
    assert got == bench.harness.path(timeline).read_bytes()
    where = conninfo(bench.service.address, password=f"{token}x")
    with pytest.raises(psycopg.OperationalError, match="JWT authentication error"):
        psycopg.connect(where)


@pytest.mark.parametrize("sslmode", ["require", "verify-full"])
@pytest.mark.parametrize("fetch", FETCHERS)
def test_tls(
    make_bench: Callable[[], Bench],
    tmp_path: Path,
    fetch: Callable[[str, str], bytes],
    sslmode: str,
) -> None:
    """Every client speaks it, with a token, too, and verifies the certificate if told to."""
    signer, bench = Signer(), make_bench()
    server, _ = certificate(tmp_path)
    bench.serve(verifier=TokenKeys(signer.write_public(tmp_path / "key.pem")), tls=server)
    timeline = bench.harness.prepared(size_bytes=3 * MIB)
    token = signer.sign(scope="tenant", tenant_id=str(bench.harness.tenant.tenant_id))
    where = conninfo(bench.service.address, password=token, sslmode=sslmode)
    if sslmode == "verify-full":
        where += f" sslrootcert={tmp_path / 'server.crt'}"
    got = fetch(where, bench.command(timeline, LSN_A, "--gzip"))
    assert got == bench.harness.path(timeline).read_bytes()


@pytest.mark.parametrize("fetch", FETCHERS)
def test_a_stranger_with_a_certificate(
    make_bench: Callable[[], Bench], tmp_path: Path, fetch: Callable[[str, str], bytes]
) -> None:
    """A client that verifies does not speak to a service of another certificate."""
    bench = make_bench()
    bench.serve(tls=certificate(tmp_path)[0])
    timeline = bench.harness.prepared()
    (tmp_path / "other").mkdir()
    certificate(tmp_path / "other")
    where = conninfo(bench.service.address, sslmode="verify-full")
    where += f" sslrootcert={tmp_path / 'other' / 'server.crt'}"
    with pytest.raises((subprocess.CalledProcessError, psycopg2.Error, psycopg.Error, OSError)):
        fetch(where, bench.command(timeline, LSN_A, "--gzip"))
    assert bench.queries() == {}


@pytest.mark.postgres
@pytest.mark.parametrize("fetch", FETCHERS)
def test_postgres_starts_from_it(
    pg: PostgresBinaries,
    make_lab: Callable[[PostgresBinaries], Lab],  # noqa: F811 - the fixture
    make_cluster: ClusterFactory,
    fetch: Callable[[str, str], bytes],
) -> None:
    """A miss and a hit alike start cleanly, and hold the data."""
    lab = make_lab(pg)
    lab.open()
    address = lab.add_timeline()
    lsn = lab.play(address, "create table t as select generate_series(1, 1000) i")
    config = PageServiceConfig(listen=Address("127.0.0.1", 0))
    source = CacheSource(lab.pageserver.tenants, lab.pageserver.cache, config)
    command = f"basebackup {address.tenant_id} {address.timeline_id} {lsn} --gzip"
    user = ServerUser.current()
    registry = CollectorRegistry()
    with PageService(source, config, registry=registry) as service:
        for _ in range(2):
            archive = fetch(conninfo(service.address), command)
            pgdata_dir = make_cluster.new_dir()
            restore_tarball(
                io.BytesIO(archive),
                pgdata_dir,
                owner=(user.uid, user.gid) if user.is_dropped else None,
            )
            with make_cluster.on(pg, pgdata_dir) as cluster:
                cluster.start()
                assert cluster.psql("select count(*), sum(i) from t").strip() == "1000|500500"
                assert "not properly shut down" not in cluster.read_log()
            for path in (lab.root / "basebackup_cache").glob("basebackup_*"):
                path.unlink()  # the next one is a miss
    metric = "pageserver_basebackup_query_seconds_count{result=ok}"
    for origin in ("hit", "built"):
        assert samples(registry)[f"{metric}{{bbcache_source={origin}}}"] == 1
