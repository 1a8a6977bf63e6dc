"""Clusters start, stop and fail as they say, on real servers."""

from __future__ import annotations

import gc
import io
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from support.interrupts import start_interrupted

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.postmaster_file import PostmasterFile
from bbcache.postgres.pgdata.tarball import send_pgdata_tarball
from bbcache.postgres.server import cluster as cluster_module
from bbcache.postgres.server.cluster import Cluster

if TYPE_CHECKING:
    from conftest import ClusterFactory

    from bbcache.postgres.server.cluster import PostgresBinaries, StopMode

pytestmark = pytest.mark.postgres

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="privileges are dropped by root only")
_EXIT_TIMEOUT_S = 60


def is_alive(pid: int) -> bool:
    """Whether there is a process, other than a zombie, with this id."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_gone(pid: int) -> None:
    """Wait until a process has ended."""
    deadline_s = time.monotonic() + _EXIT_TIMEOUT_S
    while is_alive(pid):
        assert time.monotonic() < deadline_s, f"process {pid} is still there"


def start_after_kill(cluster: Cluster) -> None:
    """Start as soon as the children of a killed server have noticed and ended."""
    deadline_s = time.monotonic() + _EXIT_TIMEOUT_S
    while not cluster.is_running:
        try:
            cluster.start()
        except PostgresError as error:
            if "pre-existing shared memory block" not in str(error):
                raise
            assert time.monotonic() < deadline_s, "the children are still there"


def test_life_of_a_cluster(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A cluster is made, started, worked on, stopped and started again with its data."""
    cluster = Cluster(pg, make_cluster.new_dir())
    cluster.initdb(["--no-sync", "--wal-segsize=1"])
    were_running = [cluster.is_running]
    cluster.start({"fsync": "off"})
    were_running.append(cluster.is_running)
    assert cluster.psql("SHOW server_version").split()[0] == pg.version
    assert cluster.psql("SHOW wal_segment_size") == "1MB"
    assert cluster.psql("SHOW fsync") == "off"
    assert cluster.psql("SHOW listen_addresses") == ""
    cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 3) AS i")
    cluster.stop()
    were_running.append(cluster.is_running)
    assert were_running == [False, True, False]
    cluster.start()
    assert cluster.psql("SELECT i FROM t") == "1\n2\n3"
    assert cluster.psql("SHOW fsync") == "on"
    cluster.stop()


