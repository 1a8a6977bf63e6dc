"""Making the data directory of a snapshot: initdb, the builder, a clean stop."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bbcache.postgres.server.binaries import PostgresBinaries
from bbcache.postgres.server.cluster import Cluster
from bbcache.postgres.server.guard import Guard
from bbcache.testing.postgres.database import Address, Database
from bbcache.testing.postgres.driver import MAINTENANCE, TEMPLATE, connect
from bbcache.testing.postgres.errors import SnapshotError
from bbcache.testing.postgres.snapshots import Snapshot

_LOG_LINES: Final = 15
_IO_METHOD_MAJOR: Final = 18
# Data that lasts for one test needs no disk, and a small server starts sooner. Commits
# still reach the operating system, so they survive a crash of the server.
_SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "shared_buffers": "16MB",
    "max_wal_size": "4GB",
    "unix_socket_permissions": "0700",
    # In the data directory: it goes with that, also when the server itself is killed.
    "dynamic_shared_memory_type": "mmap",
}
_LEAVE_OUT: Final = (
    "UPDATE pg_database SET datistemplate = false WHERE datname IN ('template0', 'template1')",
    "DROP DATABASE template0",
    "DROP DATABASE template1",
)


def server_settings(
    binaries: PostgresBinaries, snapshot: Snapshot, settings: Mapping[str, str]
) -> dict[str, str]:
    """Return the settings of a snapshot's servers: ours, then the snapshot's, then the user's."""
    io_method = {"io_method": "sync"} if binaries.major >= _IO_METHOD_MAJOR else {}
    return {**_SETTINGS, **io_method, **snapshot.settings, **settings}


def build(
    snapshot: Snapshot,
    binaries: PostgresBinaries,
    settings: Mapping[str, str],
    pgdata_dir: Path,
    guard: Guard,
    *,
    is_lean: bool,
) -> None:
    """Make a stopped data directory with a template database, filled by the builder.

    Args:
        snapshot: what to make.
        binaries: the PostgreSQL to make it with.
        settings: the server settings.
        pgdata_dir: where to make it.
        guard: ends the server when this process is killed.
        is_lean: whether PostgreSQL's own template databases are left out.

    Raises:
        SnapshotError: the builder has raised; has the traceback and the server's log.
        PostgresError: the server cannot be made.
    """
    cluster = Cluster(binaries, pgdata_dir, settings=settings, guard=guard)
    cluster.initdb(["--no-sync", *snapshot.initdb_args])
    with cluster:
        cluster.start()
        address = Address(str(cluster.socket_dir), cluster.port, cluster.superuser)
        admin = Database(MAINTENANCE, address, binaries, snapshot.root)
        database = Database(TEMPLATE, address, binaries, snapshot.root)
        with connect(admin) as connection:
            connection.run(f"CREATE DATABASE {TEMPLATE}")
            _fill(snapshot, database, cluster)
            with connect(database) as filled:
                filled.run("VACUUM (ANALYZE)")
            connection.run(f"ALTER DATABASE {TEMPLATE} IS_TEMPLATE true ALLOW_CONNECTIONS false")
            for statement in _LEAVE_OUT if is_lean else ():
                connection.run(statement)
            # The archive has the segment with the shutdown checkpoint: let that be a new one.
            connection.run("SELECT pg_switch_wal()")
    _remove_maps(pgdata_dir)


def _remove_maps(pgdata_dir: Path) -> None:
    """Remove free space and visibility maps, which PostgreSQL makes again when it needs them.

    They are a quarter of all files, and each restore and each copy of a database would write them.
    """
    for pattern in ("*_fsm", "*_vm"):
        for parent in ("global", "base/*"):
            for path in pgdata_dir.glob(f"{parent}/[0-9]{pattern}"):
                path.unlink()


def _fill(snapshot: Snapshot, database: Database, cluster: Cluster) -> None:
    if snapshot.builder is None:
        return
    try:
        snapshot.builder(database)
    except Exception as error:  # noqa: BLE001 - the text that is raised has all of it
        log = cluster.read_log().splitlines()[-_LOG_LINES:]
        summary = traceback.format_exception_only(error)[0].splitlines()[0]
        raise SnapshotError(
            f"the builder of snapshot {snapshot.name} has failed: {summary}\n"
            f"{''.join(traceback.format_exception(error))}"
            "the end of the server's log:\n" + "\n".join(f"    {line}" for line in log)
        ) from None
