"""A cluster that a copy could not start from cleanly is not sent."""

from __future__ import annotations

import io
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.tarball import (
    check_sendable,
    inspect_pgdata,
    send_pgdata_tarball,
)
from bbcache.postgres.wal import segment_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import ClusterFactory

    from bbcache.postgres.server.cluster import Cluster, PostgresBinaries

pytestmark = pytest.mark.postgres


class HookedWriter:
    """Keeps the bytes, and calls back before it takes the first piece."""

    def __init__(self, hook: Callable[[], object]) -> None:
        self._hook: Callable[[], object] | None = hook
        self.tar = io.BytesIO()

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Take a piece."""
        hook, self._hook = self._hook, None
        if hook is not None:
            hook()
        return self.tar.write(data)


@pytest.fixture
def cluster(pg: PostgresBinaries, make_cluster: ClusterFactory) -> Cluster:
    """A cluster that is not running yet."""
    return make_cluster(pg)


@pytest.fixture
def newest_cluster(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> Cluster:
    """A cluster of the newest version that is not running yet."""
    return make_cluster(newest_pg)


def refusal(cluster: Cluster) -> str:
    """Why the cluster is not sent; nothing may have been written."""
    tar = io.BytesIO()
    with pytest.raises(PostgresError) as caught:
        send_pgdata_tarball(cluster.pgdata_dir, tar)
    assert not tar.getvalue()
    with pytest.raises(PostgresError):
        inspect_pgdata(cluster.pgdata_dir)
    return str(caught.value)


def test_running(cluster: Cluster) -> None:
    """A running cluster is refused, and the server's pid named."""
    cluster.start()
    assert f"a server with pid {cluster.pid} is running on" in refusal(cluster)


def test_crashed(cluster: Cluster) -> None:
    """A crashed cluster is refused, and sent after it has recovered and stopped."""
    cluster.start()
    cluster.stop("immediate")
    (cluster.pgdata_dir / "postmaster.pid").unlink(missing_ok=True)
    assert "was not shut down cleanly: its state is in production" in refusal(cluster)
    cluster.start()
    cluster.stop()
    assert send_pgdata_tarball(cluster.pgdata_dir, io.BytesIO()).member_count > 300


def test_standby(cluster: Cluster) -> None:
    """A standby is refused, by its signal file and, without it, by its state."""
    (cluster.pgdata_dir / "standby.signal").touch()
    assert "it is a standby (standby.signal is there)" in refusal(cluster)
    cluster.start()
    cluster.stop()
    (cluster.pgdata_dir / "standby.signal").unlink()
    assert "its state is shut down in recovery\nhint: Send its primary." in refusal(cluster)


@pytest.mark.parametrize("name", ["backup_label", "recovery.signal"])
def test_unrecovered(newest_cluster: Cluster, name: str) -> None:
    """A directory that is still to be recovered is refused."""
    (newest_cluster.pgdata_dir / name).touch()
    assert f"({name} is there)" in refusal(newest_cluster)


def test_no_data_directory(tmp_path: Path) -> None:
    """A directory without pg_control is refused by the file's name."""
    with pytest.raises(PostgresError, match="global/pg_control"):
        send_pgdata_tarball(tmp_path, io.BytesIO())


def test_damaged_control_file(newest_cluster: Cluster) -> None:
    """A pg_control with a flipped bit is refused."""
    path = newest_cluster.pgdata_dir / "global/pg_control"
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    assert "the checksum does not match" in refusal(newest_cluster)


def test_damaged_last_checkpoint(newest_cluster: Cluster) -> None:
    """A directory whose WAL lacks the record that a start needs is refused."""
    control = inspect_pgdata(newest_cluster.pgdata_dir)
    size_bytes = control.wal_segment_size_bytes
    name = segment_name(control.tli, control.checkpoint_lsn, size_bytes)
    with (newest_cluster.pgdata_dir / "pg_wal" / name).open("r+b") as segment:
        segment.seek(control.checkpoint_lsn % size_bytes + 30)
        segment.write(b"other")
    with pytest.raises(PostgresError, match=rf"does not have .* {control.checkpoint_lsn}.*\nhint"):
        check_sendable(newest_cluster.pgdata_dir)