def test_connection(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """The connection string leads a driver to the named database, as superuser."""
    cluster = make_cluster(pg)
    cluster.start()
    cluster.psql("""CREATE DATABASE "it's \\ odd" TEMPLATE postgres """)
    with psycopg.connect(cluster.conninfo("it's \\ odd")) as connection:
        row = connection.execute("SELECT current_database(), usesuper FROM pg_user").fetchone()
    assert row == ("it's \\ odd", True)


def test_socket_is_private(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """The socket is in a directory of the server's user alone, which goes with the server."""
    cluster = make_cluster(newest_pg)
    cluster.start()
    socket_dir = cluster.socket_dir
    assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    assert socket_dir.stat().st_uid == cluster.pgdata_dir.stat().st_uid
    assert (socket_dir / f".s.PGSQL.{cluster.port}").is_socket()
    cluster.stop()
    assert not socket_dir.exists()


def test_two_at_once(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """Two clusters run at once without getting in each other's way."""
    clusters = [make_cluster(newest_pg) for _ in range(2)]
    for number, cluster in enumerate(clusters):
        cluster.start()
        cluster.psql(f"CREATE TABLE t{number} ()")
    assert clusters[0].psql("SELECT to_regclass('t0'), to_regclass('t1')") == "t0|"
    assert clusters[1].psql("SELECT to_regclass('t0'), to_regclass('t1')") == "|t1"


def test_environment_does_not_steer(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PG* variables of the caller, set for another server, change nothing."""
    for name in ("PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGSERVICE"):
        monkeypatch.setenv(name, "1")
    cluster = make_cluster(newest_pg)
    cluster.start()
    assert cluster.psql("SELECT 1") == "1"


def test_started_twice(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """Starting a running cluster is an error, and leaves it running."""
    cluster = make_cluster(newest_pg)
    cluster.start()
    with pytest.raises(PostgresError, match="is already running"):
        cluster.start()
    assert cluster.psql("SELECT 1") == "1"


def test_second_server_on_a_directory(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """A second server on a directory does not start, and its error quotes its own log."""
    cluster = make_cluster(newest_pg)
    cluster.start()
    pid = cluster.pid
    second = Cluster(newest_pg, cluster.pgdata_dir, log_path=make_cluster.new_dir())
    with pytest.raises(PostgresError, match=r'lock file "postmaster\.pid" already exists'):
        second.start()
    assert (cluster.is_running, cluster.pid, second.is_running) == (True, pid, False)


def test_failed_start(
    pg: PostgresBinaries, make_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that fails says why in the server's words, and leaves nothing behind."""
    temp_dir = make_cluster.new_dir()
    temp_dir.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temp_dir))
    cluster = make_cluster(pg)
    cluster.start()
    assert cluster.socket_dir.parent == temp_dir
    cluster.stop()
    with pytest.raises(PostgresError) as caught:
        cluster.start({"work_mem": "plenty"})
    assert "did not start (exit status 1)" in str(caught.value)
    assert 'invalid value for parameter "work_mem": "plenty"' in str(caught.value)
    assert "shutting down" not in str(caught.value)  # of the start before
    assert not cluster.is_running
    assert not list(temp_dir.iterdir())
    cluster.start()


def test_start_in_no_time(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A server that is not ready in time is ended."""
    cluster = make_cluster(newest_pg)
    (cluster.pgdata_dir / "recovery.signal").touch()
    with pytest.raises(PostgresError, match="was not ready in time"):
        cluster.start({"restore_command": "sleep 600"}, timeout_s=0.1)
    assert not cluster.is_running
    assert not (cluster.pgdata_dir / "postmaster.pid").exists()


@pytest.mark.parametrize("state", ["ready", "starting"])
def test_stale_pid_file(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, state: str
) -> None:
    """What a server that is gone left in postmaster.pid is not taken for readiness."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    cluster = make_cluster(newest_pg)
    lines = [str(gone.pid), str(cluster.pgdata_dir), "1", "5432", "/tmp", "", "0 0", state]  # noqa: S108
    (cluster.pgdata_dir / "postmaster.pid").write_text("\n".join(lines) + "\n")
    assert not cluster._is_ready(gone.pid, PostmasterFile.read(cluster.pgdata_dir))
    cluster.start()
    assert cluster.psql("SELECT 1") == "1"


def test_a_clock_that_is_set_back(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server starts at an earlier time than this process has seen, and is ready."""
    cluster = make_cluster(newest_pg)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 86_400)
    cluster.start()
    assert cluster.psql("SELECT 1") == "1"


def test_other_major_version(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """Programs of another version than the data name both and say what to install."""
    cluster = make_cluster(newest_pg)
    (cluster.pgdata_dir / "PG_VERSION").write_text("13\n")
    with pytest.raises(PostgresError) as caught:
        cluster.start()
    assert "was made by PostgreSQL 13" in str(caught.value)
    assert f"{newest_pg.bindir} are {newest_pg.version}" in str(caught.value)
    assert "hint: Install PostgreSQL 13" in str(caught.value)


def test_no_data_directory(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A directory without data is named as such."""
    with pytest.raises(PostgresError, match="is not a data directory: it has no PG_VERSION"):
        Cluster(newest_pg, make_cluster.new_dir()).start()


def test_initdb_over_data(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A directory in use is refused by initdb, whose error is quoted."""
    cluster = make_cluster(newest_pg)
    with pytest.raises(PostgresError, match="exists but is not empty"):
        cluster.initdb()


@pytest.mark.parametrize("mode", ["fast", "smart"])
def test_clean_stop(pg: PostgresBinaries, make_cluster: ClusterFactory, mode: StopMode) -> None:
    """After a fast or smart stop the directory can be sent."""
    cluster = make_cluster(pg)
    cluster.start()
    cluster.stop(mode)
    assert send_pgdata_tarball(cluster.pgdata_dir, io.BytesIO()).member_count > 300


def test_immediate_stop(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """After an immediate stop the next start recovers."""
    cluster = make_cluster(newest_pg)
    cluster.start()
    cluster.psql("CREATE TABLE t AS SELECT 1 AS i")
    cluster.stop("immediate")
    cluster.start()
    assert "automatic recovery in progress" in cluster.read_log()
    assert cluster.psql("SELECT i FROM t") == "1"


def test_stop_that_takes_too_long(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """A stop that clients hold up past its deadline is an error, and can be asked for again."""
    cluster = make_cluster(newest_pg)
    cluster.start()
    with psycopg.connect(cluster.conninfo()):
        with pytest.raises(PostgresError, match=r"did not stop within 0\.01 s"):
            cluster.stop("smart", timeout_s=0.01)
        assert cluster.is_running
        cluster.stop("fast")
    assert not cluster.is_running


def test_stop_of_nothing(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """Stopping what does not run does nothing, before the first start and after a stop."""
    cluster = make_cluster(newest_pg)
    cluster.stop()
    cluster.start()
    cluster.stop()
    cluster.stop()
    assert "database system is shut down" in cluster.read_log()


def test_killed_server(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A server that was killed is not running, and stop says that it did not end cleanly."""
    cluster = make_cluster(newest_pg)
    cluster.start()
    os.kill(cluster.pid, signal.SIGKILL)
    wait_gone(cluster._running().pid if cluster.is_running else -1)
    with pytest.raises(PostgresError, match=r"did not shut down cleanly \(exit status -9\)"):
        cluster.stop()
    for use in (cluster.conninfo, lambda: cluster.pid, lambda: cluster.socket_dir):
        with pytest.raises(PostgresError, match="no server is running on"):
            use()
    start_after_kill(cluster)  # which also removes the shared memory of the killed one


def test_context_manager(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """Leaving the block stops the server cleanly; an exception ends it at once."""
    cluster = make_cluster(newest_pg)
    with cluster:
        cluster.start()
    assert not cluster.is_running
    send_pgdata_tarball(cluster.pgdata_dir, io.BytesIO())

    def fail() -> None:
        with cluster:
            cluster.start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not cluster.is_running


def test_dropped_cluster(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A server whose cluster nobody holds any more is shut down."""
    pgdata_dir = make_cluster(newest_pg).pgdata_dir
    cluster = Cluster(newest_pg, pgdata_dir)
    cluster.start()
    pid = cluster.pid
    del cluster
    gc.collect()
    wait_gone(pid)
    send_pgdata_tarball(pgdata_dir, io.BytesIO())


_LEAVE_RUNNING = """
import os, sys
from bbcache.postgres.server.cluster import Cluster, PostgresBinaries
cluster = Cluster(PostgresBinaries.find(sys.argv[1]), sys.argv[2])
cluster.start({"fsync": "off"})
print(cluster.pid, cluster.socket_dir, flush=True)
if sys.argv[3] == "fork":
    child = os.fork()
    if not child:
        sys.exit()
    os.waitpid(child, 0)
    print(cluster.psql("SELECT 'still here'"), flush=True)
"""


@pytest.mark.parametrize("how", ["exit", "fork"])
def test_left_running(newest_pg: PostgresBinaries, make_cluster: ClusterFactory, how: str) -> None:
    """A server left running ends with the interpreter; a forked child does not end it."""
    pgdata_dir = make_cluster(newest_pg).pgdata_dir
    done = subprocess.run(
        [sys.executable, "-c", _LEAVE_RUNNING, newest_pg.bindir, pgdata_dir, how],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(cluster_module.__file__).parents[3],
    )
    pid, socket_dir, *more = done.stdout.split(maxsplit=2)
    wait_gone(int(pid))
    assert not Path(socket_dir).exists()
    assert more == (["still here\n"] if how == "fork" else [])
    send_pgdata_tarball(pgdata_dir, io.BytesIO())


def test_interrupt_is_not_for_the_server(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """A signal to this process group, such as Ctrl-C sends, does not reach the server."""
    cluster = make_cluster(newest_pg)
    cluster.start()
    assert os.getsid(cluster.pid) != os.getsid(0)
    assert os.getpgid(cluster.pid) != os.getpgid(0)


@pytest.mark.parametrize("when", ["before the fork", "after the fork"])
def test_interrupted_start(
    newest_pg: PostgresBinaries,
    make_cluster: ClusterFactory,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """However early a Ctrl-C comes, no server is left, and no socket directory."""
    cluster = make_cluster(newest_pg)
    socket_parent = make_cluster.new_dir()
    socket_parent.mkdir(mode=0o711)
    socket_parent.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(socket_parent))

    with start_interrupted(monkeypatch, when) as pids, pytest.raises(KeyboardInterrupt):
        cluster.start()
    assert not any(map(is_alive, pids))
    assert not cluster.is_running
    assert list(socket_parent.iterdir()) == []
    monkeypatch.undo()
    cluster.start()


def test_tcp_where_asked_for(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """Settings of the caller come last, so a server can listen on TCP; it lets nobody in."""
    cluster = make_cluster(newest_pg)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    cluster.start({"listen_addresses": "127.0.0.1", "port": str(port)})
    with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf rejects"):
        psycopg.connect(f"host=127.0.0.1 port={port} user=postgres")


def test_long_temporary_directory(
    newest_pg: PostgresBinaries,
    make_cluster: ClusterFactory,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Where the temporary directory is too deep for a socket, a shorter one is used."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    cluster = make_cluster(newest_pg)
    cluster.start()
    assert cluster.socket_dir.parent == Path("/tmp")  # noqa: S108
    assert not list(deep.iterdir())


@needs_root
def test_root_drops_privileges(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """As root, the server and its files belong to a plain user with no other group."""
    cluster = make_cluster(pg)
    cluster.start()
    status = Path(f"/proc/{cluster.pid}/status").read_text()
    uid = cluster.pgdata_dir.stat().st_uid
    assert uid != 0
    assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n" in status
    assert "\nGroups:\t \n" in status


@needs_root
def test_parents_keep_their_modes(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """Making and starting a cluster as root changes no directory above it."""
    cluster = Cluster(newest_pg, make_cluster.new_dir())
    parents = [*cluster.pgdata_dir.parents, *newest_pg.bindir.parents]
    before = [(path.stat().st_mode, path.stat().st_uid) for path in parents]
    cluster.initdb(["--no-sync"])
    cluster.start()
    cluster.stop()
    assert [(path.stat().st_mode, path.stat().st_uid) for path in parents] == before


@needs_root
def test_closed_directory(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A data directory below one that is closed to the server's user: an error names it."""
    closed = make_cluster.new_dir()
    closed.mkdir(mode=0o700)
    cluster = Cluster(newest_pg, closed / "data")
    for use in (cluster.initdb, cluster.start):
        if use == cluster.start:
            (closed / "data").mkdir()
            (closed / "data" / "PG_VERSION").write_text(str(newest_pg.major))
        with pytest.raises(PostgresError, match=f"directory {closed} is closed to it\nhint: "):
            use()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
