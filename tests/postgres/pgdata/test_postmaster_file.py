"""What a postmaster.pid says, and what no process is signalled for."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.postmaster_file import PostmasterFile
from bbcache.postgres.pgdata.tarball import inspect_pgdata

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ClusterFactory

    from bbcache.postgres.server.cluster import Cluster, PostgresBinaries

_REST = "\n/data\n1700000000\n5432\n/tmp\n\n   1   2\nready   \n"


def test_of_a_running_server(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """It has the server's pid, and says that it is ready."""
    cluster = make_cluster(pg)
    assert PostmasterFile.read(cluster.pgdata_dir) is None
    cluster.start()
    file = PostmasterFile.read(cluster.pgdata_dir)
    assert file is not None
    assert (file.pid, file.is_ready) == (cluster.pid, True)
    cluster.stop()
    assert PostmasterFile.read(cluster.pgdata_dir) is None


@pytest.mark.parametrize("text", ["", "\n", " \n"])
def test_an_empty_file_is_none(tmp_path: Path, text: str) -> None:
    """Its server never came up."""
    (tmp_path / "postmaster.pid").write_text(text)
    assert PostmasterFile.read(tmp_path) is None


@pytest.mark.parametrize(
    ("first_line", "pid"), [("4711", 4711), (" 4711  ", 4711), ("-4711", 4711), ("1", 1)]
)
def test_pids(tmp_path: Path, first_line: str, pid: int) -> None:
    """That of a single-user server is negative."""
    (tmp_path / "postmaster.pid").write_text(first_line + _REST)
    assert PostmasterFile.read(tmp_path) == (pid, 1_700_000_000, True)


@pytest.mark.parametrize(
    "first_line",
    [
        str(2**70),
        str(2**31),
        "²",
        "٣",
        "0",
        "-0",
        "--1",
        "+1",
        "1_0",
        "0x1",
        "abc",
        "\0\xff",
        "9" * 99999,
    ],
)
def test_what_is_no_pid(tmp_path: Path, first_line: str) -> None:
    """The file is named by its full path, with what to do."""
    (tmp_path / "postmaster.pid").write_text(first_line + _REST)
    with pytest.raises(PostgresError) as caught:
        PostmasterFile.read(tmp_path)
    assert f"{tmp_path}/postmaster.pid names no process" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\nhint: Remove it" in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    """A directory is named; nothing waits for a FIFO, or reads a device to its end."""
    path = tmp_path / "postmaster.pid"
    path.mkdir()
    with pytest.raises(PostgresError, match=f"cannot read {path}: Is a directory"):
        PostmasterFile.read(tmp_path)
    path.rmdir()
    os.mkfifo(path)
    assert PostmasterFile.read(tmp_path) is None
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(PostgresError, match="names no process"):
        PostmasterFile.read(tmp_path)


@pytest.fixture
def cluster(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> Cluster:
    """A stopped cluster."""
    return make_cluster(newest_pg)


@pytest.mark.postgres
@pytest.mark.parametrize(
    "first_line",
    [str(2**70), "²", "0", "-1", "1", pytest.param(str(os.getpid()), id="own")],
)
def test_a_start_beside_an_odd_file(cluster: Cluster, first_line: str) -> None:
    """The server starts, or the error names the data directory; the pid's owner lives on."""
    (cluster.pgdata_dir / "postmaster.pid").write_text(first_line + _REST)
    said = ""
    try:
        cluster.start()
    except PostgresError as error:
        said = str(error)
    if cluster.is_running:
        assert cluster.psql("SELECT 1") == "1"
    else:
        assert f"the server on {cluster.pgdata_dir} did not start" in said
        assert 'bogus data in lock file "postmaster.pid"' in said


@pytest.mark.postgres
@pytest.mark.parametrize("first_line", [str(2**70), "²", "0"])
def test_a_directory_with_an_odd_file_is_not_sent(cluster: Cluster, first_line: str) -> None:
    """Whether a server runs there cannot be told."""
    (cluster.pgdata_dir / "postmaster.pid").write_text(first_line + _REST)
    with pytest.raises(PostgresError, match=f"{cluster.pgdata_dir}/postmaster.pid names no proces"):
        inspect_pgdata(cluster.pgdata_dir)


@pytest.mark.postgres
def test_a_foreign_process_is_let_be(cluster: Cluster) -> None:
    """A start or stop signals its own server only, whatever the file names."""
    owner = cluster.pgdata_dir.stat().st_uid if os.geteuid() == 0 else None
    foreign = subprocess.Popen(["/bin/sleep", "1000"], user=owner)
    try:
        (cluster.pgdata_dir / "postmaster.pid").write_text(f"{foreign.pid}{_REST}")
        with pytest.raises(PostgresError, match=f"PID {foreign.pid}"):
            cluster.start()
        cluster.stop()
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()
