"""A server on a copy without the tables finds settings with which no server starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bbcache.errors import PostgresError
from bbcache.postgres.server.start_check import check_starts

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ClusterFactory
    from postgres.conftest import BusyPgdata

    from bbcache.postgres.server.cluster import Cluster, PostgresBinaries

pytestmark = pytest.mark.postgres


@pytest.fixture
def stopped(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> Cluster:
    """A cluster that is not running."""
    return make_cluster(newest_pg)


def check(cluster: Cluster, scratch_dir: Path, **settings: str) -> None:
    """Check the directory of a cluster, and that nothing is left."""
    before = sorted(scratch_dir.parent.iterdir())
    try:
        check_starts(cluster.pgdata_dir, cluster.binaries, settings, scratch_dir)
    finally:
        assert sorted(scratch_dir.parent.iterdir()) == before


def test_busy_cluster(busy: BusyPgdata, make_cluster: ClusterFactory) -> None:
    """A cluster with something of everything in it starts, and is left as it was."""
    before = {path: path.lstat() for path in busy.path.rglob("*")}
    scratch_dir = make_cluster.new_dir()
    check_starts(busy.path, busy.binaries, busy.settings, scratch_dir)
    assert {path: path.lstat() for path in busy.path.rglob("*")}.keys() == before.keys()
    assert not scratch_dir.exists()


def test_too_few_prepared_transactions(busy: BusyPgdata, make_cluster: ClusterFactory) -> None:
    """A transaction that is prepared needs room in the next server."""
    settings = {**busy.settings, "max_prepared_transactions": "0"}
    with pytest.raises(PostgresError, match="maximum number of prepared transactions reached"):
        check_starts(busy.path, busy.binaries, settings, make_cluster.new_dir())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("shared_preload_libraries = 'no_such_library'", 'could not access file "no_such_library"'),
        ("session_preload_libraries = 'no_such'", 'could not access file "no_such"'),
        ("local_preload_libraries = 'no_such'", 'could not access file "[^"]*/plugins/no_such"'),
        ("shared_buffers = '7TB'", "could not map anonymous shared memory"),
        ("wal_level = minimal", "requires"),
        ("lc_messages = 'xx_YY'", "invalid value for parameter"),
        ("no_such_setting = 1", "unrecognized configuration parameter"),
        ("work_mem = ", "syntax error"),
        ("include 'postgresql.auto.conf'", "nesting depth exceeded|recursion"),
    ],
)
def test_setting_that_no_server_starts_with(
    stopped: Cluster, make_cluster: ClusterFactory, line: str, reason: str
) -> None:
    """What a start refuses is refused, with PostgreSQL's own words."""
    with (stopped.pgdata_dir / "postgresql.auto.conf").open("a") as conf:
        conf.write(f"{line}\n")
    with pytest.raises(PostgresError, match=rf"(?s)no server would start .*({reason}).*\nhint: "):
        check(stopped, make_cluster.new_dir())


def test_libraries_that_are_there(
    stopped: Cluster, make_cluster: ClusterFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """A server starts with the libraries of all lists, and with none, and warns of nothing."""
    with (stopped.pgdata_dir / "postgresql.auto.conf").open("a") as conf:
        conf.write("shared_preload_libraries = 'pg_stat_statements, \"auth_delay\"'\n")
        conf.write("session_preload_libraries = 'auto_explain'\nlocal_preload_libraries = ''\n")
    check(stopped, make_cluster.new_dir())
    assert caplog.messages == []


def test_wrong_access_rule(stopped: Cluster, make_cluster: ClusterFactory) -> None:
    """A pg_hba.conf that cannot be read stops a start."""
    with (stopped.pgdata_dir / "pg_hba.conf").open("a") as conf:
        conf.write("local all all no_such_method\n")
    with pytest.raises(PostgresError, match="invalid authentication method"):
        check(stopped, make_cluster.new_dir())


def test_tied_settings_do_not_count(stopped: Cluster, make_cluster: ClusterFactory) -> None:
    """What a copy goes without does not stop its start; a large file is not copied."""
    with (stopped.pgdata_dir / "postgresql.auto.conf").open("a") as conf:
        conf.write("huge_pages = on\nhba_file = '/nowhere'\nunix_socket_group = 'nobody_has_it'\n")
    with (stopped.pgdata_dir / "large").open("wb") as file:
        file.truncate(1 << 40)
    check(stopped, make_cluster.new_dir())
