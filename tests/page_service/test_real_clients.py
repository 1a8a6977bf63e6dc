"""Real clients get the right bytes, and PostgreSQL starts from them with its data."""

from __future__ import annotations

import io
import subprocess
from typing import TYPE_CHECKING

import psycopg
import psycopg2
import pytest
from cache_helpers import LSN_A, MIB
from helpers import samples, tool
from page_service.tokens import Signer
from pageserver.conftest import make_lab  # noqa: F401 - a fixture
from prometheus_client import CollectorRegistry

from bbcache.page_service.config import Address, PageServiceConfig
from bbcache.page_service.server import PageService
from bbcache.page_service.source import CacheSource
from bbcache.page_service.tokens import TokenKeys
from bbcache.postgres.restore import restore_tarball
from bbcache.postgres.server_user import ServerUser

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import ClusterFactory
    from page_service.conftest import Bench
    from pageserver.conftest import Lab

    from bbcache.postgres.cluster import PostgresBinaries


def conninfo(address: Address, password: str = "none") -> str:  # noqa: S107 - not asked for
    """How libpq finds the service."""
    return f"host={address.host} port={address.port} user=u dbname=d password={password}"


def by_psql(address: Address, command: str, password: str = "none") -> bytes:  # noqa: S107
    """What psql writes to its output, with its command given as an argument."""
    argv = [tool("psql"), "-X", conninfo(address, password), "-c", command]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout


def by_psql_script(address: Address, command: str) -> bytes:
    """The same with the command in a script, where dashes would begin a comment."""
    argv = [tool("psql"), "-X", "-q", conninfo(address)]
    script = f"{command.replace('--', '')};\n".encode()
    return subprocess.run(argv, check=True, input=script, stdout=subprocess.PIPE).stdout


def by_psycopg2(address: Address, command: str) -> bytes:
    """By psycopg2, which begins a transaction first."""
    connection = psycopg2.connect(conninfo(address))
    try:
        out = io.BytesIO()
        connection.cursor().copy_expert(command, out)
        return out.getvalue()
    finally:
        connection.close()


def by_psycopg(address: Address, command: str) -> bytes:
    """By psycopg 3, which begins a transaction first, and ends it."""
    with (
        psycopg.connect(conninfo(address)) as connection,
        connection.cursor() as cursor,
        cursor.copy(command.encode()) as copy,
    ):
        return b"".join(bytes(piece) for piece in copy)


FETCHERS = [by_psql, by_psql_script, by_psycopg2, by_psycopg]


@pytest.mark.parametrize("size_bytes", [1000, 3 * MIB])
@pytest.mark.parametrize("fetch", FETCHERS)
def test_bytes(bench: Bench, fetch: Callable[[Address, str], bytes], size_bytes: int) -> None:
    """Every client gets the file's own bytes."""
    timeline = bench.rig.prepared(size_bytes=size_bytes)
    got = fetch(bench.service.address, bench.command(timeline, LSN_A, "--gzip"))
    assert got == bench.rig.path(timeline).read_bytes()
    bench.wait_queries({"ok hit": 1})


@pytest.mark.parametrize("fetch", [by_psycopg2, by_psycopg])
def test_errors(bench: Bench, fetch: Callable[[Address, str], bytes]) -> None:
    """Drivers raise what the service says."""
    timeline = bench.rig.timeline()
    with pytest.raises((psycopg.Error, psycopg2.Error), match="is no lsn"):
        fetch(bench.service.address, bench.command(timeline, "nowhere"))


def test_token(make_bench: Callable[[], Bench], tmp_path: Path) -> None:
    """A token is libpq's password, and longer than psql would take at its prompt."""
    signer, bench = Signer(), make_bench()
    bench.serve(verifier=TokenKeys(signer.write_public(tmp_path / "key.pem")))
    timeline = bench.rig.prepared()
    token = signer.sign(scope="tenant", tenant_id=str(bench.rig.tenant.tenant_id))
    assert len(token) > 100
    got = by_psql(bench.service.address, bench.command(timeline, "gzip"), token)
    assert got == bench.rig.path(timeline).read_bytes()
    with pytest.raises(psycopg.OperationalError, match="JWT authentication error"):
        psycopg.connect(conninfo(bench.service.address, "x.y.z"))


@pytest.mark.postgres
@pytest.mark.parametrize("fetch", FETCHERS)
def test_postgres_starts_from_it(
    pg: PostgresBinaries,
    make_lab: Callable[[PostgresBinaries], Lab],  # noqa: F811 - the fixture
    make_cluster: ClusterFactory,
    fetch: Callable[[Address, str], bytes],
) -> None:
    """A miss and a hit alike start cleanly, and hold the data."""
    lab = make_lab(pg)
    lab.open()
    address = lab.add_timeline()
    lsn = lab.play(address, "create table t as select generate_series(1, 1000) i")
    source = CacheSource(lab.pageserver.tenants, lab.pageserver.cache)
    config = PageServiceConfig(listen=Address("127.0.0.1", 0))
    command = f"basebackup {address.tenant_id} {address.timeline_id} {lsn} --gzip"
    user = ServerUser.current()
    registry = CollectorRegistry()
    with PageService(source, config, registry=registry) as service:
        for _ in range(2):
            archive = fetch(service.address, command)
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
