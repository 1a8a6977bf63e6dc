"""Ending servers that another process has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.helpers import tool, wait_until

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.control_file import ClusterState, ControlFile
from bbcache.postgres.server.orphan import end_server

if TYPE_CHECKING:
    from conftest import ClusterFactory

    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres


def without_ptrace() -> list[str]:
    """The beginning of a command that ends a server without the right to look into processes."""
    code = "import sys, pathlib; from bbcache.postgres.server.orphan import end_server; "
    code += "end_server(pathlib.Path(sys.argv[1]))"
    return [tool("setpriv"), "--bounding-set=-sys_ptrace", sys.executable, "-c", code]


def test_a_server_is_shut_down_fast(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """It leaves a clean directory, though it was stopped (SIGSTOP); another server goes on."""
    cluster, other = make_cluster(pg), make_cluster(pg)
    cluster.start()
    other.start()
    os.kill(cluster.pid, signal.SIGSTOP)
    end_server(cluster.pgdata_dir)
    wait_until(lambda: not cluster.is_running)  # its last steps, in which it runs no code
    assert ControlFile.read(cluster.pgdata_dir).state is ClusterState.SHUT_DOWN
    assert other.psql("select 1") == "1"


def test_a_pid_of_another_process_is_left_alone(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """A postmaster.pid with the pid of this process goes; then a server can start."""
    cluster = make_cluster(newest_pg)
    cluster.start()
    cluster.psql("create table t ()")
    pid_path = cluster.pgdata_dir / "postmaster.pid"
    lines = pid_path.read_text().splitlines()
    cluster.stop("immediate")
    pid_path.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    end_server(cluster.pgdata_dir)
    assert not pid_path.exists()
    cluster.start()
    assert cluster.psql("select count(*) from t") == "0"


def test_backends_without_their_first_process_are_ended(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """They may not notice by themselves, and would keep the directory in use."""
    cluster = make_cluster(newest_pg)
    cluster.start()
    pid = cluster.pid
    children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for child in children:
        os.kill(child, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not cluster.is_running)
    end_server(cluster.pgdata_dir)
    assert not any(Path(f"/proc/{child}/exe").is_file() for child in children)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user sees its own processes")
def test_root_in_a_container(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """Without the right to see working directories of other users, the server is found."""
    cluster, other = make_cluster(newest_pg), make_cluster(newest_pg)
    cluster.start()
    other.start()
    subprocess.run([*without_ptrace(), str(cluster.pgdata_dir)], check=True)
    wait_until(lambda: not cluster.is_running)
    assert ControlFile.read(cluster.pgdata_dir).state is ClusterState.SHUT_DOWN
    assert other.psql("select 1") == "1"


@pytest.mark.skipif(os.geteuid() != 0, reason="another user sees its own processes")
def test_a_hidden_server_of_another_directory_is_no_obstacle(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, tmp_path: Path
) -> None:
    """A postmaster.pid goes unless it names a process that may be the server."""
    other = make_cluster(newest_pg)
    other.start()
    path = tmp_path / "postmaster.pid"
    for pid, is_kept in ((os.getpid(), False), (other.pid, True)):
        path.write_text(f"{pid}\n")
        subprocess.run([*without_ptrace(), str(tmp_path)], check=True)
        assert path.exists() == is_kept
    assert other.psql("select 1") == "1"


def test_where_no_server_runs(tmp_path: Path) -> None:
    """Nothing happens, nor where there is no directory."""
    end_server(tmp_path)
    end_server(tmp_path / "nothing")


def test_a_pid_file_that_cannot_be_removed_is_named(tmp_path: Path) -> None:
    """A directory in its place is an error with the full path, and stays."""
    path = tmp_path / "postmaster.pid"
    path.mkdir()
    with pytest.raises(PostgresError, match=rf"^cannot remove {path}: Is a directory\nhint: "):
        end_server(tmp_path)
    assert path.is_dir()


def test_a_link_or_pipe_as_pid_file_is_removed(tmp_path: Path) -> None:
    """Any odd file that can be removed is removed; a link's target is left alone."""
    path, target = tmp_path / "postmaster.pid", tmp_path / "target"
    target.touch()
    path.symlink_to(target)
    end_server(tmp_path)
    os.mkfifo(path)
    end_server(tmp_path)
    assert os.listdir(tmp_path) == ["target"]
