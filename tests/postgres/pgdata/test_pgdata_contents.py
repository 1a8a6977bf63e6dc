"""What goes into a basebackup, under which names, and what does not."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import stat
import subprocess
import tarfile
from contextlib import chdir
from typing import TYPE_CHECKING, Any

import pytest

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.tarball import (
    check_sendable,
    restore_tarball,
    send_pgdata_tarball,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import ClusterFactory
    from postgres.conftest import BusyPgdata

    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres

# The files of a stopped data directory that a basebackup is allowed to lack.
_DROPPABLE = re.compile(
    r"postmaster\.opts|(.*/)?pg_internal\.init|current_logfiles|global/pg_control"
    r"|pg_wal/.*|(pg_replslot|pg_notify|pg_subtrans|pg_logical/(snapshots|mappings))/.*"
)


def members_of(pgdata_dir: Path) -> list[tarfile.TarInfo]:
    """The members of a data directory's tarball, in order."""
    tar = io.BytesIO()
    send_pgdata_tarball(pgdata_dir, tar)
    with tarfile.open(fileobj=io.BytesIO(tar.getvalue()), mode="r:") as opened:
        return opened.getmembers()


def content_of(pgdata_dir: Path, name: str) -> bytes:
    """What a data directory's tarball has under a name."""
    tar = io.BytesIO()
    send_pgdata_tarball(pgdata_dir, tar)
    with tarfile.open(fileobj=io.BytesIO(tar.getvalue()), mode="r:") as opened:
        file = opened.extractfile(name)
        assert file is not None
        return file.read()


