"""A copy of a logical subscriber that runs beside it takes none of its changes."""

from __future__ import annotations

import io
import os
import stat
from typing import TYPE_CHECKING

import psycopg
import pytest
from support.helpers import wait_until
from support.restore_helpers import directory, make_tar, restored

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.tarball import restore_tarball, send_pgdata_tarball

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ClusterFactory

    from bbcache.postgres.server.cluster import Cluster, PostgresBinaries

_AUTO_CONF = "postgresql.auto.conf"
_SETTING = b"\nmax_logical_replication_workers = 0\n"


@pytest.mark.parametrize("sync", [False, True])
def test_setting_is_added(tmp_path: Path, *, sync: bool) -> None:
    """The switch adds a line to a file that is created where there is none."""
    files = restored(make_tar(), tmp_path / "d", without_logical_replication=True, sync=sync)
    assert files[_AUTO_CONF].endswith(_SETTING)
    status = (tmp_path / "d" / _AUTO_CONF).stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert _AUTO_CONF not in restored(make_tar(), tmp_path / "without")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner_of_the_file(tmp_path: Path) -> None:
    """A file that the switch creates has the owner of the other files."""
    restored(make_tar(), tmp_path / "d", without_logical_replication=True, owner=(65534, 65533))
    status = (tmp_path / "d" / _AUTO_CONF).stat()
    assert (status.st_uid, status.st_gid) == (65534, 65533)


def test_file_that_is_none(tmp_path: Path) -> None:
    """An archive in which the file is a directory is an error that leaves nothing behind."""
    tar = io.BytesIO(make_tar(directory(_AUTO_CONF)))
    with pytest.raises(PostgresError, match=rf"cannot write .*/{_AUTO_CONF}: Is a directory"):
        restore_tarball(tar, tmp_path / "d", without_logical_replication=True)
    assert not (tmp_path / "d").exists()


def execute(cluster: Cluster, *statements: str) -> None:
    """Run statements, each on its own."""
    with psycopg.connect(cluster.conninfo(), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def rows(cluster: Cluster) -> str:
    """The rows of the table."""
    return cluster.psql("SELECT coalesce(string_agg(i::text, ',' ORDER BY i), '') FROM t")


@pytest.mark.postgres
def test_changes_go_to_the_subscriber(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, tmp_path: Path
) -> None:
    """Beside a copy with the switch, its original gets all changes; the copy still works."""
    publisher = make_cluster(newest_pg, settings={"wal_level": "logical"})
    subscriber = make_cluster(newest_pg)
    publisher.start()
    subscriber.start()
    execute(publisher, "CREATE TABLE t (i int)", "CREATE PUBLICATION p FOR TABLE t")
    conninfo = publisher.conninfo().replace("'", "''")
    execute(
        subscriber,
        "ALTER SYSTEM SET work_mem = '7MB'",
        "CREATE TABLE t (i int)",
        f"CREATE SUBSCRIPTION s CONNECTION '{conninfo}' PUBLICATION p",
    )
    publisher.psql("INSERT INTO t VALUES (1)")
    wait_until(lambda: rows(subscriber) == "1")
    subscriber.stop()
    with (tmp_path / "a.tar").open("wb") as file:
        send_pgdata_tarball(subscriber.pgdata_dir, file)
    copy = make_cluster.on(newest_pg, make_cluster.new_dir())
    restore_tarball(tmp_path / "a.tar", copy.pgdata_dir, without_logical_replication=True)

    copy.start()  # before its original, which would find the publisher's slot in use
    publisher.psql("INSERT INTO t VALUES (2)")
    subscriber.start()
    publisher.psql("INSERT INTO t VALUES (3)")

    wait_until(lambda: rows(subscriber) == "1,2,3")
    assert rows(copy) == "1"
    assert copy.psql("SHOW work_mem") == "7MB"
    assert copy.psql("SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'logical'") == "0"
    copy.psql("ALTER SYSTEM RESET max_logical_replication_workers")
    assert b"max_logical" not in (copy.pgdata_dir / _AUTO_CONF).read_bytes()
