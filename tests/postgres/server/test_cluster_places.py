"""Clusters in odd places and under odd names: each works, or fails by the full path."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from bbcache.errors import PostgresError
from bbcache.postgres.server.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import ClusterFactory

    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="privileges are dropped by root only")


def moved(cluster: Cluster, name: str | bytes, make_cluster: ClusterFactory) -> Cluster:
    """The same cluster under another name in its directory."""
    path = cluster.pgdata_dir.with_name(os.fsdecode(name))
    cluster.pgdata_dir.rename(path)
    return make_cluster.on(cluster.binaries, path)


def works(cluster: Cluster) -> bool:
    """Whether it starts, and answers psql and a driver."""
    cluster.start()
    with psycopg.connect(cluster.conninfo()) as connection:
        row = connection.execute("SELECT 2").fetchone()
    return (cluster.psql("SELECT 1"), row) == ("1", (2,))


@pytest.mark.parametrize(
    "name", [b"not\xffutf8", b"new\nline", b"a 'q' \"d\" b\\s %d =,$H`x`", "ünï".encode()]
)
def test_odd_names(newest_pg: PostgresBinaries, make_cluster: ClusterFactory, name: bytes) -> None:
    """A data directory may have any name that a file may have."""
    cluster = moved(make_cluster(newest_pg), name, make_cluster)
    assert works(cluster)
    cluster.stop()
    fresh = Cluster(newest_pg, cluster.pgdata_dir.with_name(os.fsdecode(name + b"2")))
    fresh.initdb(["--no-sync"])
    assert (fresh.pgdata_dir / "PG_VERSION").exists()


def test_a_relative_directory(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken from where this process is when the cluster is made."""
    path = make_cluster(newest_pg).pgdata_dir
    monkeypatch.chdir(path.parent)
    cluster = make_cluster.on(newest_pg, Path(path.name))
    monkeypatch.chdir("/")
    assert works(cluster)
    assert cluster.pgdata_dir == path