def test_stale_pid_file(newest_cluster: Cluster) -> None:
    """A postmaster.pid whose process is gone holds nothing up, nor one cut short."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    path = newest_cluster.pgdata_dir / "postmaster.pid"
    for text in (f"{gone.pid}\n/somewhere\n", "", "\n"):
        path.write_text(text)
        inspect_pgdata(newest_cluster.pgdata_dir)


def test_pid_of_another_user(newest_cluster: Cluster) -> None:
    """A process that we may not signal counts as alive."""
    (newest_cluster.pgdata_dir / "postmaster.pid").write_text("1\n")
    assert "pid 1 is running" in refusal(newest_cluster)


def test_unreadable_pid_file(newest_cluster: Cluster) -> None:
    """A postmaster.pid that cannot be read is named: it may be that of a server."""
    (newest_cluster.pgdata_dir / "postmaster.pid").mkdir()
    assert "postmaster.pid: Is a directory" in refusal(newest_cluster)


def test_single_user_server(newest_cluster: Cluster) -> None:
    """The negative pid of a single-user server counts as that of a server."""
    (newest_cluster.pgdata_dir / "postmaster.pid").write_text(f"-{os.getpid()}\n")
    assert f"pid {os.getpid()} is running" in refusal(newest_cluster)


def test_started_meanwhile(cluster: Cluster) -> None:
    """A server that was started and stopped while its directory was sent is noticed."""

    def restart() -> None:
        cluster.start()
        cluster.psql("CREATE TABLE t AS SELECT 1")
        cluster.stop()

    writer = HookedWriter(restart)
    with pytest.raises(PostgresError):
        send_pgdata_tarball(cluster.pgdata_dir, writer)
    assert b"global/pg_control" not in writer.tar.getvalue()


def test_started_and_running_meanwhile(newest_cluster: Cluster) -> None:
    """A server that was started while its directory was sent, and still runs, is noticed."""
    writer = HookedWriter(newest_cluster.start)
    with pytest.raises(PostgresError):
        send_pgdata_tarball(newest_cluster.pgdata_dir, writer)
    assert b"global/pg_control" not in writer.tar.getvalue()


def test_included_file_that_is_not_sent(newest_cluster: Cluster) -> None:
    """A configuration file in a directory that is sent empty is named."""
    with (newest_cluster.pgdata_dir / "postgresql.conf").open("a") as conf:
        conf.write("include 'pg_stat_tmp/extra.conf'\n")
    (newest_cluster.pgdata_dir / "pg_stat_tmp/extra.conf").touch()
    with pytest.raises(PostgresError, match=r"pg_stat_tmp/extra\.conf is included"):
        send_pgdata_tarball(newest_cluster.pgdata_dir, io.BytesIO())


def test_access_file_that_cannot_move(newest_cluster: Cluster) -> None:
    """An access rule that would not survive the move is refused before anything is written."""
    with (newest_cluster.pgdata_dir / "pg_hba.conf").open("a") as conf:
        conf.write("local all @/etc/users reject\n")
    tar = io.BytesIO()
    with pytest.raises(PostgresError, match=r"pg_hba\.conf line \d+ names"):
        send_pgdata_tarball(newest_cluster.pgdata_dir, tar)
    assert not tar.getvalue()
    with pytest.raises(PostgresError, match=r"pg_hba\.conf line \d+ names"):
        check_sendable(newest_cluster.pgdata_dir)


def test_nested_too_deep(newest_cluster: Cluster) -> None:
    """A directory of more levels than a restore takes is an error, not a RecursionError."""
    deepest = newest_cluster.pgdata_dir.joinpath(*"d" * 128)
    deepest.mkdir(parents=True)
    with pytest.raises(PostgresError, match=r"more than 128 parts: d/d/.*\nhint: Remove"):
        send_pgdata_tarball(newest_cluster.pgdata_dir, io.BytesIO())
    deepest.rmdir()
    (deepest.parent / "leaf").touch()
    send_pgdata_tarball(newest_cluster.pgdata_dir, io.BytesIO())


@pytest.fixture
def large_file(newest_cluster: Cluster) -> Path:
    """The first file of the directory, large enough not to be read in one go."""
    path = newest_cluster.pgdata_dir / "0_large"
    path.write_bytes(bytes(3 << 20))
    return path


def test_file_that_shrinks(newest_cluster: Cluster, large_file: Path) -> None:
    """A file that is cut while it is read is an error, never a member filled up."""
    writer = HookedWriter(lambda: os.truncate(large_file, 1 << 20))
    with pytest.raises(PostgresError, match=f"^{large_file} became shorter while it was read"):
        send_pgdata_tarball(newest_cluster.pgdata_dir, writer)


def test_file_that_grows(newest_cluster: Cluster, large_file: Path) -> None:
    """A file that grows while it is read is an error, never a member cut short."""
    writer = HookedWriter(lambda: os.truncate(large_file, 4 << 20))
    with pytest.raises(PostgresError, match=f"^{large_file} was written to while it was read"):
        send_pgdata_tarball(newest_cluster.pgdata_dir, writer)


def test_file_that_is_overwritten(newest_cluster: Cluster, large_file: Path) -> None:
    """A file written to while it is read is an error, even at the same size."""

    def overwrite() -> None:
        with large_file.open("r+b") as file:
            file.write(b"x")

    with pytest.raises(PostgresError, match=f"^{large_file} was written to while it was read"):
        send_pgdata_tarball(newest_cluster.pgdata_dir, HookedWriter(overwrite))


def test_file_that_vanishes(newest_cluster: Cluster, large_file: Path) -> None:
    """A file that is removed before it is read is named."""
    other = large_file.with_name("1_other")
    other.touch()
    with pytest.raises(PostgresError, match=f"cannot read {other}: No such file"):
        send_pgdata_tarball(newest_cluster.pgdata_dir, HookedWriter(other.unlink))


def test_error_of_the_writer(newest_cluster: Cluster) -> None:
    """What the writer raises is what the caller gets, an OSError too."""
    error = ConnectionResetError("gone")

    def fail() -> None:
        raise error

    with pytest.raises(ConnectionResetError) as caught:
        send_pgdata_tarball(newest_cluster.pgdata_dir, HookedWriter(fail))
    assert caught.value is error
