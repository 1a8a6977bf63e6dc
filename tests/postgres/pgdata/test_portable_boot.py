"""What a stopped server's user has set does not keep a copy from starting elsewhere."""

from __future__ import annotations

import io
import shutil
from typing import TYPE_CHECKING

import pytest

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.tarball import (
    check_sendable,
    restore_tarball,
    send_pgdata_tarball,
)

if TYPE_CHECKING:
    from conftest import ClusterFactory

    from bbcache.postgres.server.cluster import Cluster, PostgresBinaries

pytestmark = pytest.mark.postgres

# Each keeps a server from its start on a machine that lacks something, or where it
# would share something with its original. A superuser can set all of them by SQL.
_TIED = {
    "hba_file": "/nowhere/pg_hba.conf",
    "ident_file": "/nowhere/pg_ident.conf",
    "external_pid_file": "/nowhere/pid",
    "huge_pages": "on",
    "huge_page_size": "1GB",
    "unix_socket_group": "nobody_has_this_group",
    "archive_mode": "on",
    "archive_command": "false",
    "synchronous_standby_names": "*",
    "log_directory": "/nowhere/log",
    "krb_server_keyfile": "FILE:/nowhere/keytab",
    "recovery_target_xid": "5",
    "recovery_target_time": "2030-01-01",
    "ssl_ca_file": "/nowhere/ca.pem",
    "ssl_cert_file": "/nowhere/server.crt",
    "ssl_key_file": "/nowhere/server.key",
    "ssl_passphrase_command": "/nowhere/ask",
}
_LINES = """
include '/nowhere/x.conf'
include 'gone.conf'
include_dir '/nowhere'
include_dir 'gone'
include 'pipe'
data_directory = '/nowhere'
"""


def copy_of(cluster: Cluster, make_cluster: ClusterFactory) -> Cluster:
    """A running copy of a stopped cluster, which is gone by then."""
    check_sendable(cluster.pgdata_dir)
    tar = io.BytesIO()
    send_pgdata_tarball(cluster.pgdata_dir, tar)
    shutil.rmtree(cluster.pgdata_dir)
    dest = make_cluster.new_dir()
    restore_tarball(io.BytesIO(tar.getvalue()), dest)
    copy = make_cluster.on(cluster.binaries, dest)
    copy.start()
    return copy


def alter_system(cluster: Cluster, settings: dict[str, str]) -> None:
    """Set each by SQL, as a user would."""
    for name, value in settings.items():
        cluster.psql(f"ALTER SYSTEM SET {name} = '{value}'")


def run_program(cluster: Cluster, command: str) -> None:
    """Run a command on the server's machine, in its data directory."""
    cluster.psql(f"COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; {command}'")


def test_settings_tied_to_a_place(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A copy starts whatever of the original's machine its settings name."""
    cluster = make_cluster(pg)
    cluster.start()
    alter_system(cluster, _TIED)
    if pg.major >= 18:
        alter_system(cluster, {"debug_io_direct": "data"})
    cluster.psql("ALTER SYSTEM SET work_mem = '7MB'")
    cluster.psql("CREATE TABLE t AS SELECT 1 AS i")
    run_program(cluster, "mkfifo pipe; ln -s . loop; ln -s /proc/self me; ln -s loop base/loop")
    cluster.stop()
    with (cluster.pgdata_dir / "postgresql.conf").open("a") as conf:
        conf.write(_LINES + ("\nssl = on" if has_ssl(pg) else ""))

    copy = copy_of(cluster, make_cluster)

    assert copy.psql("SELECT i FROM t") == "1"
    assert copy.psql("SHOW work_mem") == "7MB"
    assert copy.psql("SHOW ssl") == "off"


def has_ssl(pg: PostgresBinaries) -> bool:
    """Whether a PostgreSQL was built with TLS."""
    return "--with-ssl" in pg.run("pg_config", "--configure")


def test_paths_inside(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """Absolute paths that led into the original's directory lead into the copy's."""
    cluster = make_cluster(pg)
    inside = cluster.pgdata_dir
    cluster.start()
    run_program(cluster, "mkdir access lib; echo postgres > access/users")
    rule = f'local all @"{inside}/access/users" trust'
    cluster.psql(f"COPY (SELECT '{rule}') TO '{inside}/access/hba.conf' (DELIMITER '|')")
    library_dir = pg.run("pg_config", "--pkglibdir").strip()
    shutil.copy(f"{library_dir}/auth_delay.so", inside / "lib/own.so")
    alter_system(
        cluster,
        {
            "hba_file": f"{inside}/access/hba.conf",
            "log_directory": f"{inside}/my_logs",
            "shared_preload_libraries": f"{inside}/lib/own.so",
        },
    )
    cluster.stop()
    moved = make_cluster.on(pg, inside.rename(make_cluster.new_dir()))

    copy = copy_of(moved, make_cluster)

    assert copy.psql("SHOW log_directory") == "my_logs"
    assert copy.psql("SHOW shared_preload_libraries") == '"lib/own.so"'
    (rule,) = copy.psql("SELECT user_name FROM pg_hba_file_rules").splitlines()
    assert rule == "{postgres}"


def test_link_in_the_place_of_a_table(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """A table that was moved away behind a link is refused at the stop, not left out."""
    cluster = make_cluster(newest_pg)
    cluster.start()
    cluster.psql("CREATE TABLE t AS SELECT 1 AS i")
    path = cluster.pgdata_dir / cluster.psql("SELECT pg_relation_filepath('t')")
    cluster.stop()
    path.symlink_to(path.rename(make_cluster.new_dir()))
    with pytest.raises(PostgresError, match=rf"{path} is a symbolic link"):
        check_sendable(cluster.pgdata_dir)
