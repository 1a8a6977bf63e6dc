"""The superuser that initdb made is found whatever its name, as the catalogs have it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psycopg
import pytest

from bbcache.errors import PostgresError
from bbcache.postgres.server.cluster import Cluster
from bbcache.postgres.server.superuser import read_superuser

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ClusterFactory

    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres


def test_any_name(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A driver and psql get in as it, also after it was renamed and the catalog rewritten."""
    path = make_cluster.new_dir()
    Cluster(pg, path).initdb(["--no-sync", "--username=the boss"])
    cluster = make_cluster.on(pg, path)
    cluster.start()
    assert cluster.superuser == cluster.psql("SELECT current_user") == "the boss"
    for number in range(3):  # old versions of the row stay in the file
        cluster.psql("CREATE ROLE other SUPERUSER LOGIN")
        with psycopg.connect(f"host={cluster.socket_dir} user=other dbname=postgres") as other:
            renaming = f'ALTER ROLE "{cluster.superuser}" RENAME TO "it\'s chief \\ {number}"'
            other.execute(renaming.encode())
            if number == 1:
                other.commit()
                other.autocommit = True
                other.execute("VACUUM FULL pg_authid")
        cluster.stop("immediate" if number == 2 else "fast")
        assert cluster.is_running is False
        cluster.start()
        assert cluster.psql("SELECT current_user") == f"it's chief \\ {number}"
        cluster.psql("DROP ROLE other")
    with psycopg.connect(cluster.conninfo()) as connection:
        row = connection.execute("SELECT usesuper FROM pg_user WHERE usesysid = 10").fetchone()
    assert row == (True,)


def test_a_row_that_is_locked(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A lock on a row looks like its end, and is none."""
    cluster = make_cluster(newest_pg)
    cluster.start()
    cluster.psql("BEGIN; SELECT FROM pg_authid WHERE oid = 10 FOR UPDATE; COMMIT; CHECKPOINT")
    assert read_superuser(cluster.pgdata_dir) == "postgres"


@pytest.mark.parametrize("damage", ["no map", "odd map", "no file", "cut off"])
def test_files_that_cannot_be_read(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, damage: str
) -> None:
    """Each is an error that names the directory."""
    directory: Path = make_cluster(newest_pg).pgdata_dir / "global"
    node_map = directory / "pg_filenode.map"
    if damage == "no map":
        node_map.unlink()
    elif damage == "odd map":
        node_map.write_bytes(os.urandom(512))
    elif damage == "no file":
        (directory / "1260").unlink()
    else:
        os.truncate(directory / "1260", 50)
    with pytest.raises(PostgresError, match=str(directory)):
        read_superuser(directory.parent)