@pytest.fixture
def pgdata_dir(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> Path:
    """A data directory fresh from initdb, for a test to spoil."""
    return make_cluster(newest_pg).pgdata_dir


def test_nothing_that_matters_is_missing(busy: BusyPgdata) -> None:
    """Every directory is there, and every file but those known to be dispensable."""
    names = {member.name for member in members_of(busy.path)}
    for parent, directories, files in os.walk(busy.path):
        relative = os.path.relpath(parent, busy.path) + "/"
        prefix = "" if relative == "./" else relative
        if prefix == "pg_replslot/":
            continue
        missing = {prefix + name for name in (*directories, *files)} - names
        assert not [name for name in missing if not _DROPPABLE.fullmatch(name)]
    assert any(re.fullmatch(r"pg_twophase/\w+", name) for name in names)
    for fork in ("fsm", "vm", "init"):
        assert any(name.endswith(f"_{fork}") for name in names)


def test_control_file_is_last(busy: BusyPgdata) -> None:
    """global/pg_control is the last member, once, and as it is on disk."""
    names = [member.name for member in members_of(busy.path)]
    assert names.index("global/pg_control") == len(names) - 1
    on_disk = (busy.path / "global/pg_control").read_bytes()
    assert content_of(busy.path, "global/pg_control") == on_disk


def test_headers_say_nothing_of_the_machine(busy: BusyPgdata) -> None:
    """Owner, times and modes are the same for all files and all directories."""
    for member in members_of(busy.path):
        assert member.isfile() or member.isdir()
        assert member.mode == (0o700 if member.isdir() else 0o600)
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
        assert member.mtime == 946684800


def test_sorted_parents_first(busy: BusyPgdata) -> None:
    """Directories stand before what is in them, siblings in the order of their bytes."""
    names = [member.name for member in members_of(busy.path)][:-1]
    assert sorted(names, key=lambda name: name.split("/")) == names


def test_tablespace_is_a_directory(busy: BusyPgdata) -> None:
    """The link of a tablespace is a directory with the files that it leads to."""
    (link,) = (busy.path / "pg_tblspc").iterdir()
    assert link.is_symlink()
    members = {member.name: member for member in members_of(busy.path)}
    assert members[f"pg_tblspc/{link.name}"].isdir()
    files = [path for path in link.glob("PG_*/**/*") if path.is_file()]
    assert files
    for path in files:
        name = f"pg_tblspc/{link.name}/{path.relative_to(link)}"
        assert members[name].size == path.stat().st_size


def test_gnu_tar_takes_it(busy: BusyPgdata, make_cluster: ClusterFactory) -> None:
    """GNU tar unpacks the tarball to the same files as we do, without a word."""
    tar = io.BytesIO()
    send_pgdata_tarball(busy.path, tar)
    ours, theirs = make_cluster.new_dir(), make_cluster.new_dir()
    theirs.mkdir()
    subprocess.run(
        ["tar", "-x", "-C", theirs], input=tar.getvalue(), check=True, stderr=subprocess.STDOUT
    )
    restore_tarball(io.BytesIO(tar.getvalue()), ours)
    subprocess.run(["diff", "-r", ours, theirs], check=True)


LEFT_OUT = {
    "postmaster.opts",
    "backup_manifest",
    "backup_label.old",
    "tablespace_map",
    "current_logfiles",
    "postgresql.auto.conf.tmp",
    "global/pg_internal.init",
    "base/5/pg_internal.init.4711",
    "base/5/t3_16385",
    "base/5/t3_16385_fsm.1",
    "base/pgsql_tmp/pgsql_tmp1.0",
    "pg_replslot/slot/state",
    "pg_notify/0000",
    "pg_subtrans/0000",
    "pg_wal/archive_status/000000010000000000000001.done",
    "pg_wal/00000002.history",
    "log/postgresql.log",
    ".s.PGSQL.5432.lock",
}


def test_left_out(pgdata_dir: Path) -> None:
    """Files that the next start makes again or does not need are not sent."""
    for name in LEFT_OUT:
        (pgdata_dir / name).parent.mkdir(exist_ok=True)
        (pgdata_dir / name).write_bytes(b"stale")
    assert not LEFT_OUT & {member.name for member in members_of(pgdata_dir)}


def test_unknown_files_are_kept(pgdata_dir: Path, make_cluster: ClusterFactory) -> None:
    """Files that PostgreSQL does not know go along, under long and odd names too."""
    names = ["server.crt", "extension.d/data", "base/5/t_16385", "pg_stat/t3_16385", "x" * 120]
    names += ["d/" * 60 + "leaf", "caf\udce9", "new\nline"]
    for name in names:
        (pgdata_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (pgdata_dir / name).write_text(repr(name))
    tar = io.BytesIO()
    send_pgdata_tarball(pgdata_dir, tar)
    dest = make_cluster.new_dir()
    restore_tarball(io.BytesIO(tar.getvalue()), dest)
    assert [(dest / name).read_text() for name in names] == [repr(name) for name in names]


def test_socket_is_left_out(pgdata_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's socket left in the data directory is not sent."""
    monkeypatch.chdir(pgdata_dir)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(".s.PGSQL.5432")
        assert ".s.PGSQL.5432" not in {member.name for member in members_of(pgdata_dir)}


def make_special_files(directory: Path) -> None:
    """Make one of each kind that is no file or directory, and a file system's own directory."""
    (directory / "loop").symlink_to("loop")
    (directory / "self").symlink_to("/proc/self")
    for name in ("out", "base/link", "base/5/link"):
        (directory / name).symlink_to("/etc")
    (directory / "gone").symlink_to("nowhere")
    for name in ("pipe", "base/5/pipe"):
        os.mkfifo(directory / name)
    with socket.socket(socket.AF_UNIX) as server, chdir(directory):
        server.bind("socket")
    (directory / "lost+found").mkdir(mode=0)
    (directory / "base/lost+found").mkdir()
    if os.geteuid() == 0:
        os.mknod(directory / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))


@pytest.mark.parametrize("take", [members_of, check_sendable])
def test_special_files_are_left_out(
    pgdata_dir: Path, take: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Links, pipes, sockets, devices and lost+found are not sent, with a warning each kind."""
    before = [member.name for member in members_of(pgdata_dir)]
    make_special_files(pgdata_dir)
    for number in range(1000):
        (pgdata_dir / "base" / f"link{number}").symlink_to("new\nline")
    take(pgdata_dir)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) <= 5
    assert any(re.search(r"leaves out symbolic links: .*, .* and 1001 more$", w) for w in warnings)
    for kind in ("named pipes: base/5/pipe, pipe", "sockets: socket"):
        assert f"the tarball of {pgdata_dir} leaves out {kind}" in warnings
    assert [member.name for member in members_of(pgdata_dir)] == before
    (pgdata_dir / "lost+found").chmod(0o700)  # so that a plain user can remove it


@pytest.mark.parametrize("take", [members_of, check_sendable])
@pytest.mark.parametrize(
    "name",
    [
        "base/9",
        "base/5/16384",
        "base/5/2619_fsm.2",
        "pg_xact/0001",
        "pg_twophase/000002EF",
        "pg_stat",
    ],
)
def test_special_file_in_the_place_of_data(
    pgdata_dir: Path, take: Callable[[Path], Any], name: str
) -> None:
    """A link or pipe under a name that PostgreSQL uses is refused, and not followed."""
    if name == "pg_stat":
        shutil.rmtree(pgdata_dir / name)
    (pgdata_dir / name).symlink_to("/etc")
    with pytest.raises(PostgresError, match=rf"{name} is a symbolic link.*\nhint: "):
        take(pgdata_dir)
    (pgdata_dir / name).unlink()
    os.mkfifo(pgdata_dir / name)
    with pytest.raises(PostgresError, match=rf"{name} is a named pipe"):
        take(pgdata_dir)


def test_tablespace_inside_is_sent_once(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """A tablespace, or pg_wal, in the data directory has one name, wherever that was moved."""
    cluster = make_cluster(newest_pg)
    (cluster.pgdata_dir / "pg_wal").rename(cluster.pgdata_dir / "wal")
    (cluster.pgdata_dir / "pg_wal").symlink_to(cluster.pgdata_dir / "wal")
    (cluster.pgdata_dir / "my/space").mkdir(parents=True)
    cluster.start()
    cluster.psql(f"CREATE TABLESPACE inside LOCATION '{cluster.pgdata_dir}/my/space'")
    cluster.psql("CREATE TABLE t TABLESPACE inside AS SELECT generate_series(1, 1000) i")
    cluster.stop()
    moved = cluster.pgdata_dir.rename(make_cluster.new_dir())
    names = [member.name for member in members_of(moved)]
    assert "my/space" in names
    assert not [name for name in names if name.startswith(("my/space/", "wal"))]
    copy = make_cluster.on(newest_pg, make_cluster.new_dir())
    tar = io.BytesIO()
    send_pgdata_tarball(moved, tar)
    restore_tarball(io.BytesIO(tar.getvalue()), copy.pgdata_dir)
    copy.start()
    assert copy.psql("SELECT count(*), sum(i) FROM t") == "1000|500500"


def test_name_too_long(pgdata_dir: Path) -> None:
    """A path that no restore could create is refused."""
    with chdir(pgdata_dir):
        for _ in range(17):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
    for take in (members_of, check_sendable):
        with pytest.raises(PostgresError, match=r"more than 4094 bytes: ddd.*\nhint: "):
            take(pgdata_dir)


def test_linked_directories_that_are_emptied(pgdata_dir: Path) -> None:
    """Directories that are sent empty may be links elsewhere."""
    shutil.rmtree(pgdata_dir / "pg_stat_tmp")
    (pgdata_dir / "pg_stat_tmp").symlink_to("/run")
    (found,) = [m for m in members_of(pgdata_dir) if m.name.startswith("pg_stat_tmp")]
    assert found.isdir()


def test_other_version_in_tablespace(busy: BusyPgdata) -> None:
    """What another version keeps in the place of a tablespace is not sent."""
    (link,) = (busy.path / "pg_tblspc").iterdir()
    other = link / "PG_9.1_201105231"
    other.mkdir()
    try:
        assert not [m for m in members_of(busy.path) if "PG_9.1" in m.name]
    finally:
        other.rmdir()


def test_log_directory_of_the_settings(pgdata_dir: Path) -> None:
    """Server logs are dropped from where the settings put them; the directory stays."""
    with (pgdata_dir / "postgresql.conf").open("a") as conf:
        conf.write("log_directory = 'my_logs'\n")
    (pgdata_dir / "my_logs").mkdir()
    (pgdata_dir / "my_logs" / "today.log").write_text("hello")
    names = [member.name for member in members_of(pgdata_dir)]
    assert "my_logs" in names
    assert "my_logs/today.log" not in names


def test_absolute_log_directory(pgdata_dir: Path) -> None:
    """Server logs below an absolute path are dropped where that leads into the directory."""
    with (pgdata_dir / "postgresql.conf").open("a") as conf:
        conf.write(f"log_directory = '{pgdata_dir}/my/logs'\n")
    (pgdata_dir / "my/logs").mkdir(parents=True)
    (pgdata_dir / "my/logs/today.log").write_text("hello")
    names = [member.name for member in members_of(pgdata_dir)]
    assert "my/logs" in names
    assert "my/logs/today.log" not in names
    assert b"log_directory = 'my/logs'" in content_of(pgdata_dir, "postgresql.conf")


def test_old_log_directory(pgdata_dir: Path) -> None:
    """Logs are dropped from pg_log, which is no directory of PostgreSQL's own."""
    with (pgdata_dir / "postgresql.conf").open("a") as conf:
        conf.write("log_directory = 'pg_log'\n")
    (pgdata_dir / "pg_log").mkdir()
    (pgdata_dir / "pg_log/today.log").write_text("hello")
    assert "pg_log/today.log" not in {member.name for member in members_of(pgdata_dir)}


def test_log_directory_among_the_data(pgdata_dir: Path) -> None:
    """A setting that calls a directory of data a place for logs does not drop data."""
    with (pgdata_dir / "postgresql.conf").open("a") as conf:
        conf.write("log_directory = 'base/5'\n")
    assert "base/5/PG_VERSION" in {member.name for member in members_of(pgdata_dir)}
