"""What a compute node's user does to its directory keeps no other node from starting."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest
from pageserver.compute_lives import is_running, leave_orphan
from pageserver.conftest import Address
from support.helpers import wait_until

from bbcache.errors import BrokenError, TakeoverError
from bbcache.postgres.pgdata.control_file import ControlFile
from bbcache.postgres.server.cluster import Cluster

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ClusterFactory
    from pageserver.conftest import Lab

pytestmark = pytest.mark.postgres

_TIED = (
    "alter system set huge_pages = on",
    "alter system set hba_file = '/nowhere/pg_hba.conf'",
    "alter system set unix_socket_group = 'nobody_has_this_group'",
)


@pytest.fixture
def address(lab: Lab) -> Address:
    """A timeline with one row in a table."""
    return lab.add_timeline(sql="create table t as select 1 i")


def test_links_and_settings_of_the_place(lab: Lab, address: Address) -> None:
    """The stop succeeds, and what was committed is what the next node finds."""
    program = "cat > /dev/null; ln -s . loop; ln -s /proc/self me; mkfifo pipe"
    lab.play(address, "insert into t values (2)", *_TIED, f"copy t to program '{program}'")
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_tablespace_and_wal_inside(lab: Lab, address: Address) -> None:
    """Links that lead into the node's directory lead into the timeline's once it was moved."""
    compute = lab.boot(address)
    pgdata_dir = compute.cluster.pgdata_dir
    program = "cat > /dev/null; mkdir space; mv pg_wal wal; ln -s $PWD/wal pg_wal"
    lab.sql(
        compute,
        f"copy t to program '{program}'",
        f"create tablespace inside location '{pgdata_dir}/space'",
        "create table spaced tablespace inside as select 2 i",
    )
    compute.stop()
    assert not pgdata_dir.exists()
    lab.wait_idle()
    assert lab.read(address, "select i from t union select i from spaced order by i") == [
        (1,),
        (2,),
    ]
    names = [path.name for path in lab.timeline(address).pgdata_dir.glob("space/*")]
    assert len(names) == 1


def correct(pgdata_dir: Path) -> None:
    """Take a setting out of a directory by hand."""
    path = pgdata_dir / "postgresql.auto.conf"
    lines = [line for line in path.read_text().splitlines() if "no_such_library" not in line]
    path.write_text("\n".join(lines))


@pytest.mark.parametrize("is_restarted", [False, True])
def test_setting_that_no_server_starts_with(
    lab: Lab, address: Address, *, is_restarted: bool
) -> None:
    """The stop is refused, and the directory kept; corrected, it is taken over."""
    compute = lab.boot(address)
    pgdata_dir = compute.cluster.pgdata_dir
    lab.sql(
        compute,
        "insert into t values (2)",
        "alter system set shared_preload_libraries = 'no_such_library'",
    )
    with pytest.raises(TakeoverError, match="no_such_library") as caught:
        compute.stop()
    assert str(pgdata_dir) in str(caught.value)
    if is_restarted:
        lab.open()
        with pytest.raises(BrokenError):
            lab.pageserver.open_basebackup(*address)
    assert pgdata_dir.is_dir()
    correct(pgdata_dir)
    if is_restarted:
        lab.open()
    else:
        compute.stop()
    assert os.listdir(lab.root / "computes") == []
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("rm -r pg_replslot", "pg_replslot"),
        ("rm PG_VERSION", "PG_VERSION"),
        ("echo 12 > PG_VERSION", "PostgreSQL 12"),
        ("touch recovery.conf", "recovery.conf"),
        ("rm pg_wal/0*", "last checkpoint"),
        ("mkdir recovery.conf", "recovery.conf"),
        ("mv global/pg_control c; ln -s $PWD/c global/pg_control", "pg_control: it is a symbolic"),
    ],
)
def test_what_no_server_starts_without(lab: Lab, address: Address, command: str, word: str) -> None:
    """The stop is refused, and the directory kept, after whatever makes a start impossible."""
    compute = lab.boot(address)
    lab.sql(
        compute,
        "insert into t values (2)",
        f"copy t to program 'cat > /dev/null; {command}'",
    )
    with pytest.raises(TakeoverError, match=word) as caught:
        compute.stop()
    assert str(compute.cluster.pgdata_dir) in str(caught.value)
    assert compute.cluster.pgdata_dir.is_dir()


@pytest.mark.parametrize("command", ["mkdir", "mkfifo", "echo odd >", "ln -s nowhere"])
def test_a_history_of_the_first_timeline(lab: Lab, address: Address, command: str) -> None:
    """PostgreSQL reads none, so whatever has its name is left out."""
    compute = lab.boot(address)
    lab.sql(
        compute,
        "insert into t values (2)",
        f"copy (select where false) to program '{command} pg_wal/00000001.history'",
    )
    compute.stop()
    lab.wait_idle()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_a_history_that_no_server_starts_with(lab: Lab, make_cluster: ClusterFactory) -> None:
    """A later timeline needs its own: a directory, odd text and nothing are refused in turn."""
    promoted = make_cluster(lab.binaries)
    (promoted.pgdata_dir / "standby.signal").touch()
    promoted.start()
    promoted.psql("select pg_promote()")
    promoted.stop()
    tenant = lab.pageserver.tenants.create_tenant()
    promoted.pgdata_dir.rename(lab.root / "promoted")
    timeline = tenant.add_timeline(lab.root / "promoted")
    address = Address(tenant.tenant_id, timeline.timeline_id)
    compute = lab.boot(address)
    lab.sql(compute, "create table t as select 1 i")
    history = compute.cluster.pgdata_dir / "pg_wal/00000002.history"
    text = history.read_text()
    history.unlink()
    history.mkdir()
    with pytest.raises(TakeoverError, match=r"00000002\.history is not a regular file"):
        compute.stop()
    history.rmdir()
    history.write_text("odd\n")
    with pytest.raises(TakeoverError, match="syntax error in history file"):
        compute.stop()
    history.write_text(text)
    compute.stop()
    assert lab.read(address, "select i from t") == [(1,)]


def test_orphan_with_settings_of_the_place(lab: Lab, address: Address) -> None:
    """A server that was killed after such settings is recovered without them."""
    orphan = leave_orphan(lab, address, "insert into t values (2)", *_TIED)
    os.kill(orphan.pid, signal.SIGQUIT)
    wait_until(lambda: not is_running(orphan.pid))
    lab.open()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_a_backup_older_than_the_timeline(lab: Lab, address: Address) -> None:
    """A user has put it in the place of the directory: the stop is refused, and can be mended."""
    backup = lab.root / "backup"
    shutil.copytree(lab.timeline(address).pgdata_dir, backup)
    lab.play(address, "insert into t values (2)")
    compute = lab.boot(address)
    compute.cluster.stop()
    pgdata_dir, aside = compute.cluster.pgdata_dir, lab.root / "aside"
    pgdata_dir.rename(aside)
    backup.rename(pgdata_dir)
    with pytest.raises(TakeoverError, match="the timeline is already at"):
        compute.stop()
    shutil.rmtree(pgdata_dir)
    aside.rename(pgdata_dir)
    compute.stop()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_another_cluster(lab: Lab, address: Address, make_cluster: ClusterFactory) -> None:
    """A user has put it in the place of the directory: the stop names both, and can be mended."""
    compute = lab.boot(address)
    lab.sql(compute, "insert into t values (2)")
    compute.cluster.stop()
    pgdata_dir, aside = compute.cluster.pgdata_dir, lab.root / "aside"
    pgdata_dir.rename(aside)
    other = Cluster(lab.binaries, make_cluster.new_dir())  # not a copy of a template
    other.initdb(["--no-sync"])
    identifier = ControlFile.read(other.pgdata_dir).system_identifier
    other.pgdata_dir.rename(pgdata_dir)
    with pytest.raises(TakeoverError, match=f"it belongs to cluster {identifier}, but"):
        compute.stop()
    shutil.rmtree(pgdata_dir)
    aside.rename(pgdata_dir)
    compute.stop()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]
