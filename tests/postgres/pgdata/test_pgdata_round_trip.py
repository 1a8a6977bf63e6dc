"""A restored basebackup is the cluster that it was made of, on real servers."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import psycopg
import pytest
from isal import igzip

from bbcache.postgres.pgdata.tarball import (
    inspect_pgdata,
    restore_tarball,
    send_pgdata_tarball,
)

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ClusterFactory
    from postgres.conftest import BusyPgdata

    from bbcache.postgres.server.cluster import Cluster, PostgresBinaries

pytestmark = pytest.mark.postgres


def tarball(pgdata_dir: Path) -> bytes:
    """The tar of a data directory."""
    tar = io.BytesIO()
    send_pgdata_tarball(pgdata_dir, tar)
    return tar.getvalue()


def copy_of(pgdata_dir: Path, dest: Path) -> Path:
    """Send a data directory and restore it at `dest`."""
    restore_tarball(io.BytesIO(igzip.compress(tarball(pgdata_dir), 2)), dest)
    return dest


def assert_clean_start(cluster: Cluster) -> None:
    """The server came up from a shutdown checkpoint and recovered nothing."""
    log = cluster.read_log()
    assert "database system was shut down at" in log
    for sign in ("not properly shut down", "recovery", "redo", "FATAL", "PANIC", "ERROR"):
        assert sign not in log, log


@pytest.fixture
def busy_copy(busy: BusyPgdata, make_cluster: ClusterFactory) -> Cluster:
    """A running copy of the busy cluster."""
    pgdata_dir = copy_of(busy.path, make_cluster.new_dir())
    cluster = make_cluster.on(busy.binaries, pgdata_dir, settings=busy.settings)
    cluster.start()
    return cluster


def test_everything_survives(busy: BusyPgdata, busy_copy: Cluster) -> None:
    """Tables, unlogged too, sequences, a tablespace, a prepared transaction come back."""
    assert busy.fingerprint_of(busy_copy) == busy.fingerprint
    assert_clean_start(busy_copy)


def test_copy_works_on(busy: BusyPgdata, busy_copy: Cluster, make_cluster: ClusterFactory) -> None:
    """A copy takes writes, checkpoints, stops cleanly and can be sent and restored again."""
    with psycopg.connect(busy_copy.conninfo(), autocommit=True) as connection:
        for statement in (
            "COMMIT PREPARED 'prepared'",
            "INSERT INTO wide (t) SELECT md5(i::text) FROM generate_series(1, 1000) i",
            "INSERT INTO unlogged VALUES (0)",
            "INSERT INTO spaced VALUES (0)",
            "CREATE TABLE spaced_too TABLESPACE elsewhere AS SELECT 1 AS i",
            "SELECT nextval('counter')",
            "SELECT pg_export_snapshot()",
            "CREATE DATABASE third TEMPLATE second",
            "CHECKPOINT",
        ):
            connection.execute(statement.encode())
    busy_copy.stop()

    again = make_cluster.on(
        busy.binaries,
        copy_of(busy_copy.pgdata_dir, make_cluster.new_dir()),
        settings=busy.settings,
    )
    again.start()

    assert again.psql("SELECT count(*) FROM two_phase") == "101"
    assert again.psql("SELECT count(*) FROM wide") == "18143"
    assert again.psql("SELECT count(*), min(i) FROM unlogged") == "3001|0"
    assert again.psql("SELECT count(*), min(i) FROM spaced") == "5001|0"
    assert again.psql("SELECT nextval('counter')") == "4713"
    assert again.psql("SELECT i FROM spaced_too") == "1"
    assert again.psql("SELECT 1", "third") == "1"
    assert_clean_start(again)


def test_checksums_and_indexes_hold(busy: BusyPgdata, busy_copy: Cluster) -> None:
    """pg_amcheck and pg_checksums find nothing in a copy."""
    busy.binaries.run(
        "pg_amcheck",
        "--all",
        "--heapallindexed",
        "--install-missing",
        f"--maintenance-db={busy_copy.conninfo()}",
    )
    busy_copy.stop()
    checked = busy.binaries.run("pg_checksums", "--check", f"--pgdata={busy_copy.pgdata_dir}")
    assert "Bad checksums:  0" in checked


def test_copies_share_nothing(busy: BusyPgdata, make_cluster: ClusterFactory) -> None:
    """Two copies of a cluster with a tablespace run at once, each with rows of its own."""
    copies = []
    for _ in range(2):
        pgdata_dir = copy_of(busy.path, make_cluster.new_dir())
        copies.append(make_cluster.on(busy.binaries, pgdata_dir, settings=busy.settings))
        copies[-1].start()
    copies[0].psql("INSERT INTO spaced VALUES (-1); CHECKPOINT")
    assert copies[0].psql("SELECT count(*) FROM spaced WHERE i < 0") == "1"
    assert copies[1].psql("SELECT count(*) FROM spaced WHERE i < 0") == "0"


def test_slots_stay_behind(busy_copy: Cluster) -> None:
    """A replication slot is not copied: the WAL that it holds back is not there."""
    assert busy_copy.psql("SELECT count(*) FROM pg_replication_slots") == "0"
    busy_copy.psql("SELECT pg_create_physical_replication_slot('new', true)")
    busy_copy.psql("SELECT pg_drop_replication_slot('new')")


def test_statistics_survive(busy_copy: Cluster) -> None:
    """The counters that autovacuum goes by are those of the original."""
    counted = busy_copy.psql("SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'spaced'")
    assert counted == "5000"


def test_same_bytes_twice(busy: BusyPgdata) -> None:
    """Two builds of one state are equal byte for byte."""
    assert tarball(busy.path) == tarball(busy.path)


def test_copy_gives_the_same_bytes(busy: BusyPgdata, make_cluster: ClusterFactory) -> None:
    """The tar of a restored copy that was not started is the tar that it came from."""
    assert tarball(copy_of(busy.path, make_cluster.new_dir())) == tarball(busy.path)


def test_summary_names_the_lsn(busy: BusyPgdata) -> None:
    """The summary has the end of the shutdown checkpoint, and counts what was written."""
    tar = io.BytesIO()
    summary = send_pgdata_tarball(busy.path, tar)
    assert summary.lsn == inspect_pgdata(busy.path).checkpoint_end_lsn
    assert summary.size_bytes == len(tar.getvalue())


def test_linked_wal_directory(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A pg_wal that initdb put elsewhere is a real directory in the copy."""
    cluster = make_cluster(pg)
    wal_dir = cluster.pgdata_dir / "pg_wal"
    elsewhere = wal_dir.rename(make_cluster.new_dir())
    wal_dir.symlink_to(elsewhere)

    copy = make_cluster.on(pg, copy_of(cluster.pgdata_dir, make_cluster.new_dir()))
    copy.start()

    assert not (copy.pgdata_dir / "pg_wal").is_symlink()
    assert_clean_start(copy)


def test_tablespace_in_place(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A tablespace that is no link but a directory of its own goes along."""
    if pg.major == 14:
        pytest.skip("PostgreSQL has them since 15")
    cluster = make_cluster(pg)
    cluster.start({"allow_in_place_tablespaces": "on"})
    cluster.psql("CREATE TABLESPACE here LOCATION ''")
    cluster.psql("CREATE TABLE t TABLESPACE here AS SELECT generate_series(1, 1000) i")
    cluster.stop()

    copy = make_cluster.on(pg, copy_of(cluster.pgdata_dir, make_cluster.new_dir()))
    copy.start()

    assert copy.psql("SELECT count(*), sum(i) FROM t") == "1000|500500"
    assert_clean_start(copy)