def test_a_directory_that_is_a_link(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """The files behind it are given to the server's user, as in a directory."""
    target = make_cluster(newest_pg).pgdata_dir
    subprocess.run(["chown", "-R", f"{os.geteuid()}:{os.getegid()}", target], check=True)
    link = make_cluster.new_dir()
    link.symlink_to(target)
    assert works(make_cluster.on(newest_pg, link))


@pytest.mark.parametrize("kind", ["dangling", "loop", "file", "too long", "no such log"])
def test_places_that_cannot_be_used(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, kind: str
) -> None:
    """What the operating system refuses is an error of ours, by the full path."""
    make_cluster.directory.joinpath("file").touch()
    path = make_cluster.directory / {"file": "file", "too long": "x" * 256}.get(kind, "place")
    log_path = None
    if kind in {"dangling", "loop"}:
        path.symlink_to(path if kind == "loop" else path.with_name("nowhere"))
    if kind == "no such log":
        make_cluster(newest_pg).pgdata_dir.rename(path)
        log_path = path.with_name("nowhere") / "log"
    cluster = Cluster(newest_pg, path, log_path=log_path)
    for use in (cluster.start, cluster.initdb)[: 1 if kind == "no such log" else 2]:
        with pytest.raises(PostgresError) as caught:
            use()
        assert str(log_path or path) in str(caught.value)


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Have a file or a directory on a read-only mount."""
    if subprocess.run(["mount", "--bind", path, path], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@needs_root
@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_configuration_on_a_read_only_mount(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, mode: int
) -> None:
    """Root's file that the server can read is let be; one that it cannot read is named."""
    cluster = make_cluster(newest_pg)
    path = cluster.pgdata_dir / "postgresql.conf"
    path.chmod(mode)
    os.chown(path, 0, 0)
    with read_only(path):
        if mode == 0o644:
            assert works(cluster)
            cluster.stop()
        else:
            with pytest.raises(PostgresError, match=f"{path} cannot be given to user .*Read-only"):
                cluster.start()
    assert path.stat().st_uid == 0
    cluster.start()
    assert path.stat().st_uid == cluster.pgdata_dir.stat().st_uid


@needs_root
def test_a_read_only_data_directory(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """It is named, also if it does not have to change its owner."""
    cluster = make_cluster(newest_pg)
    for owner in (cluster.pgdata_dir.stat().st_uid, 0):
        os.chown(cluster.pgdata_dir, owner, owner)
        with read_only(cluster.pgdata_dir), pytest.raises(PostgresError) as caught:
            cluster.start()
        assert str(cluster.pgdata_dir) in str(caught.value)
        assert "Read-only file system" in str(caught.value)


@needs_root
def test_initdb_gives_nothing_away_that_it_refuses(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """A directory with files of others in it keeps its owner, and they theirs."""
    path = make_cluster.new_dir()
    path.mkdir(mode=0o755)
    (path / "file").touch()
    with pytest.raises(PostgresError, match="exists but is not empty"):
        Cluster(newest_pg, path).initdb()
    assert {path.stat().st_uid, (path / "file").stat().st_uid} == {0}


@pytest.mark.parametrize(
    ("name", "is_used"),
    [
        (b"com,ma", False),
        (b"not\xffutf8", False),
        (b"new\nline", False),
        (b"x" * 100, False),
        (b"sp ace 'q' \"d\" b\\s %", True),
    ],
)
def test_odd_temporary_directories(
    newest_pg: PostgresBinaries,
    make_cluster: ClusterFactory,
    monkeypatch: pytest.MonkeyPatch,
    name: bytes,
    *,
    is_used: bool,
) -> None:
    """The socket is in a directory that clients can name: the given one, else /tmp."""
    temp_dir = Path(tempfile.mkdtemp(dir="/tmp"), os.fsdecode(name))
    temp_dir.mkdir()
    for path in (temp_dir, temp_dir.parent):
        path.chmod(0o711)
    monkeypatch.setattr(tempfile, "tempdir", str(temp_dir))
    cluster = make_cluster(newest_pg)
    assert works(cluster)
    assert cluster.socket_dir.parent == (temp_dir if is_used else Path("/tmp"))  # noqa: S108
    cluster.stop()
    temp_dir.rmdir()
    temp_dir.parent.rmdir()


def test_no_place_for_a_socket(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be made in any of the places, the error says why for each."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", "/some,where")
    cluster = make_cluster(newest_pg)
    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(PostgresError) as caught:
        cluster.start()
    assert "/some,where has a comma" in str(caught.value)
    assert "/tmp cannot be written to: No space left" in str(caught.value)  # noqa: S108


STEERING = {
    "PGHOSTADDR": "127.0.0.9",
    "PGOPTIONS": "-c nonsense=1",
    "PGSSLMODE": "verify-full",
    "PGSSLROOTCERT": "system",
    "PGGSSENCMODE": "require",
    "PGCHANNELBINDING": "require",
    "PGTARGETSESSIONATTRS": "standby",
    "PGREQUIREPEER": "nobody-else",
    "PGPORT": "1",
    "PGUSER": "nobody-else",
    "PGDATABASE": "nowhere",
}


def test_a_callers_environment(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither psql nor a driver in this process follows the caller's PG* variables."""
    for name, value in STEERING.items():
        monkeypatch.setenv(name, value)
    assert works(make_cluster(newest_pg))


def test_settings_of_the_caller(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """Values may hold anything, and the port and the socket are still found."""
    name = "a'b\"c\nd=e \\ %s"
    more_dir = make_cluster.new_dir()
    more_dir.mkdir()
    more_dir.chmod(0o777)
    cluster = make_cluster(
        newest_pg,
        settings={
            "application_name": name,
            "port": "6543",
            "unix_socket_directories": str(more_dir),
        },
    )
    assert works(cluster)
    with psycopg.connect(cluster.conninfo(), application_name=name) as connection:
        assert connection.execute("SHOW port").fetchone() == ("6543",)
    assert cluster.port == 6543
    assert (more_dir / ".s.PGSQL.6543").is_socket()
