"""A stopped cluster with something of everything in it, made once for each PostgreSQL."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
import pytest

from bbcache.postgres.server.cluster import Cluster, PostgresBinaries

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from conftest import Templates

_SETTINGS = {
    "autovacuum": "off",
    "fsync": "off",
    "max_prepared_transactions": "4",
    "shared_buffers": "16MB",
    "track_commit_timestamp": "on",
    "wal_level": "logical",
}
_SEED = """
    ALTER SYSTEM SET work_mem = '7MB';
    SELECT pg_reload_conf();
    CREATE TABLESPACE elsewhere LOCATION '{spaced_dir}';
    CREATE DATABASE second TEMPLATE postgres;
    CREATE EXTENSION pageinspect;
    CREATE EXTENSION amcheck;
    CREATE TABLE wide (id serial PRIMARY KEY, t text, n numeric);
    INSERT INTO wide (t, n) SELECT md5(i::text), i * 1.5 FROM generate_series(1, 20000) i;
    CREATE INDEX ON wide (t);
    DELETE FROM wide WHERE id % 7 = 0;
    CREATE UNLOGGED TABLE unlogged (i int PRIMARY KEY);
    INSERT INTO unlogged SELECT generate_series(1, 3000);
    CREATE SEQUENCE counter;
    SELECT setval('counter', 4711);
    CREATE TABLE toasted (big text);
    INSERT INTO toasted SELECT string_agg(md5((i * j)::text), '')
        FROM generate_series(1, 500) i, generate_series(1, 20) j GROUP BY j;
    SELECT lo_from_bytea(0, decode(repeat('c0ffee', 9000), 'hex'));
    CREATE TABLE spaced (i int PRIMARY KEY) TABLESPACE elsewhere;
    INSERT INTO spaced SELECT generate_series(1, 5000);
    CREATE TABLE two_phase (i int);
    SELECT pg_create_logical_replication_slot('slot', 'test_decoding');
    VACUUM ANALYZE wide;
    BEGIN;
    INSERT INTO two_phase SELECT generate_series(1, 100);
    SAVEPOINT inner_one;
    INSERT INTO two_phase VALUES (1000);
    PREPARE TRANSACTION 'prepared';
"""
# Everything that must be the same in a copy, one line each.
_FINGERPRINT = """
    SELECT 'wide ' || count(*) || ' ' || md5(string_agg(w::text, ',' ORDER BY id)) FROM wide w;
    SELECT 'unlogged ' || count(*) || ' ' || sum(i) FROM unlogged;
    SELECT 'counter ' || last_value || ' ' || is_called FROM counter;
    SELECT 'toasted ' || md5(string_agg(big, '' ORDER BY big)) FROM toasted;
    SELECT 'large object ' || md5(lo_get(oid)) FROM pg_largeobject_metadata;
    SELECT 'spaced ' || count(*) || ' ' || sum(i) FROM spaced;
    SELECT 'two_phase ' || count(*) FROM two_phase;
    SELECT 'prepared ' || gid || ' ' || transaction || ' ' || owner FROM pg_prepared_xacts;
    SELECT 'lock ' || mode FROM pg_locks WHERE pid IS NULL
        AND relation = 'two_phase'::regclass;
    SELECT 'committed ' || pg_xact_commit_timestamp(xmin) FROM wide WHERE id = 1;
    SELECT 'visible ' || count(*) FROM pg_class WHERE relallvisible > 0 AND relname = 'wide';
    SELECT 'work_mem ' || setting FROM pg_settings WHERE name = 'work_mem';
    SELECT 'second ' || datname FROM pg_database WHERE datname = 'second';
"""


@dataclass(frozen=True)
class BusyPgdata:
    """A cleanly stopped cluster; tests read it and never start it.

    Attributes:
        binaries: what made it.
        path: the data directory.
        fingerprint: what `fingerprint_of` said of it while it ran.
        settings: what a server on a copy of it needs.
    """

    binaries: PostgresBinaries
    path: Path
    fingerprint: str
    settings: Mapping[str, str]

    @staticmethod
    def fingerprint_of(cluster: Cluster) -> str:
        """What a running copy must say like its original."""
        with psycopg.connect(cluster.conninfo(), autocommit=True) as connection:
            statements = _FINGERPRINT.strip().removesuffix(";").split(";\n")
            cursors = [connection.execute(statement.encode()) for statement in statements]
            return "\n".join(str(row[0]) for cursor in cursors for row in cursor)


def _make_server_dir(pgdata_dir: Path, path: Path) -> Path:
    """Make an empty directory that belongs to the owner of a data directory."""
    path.mkdir(mode=0o700)
    status = pgdata_dir.stat()
    os.chown(path, status.st_uid, status.st_gid)
    return path


def _run_script(cluster: Cluster, script: str) -> None:
    """Run statements one by one in one session."""
    with psycopg.connect(cluster.conninfo(), autocommit=True) as connection:
        for statement in script.split(";\n"):
            connection.execute(statement.encode())


class BusyPgdatas:
    """One `BusyPgdata` for each PostgreSQL, made when first asked for."""

    def __init__(self, templates: Templates, pg_dir: Path) -> None:
        self._templates = templates
        self._pg_dir = pg_dir
        self._made: dict[PostgresBinaries, BusyPgdata] = {}

    def get(self, binaries: PostgresBinaries) -> BusyPgdata:
        """The one for `binaries`."""
        if binaries not in self._made:
            self._made[binaries] = self._make(binaries)
        return self._made[binaries]

    def _make(self, binaries: PostgresBinaries) -> BusyPgdata:
        path = self._pg_dir / f"busy{len(self._made)}"
        self._templates.copy(binaries, ("--data-checksums", "--wal-segsize=16"), path)
        with Cluster(binaries, path, settings=_SETTINGS) as cluster:
            cluster.start()
            spaced_dir = _make_server_dir(path, path.with_suffix(".space"))
            _run_script(cluster, _SEED.format(spaced_dir=spaced_dir))
            said = BusyPgdata.fingerprint_of(cluster)
        return BusyPgdata(binaries, path, said, _SETTINGS)


@pytest.fixture(scope="session")
def busy_pgdatas(templates: Templates, pg_dir: Path) -> BusyPgdatas:
    """The stopped clusters of the session."""
    return BusyPgdatas(templates, pg_dir)


@pytest.fixture
def busy(pg: PostgresBinaries, busy_pgdatas: BusyPgdatas) -> BusyPgdata:
    """A stopped cluster with something of everything in it; not to be started or changed."""
    return busy_pgdatas.get(pg)
