"""What a killed process leaves behind is cleaned up by its guard."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from support import guarded_children
from support.helpers import wait_until

from bbcache.errors import PostgresError
from bbcache.postgres.server.cluster import Cluster
from bbcache.postgres.server.guard import Guard, clean_up, make_directory
from bbcache.postgres.server.orphan import end_server

if TYPE_CHECKING:
    from conftest import ClusterFactory, Templates

    from bbcache.postgres.server.binaries import PostgresBinaries

pytestmark = pytest.mark.postgres

_CHILDREN: Final = guarded_children.__file__
_SEGMENT: Final = re.compile(r"/dev/shm/PostgreSQL\.\d+")  # noqa: S108 - of PostgreSQL, only looked at


def _start(*arguments: object) -> tuple[subprocess.Popen[str], dict[str, str]]:
    command = [sys.executable, _CHILDREN, *map(str, arguments)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said: dict[str, str] = json.loads(child.stdout.readline())
    return child, said


def _end(child: subprocess.Popen[str]) -> int:
    assert child.stdout is not None
    child.stdout.close()
    return child.wait()


def _is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def _children() -> set[str]:
    """The processes that this one has begun, zombies included."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {pid for path in tasks for pid in path.read_text().split()}


def _shared_memory(directory: Path) -> set[Path]:
    """The segments of the programs that have a data directory in this one by PGDATA."""
    found: set[Path] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"PGDATA={directory}".encode() in (process / "environ").read_bytes():
                found.update(map(Path, _SEGMENT.findall((process / "maps").read_text())))
    return found


def test_a_killed_process_leaves_nothing(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, templates: Templates
) -> None:
    """Server, socket and directory go, although a program and a fork of the process live on."""
    template = make_cluster.new_dir()
    templates.copy(newest_pg, (), template)
    child, said = _start("serve", newest_pg.bindir, template, make_cluster.directory)
    try:
        assert _end(child) == -signal.SIGKILL
        wait_until(lambda: not _is_alive(int(said["pid"])))
        for name in ("directory", "socket_dir"):
            wait_until(lambda path=said[name]: not Path(path).exists())  # type: ignore[misc]
        wait_until(lambda: not _is_alive(int(said["guard_pid"])))
        assert all(_is_alive(int(pid)) for pid in said["others"].split(","))
    finally:
        for pid in said["others"].split(","):
            os.kill(int(pid), signal.SIGKILL)


def test_a_killed_server_leaves_no_shared_memory(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, templates: Templates
) -> None:
    """Its System V segment goes with its directory, removed at once or at the end."""
    for is_at_once in (True, False):
        guard = Guard()
        directory = guard.make_directory(make_cluster.directory, "run-")
        directory.chmod(0o711)
        templates.copy(newest_pg, (), directory / "data")
        cluster = Cluster(newest_pg, directory / "data", guard=guard)
        cluster.start()
        line = (directory / "data" / "postmaster.pid").read_text().splitlines()[6]
        assert line.split() in _sysv_segments()
        os.kill(cluster.pid, signal.SIGKILL)
        wait_until(lambda killed=cluster: not killed.is_running)  # type: ignore[misc]
        if is_at_once:
            guard.remove(directory / "data")
        else:
            guard.clean_up()
        wait_until(lambda removed=cluster.pgdata_dir: not removed.exists())  # type: ignore[misc]
        assert line.split() not in _sysv_segments()
        guard.clean_up()
        wait_until(lambda removed=directory: not removed.exists())  # type: ignore[misc]


def _sysv_segments() -> list[list[str]]:
    """The key and the identifier of each segment."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return [line.split()[:2] for line in lines]


def test_a_kill_in_the_middle_of_initdb(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """The half-made directory goes, initdb with it, and the shared memory of its programs."""
    child, said = _start("make", newest_pg.bindir, make_cluster.directory)
    directory = Path(said["directory"])
    segments: set[Path] = set()

    def is_seen() -> bool:
        segments.update(_shared_memory(directory))
        return bool(segments)

    wait_until(is_seen)
    child.kill()
    _end(child)
    wait_until(lambda: not _is_alive(int(said["guard_pid"])))
    assert not directory.exists()
    assert [path for path in segments if path.exists()] == []


def test_a_closed_guard_removes_nothing(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """It ends at once, and what it was given stays, with its server; closing twice is harmless."""
    guard = Guard()
    directory = guard.make_directory(make_cluster.directory, "kept-")
    unguarded = make_cluster(newest_pg)
    cluster = Cluster(newest_pg, unguarded.pgdata_dir, guard=guard)
    cluster.start({"fsync": "off"})
    guard.close()
    guard.close()
    assert not _is_alive(guard.pid)
    assert directory.exists()
    assert cluster.is_running
    assert cluster.socket_dir.exists()
    cluster.stop("immediate")


def test_removing_at_once(tmp_path: Path) -> None:
    """One directory while this process lives; all that is left when it has no more use for any."""
    guard = Guard()
    first, second = (guard.make_directory(tmp_path, "x-") for _ in range(2))
    (first / "deep").mkdir()
    guard.remove(first)
    wait_until(lambda: not first.exists())
    assert second.exists()
    guard.clean_up()
    wait_until(lambda: not second.exists())
    guard.close()


def test_what_cannot_be_guarded_is_refused(tmp_path: Path) -> None:
    """A name with a line break, a relative one, and anything once the guard is gone."""
    guard = Guard()
    for name in ("/a\nb", "relative"):
        with pytest.raises(PostgresError, match="cannot be guarded"):
            guard.add(name)
    os.kill(guard.pid, signal.SIGKILL)
    wait_until(lambda: not _is_alive(guard.pid))
    with pytest.raises(PostgresError, match="is gone"):
        guard.make_directory(tmp_path, "x-")
    assert list(tmp_path.iterdir()) == []
    guard.close()
    with pytest.raises(PostgresError, match="is closed"):
        guard.add(tmp_path)


def test_cleaning_up_after_a_guard_that_was_killed(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """The server on a directory ends and the directory goes; a neighbour is left alone."""
    directory = make_directory(make_cluster.directory, "left-")
    directory.chmod(0o711)
    left, neighbour = make_cluster(newest_pg), make_cluster(newest_pg)
    left.pgdata_dir.rename(directory / "pgdata")
    cluster = make_cluster.on(newest_pg, directory / "pgdata")
    cluster.start()
    neighbour.start()
    clean_up(directory)
    wait_until(lambda: not directory.exists())
    wait_until(lambda: not cluster.is_running)
    assert neighbour.is_running


def test_no_guard_that_has_ended_is_a_zombie(tmp_path: Path) -> None:
    """This process reaps it, however long it lives itself."""
    before = _children()
    guard = Guard()
    guard.make_directory(tmp_path, "x-")
    guard.clean_up()
    clean_up(make_directory(tmp_path, "left-"))
    wait_until(lambda: _children() <= before)


def test_a_server_that_was_left_is_no_zombie(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """When it ends before this process does."""
    cluster = make_cluster(newest_pg)
    cluster.start()
    pid, postmaster_file = cluster.pid, cluster.pgdata_dir / "postmaster.pid"
    cluster.detach()
    assert postmaster_file.exists()
    os.kill(pid, signal.SIGQUIT)
    wait_until(lambda: str(pid) not in _children())
    end_server(cluster.pgdata_dir)
    assert not postmaster_file.exists()
