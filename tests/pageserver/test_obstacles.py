"""What a user of a compute node puts into its data directory costs no commit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bbcache.errors import PostgresError, TakeoverError
from bbcache.pageserver import takeover
from bbcache.postgres.pgdata.leftovers import remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from pageserver.conftest import Address, Lab

pytestmark = pytest.mark.postgres

# Commands of the server's user in the data directory; together, since each boot takes a second.
_HARMLESS = [
    "ln -s loop loop",
    "ln -s . here",
    "ln -s /proc/self process",
    "ln -s / everything",
    "ln -s / base/everything",
    "ln -s / pg_tblspc/elsewhere",
    "ln -s pg_tblspc tablespaces",
    "ln -s nowhere dangling",
    "mkfifo pipe",
    "mkfifo base/pipe",
    "mkfifo pg_wal/pipe",
    r"""touch "$(printf 'no\377text')" "$(printf 'two\nlines')" """,
    "mkdir lost+found",
    "rm postmaster.opts; mkdir postmaster.opts",
]
if os.geteuid() == 0:  # another user cannot read it either, and is told so
    _HARMLESS.append("mkdir closed; chmod 0 closed")
# In steps, since no path may be longer than 4096 bytes.
_NEST = (
    "copy (select 1) to program 'cat > /dev/null; path=$(printf d/%.0s $(seq 100)); "
    "for i in $(seq {}); do mkdir -p $path; cd $path; done'"
)


@pytest.fixture
def address(lab: Lab) -> Address:
    """A timeline with one row in a table."""
    return lab.add_timeline(sql="create table t as select 1 i")


def test_what_postgres_does_not_need_is_in_nobodys_way(lab: Lab, address: Address) -> None:
    """The stop succeeds, and the next compute node has the row."""
    compute = lab.boot(address)
    for command in _HARMLESS:
        quoted = command.replace("\\", "\\\\").replace("'", "\\'")
        lab.sql(compute, f"copy (select 1) to program E'cat > /dev/null; {quoted}'")
    assert {"no\udcfftext", "two\nlines"} <= set(os.listdir(compute.cluster.pgdata_dir))
    lab.sql(compute, "insert into t values (2)")
    compute.stop()
    lab.wait_idle()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_a_tree_too_deep_is_refused_and_kept(lab: Lab, address: Address) -> None:
    """The stop names the directory; without the tree the same node can be stopped."""
    compute = lab.boot(address)
    lab.sql(compute, "insert into t values (2)", _NEST.format(15))
    pgdata_dir = compute.cluster.pgdata_dir
    with pytest.raises(TakeoverError, match=re.escape(str(pgdata_dir))):
        compute.stop()
    remove_tree(pgdata_dir / "d")
    compute.stop()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_what_is_refused_can_be_mended_on_the_node(lab: Lab, address: Address) -> None:
    """A node of a failed stop starts again; mended, it is stopped and prepared for."""
    compute = lab.boot(address)
    lab.sql(compute, "insert into t values (2)", _NEST.format(2))
    with pytest.raises(TakeoverError, match="parts"):
        compute.stop()
    compute.start(lab.settings)
    lab.sql(compute, "insert into t values (3)")
    lab.sql(compute, "copy (select 1) to program 'cat > /dev/null; rm -r d'")
    compute.stop()
    lab.wait_idle()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,), (3,)]
    assert lab.reads()["hit"] == 1


# The last process of a server to start; what it reads then would wait for a writer, too.
_ALL_IS_STARTED = """
do $$
begin
    while not exists (select from pg_stat_activity where wait_event = 'LogicalLauncherMain') loop
        perform pg_sleep(0.01), pg_stat_clear_snapshot();
    end loop;
end
$$
"""


@pytest.mark.parametrize("name", ["1213", "pg_filenode.map"])
def test_a_pipe_in_the_place_of_a_catalog_is_named(
    lab: Lab, address: Address, server_dir: Callable[[Path], Path], name: str
) -> None:
    """The takeover reads the catalog of tablespaces, and does not wait for a writer."""
    compute = lab.boot(address)
    lab.sql(
        compute,
        f"create tablespace elsewhere location '{server_dir(compute.cluster.pgdata_dir)}'",
        "checkpoint",
        _ALL_IS_STARTED,
        f"copy (select where false) to program 'cd global; mv {name} ..; mkfifo {name}'",
    )
    with pytest.raises(TakeoverError, match=f"{name}.* not a regular file"):
        compute.stop()
    path = compute.cluster.pgdata_dir / name
    path.rename(compute.cluster.pgdata_dir / "global" / name)
    compute.stop()
    assert lab.read(address, "select i from t") == [(1,)]


@pytest.mark.parametrize("name", [".", "base", "pg_wal", "global/pg_control"])
def test_a_mode_that_keeps_the_server_out_is_named(lab: Lab, address: Address, name: str) -> None:
    """The stop names the path whose mode is wrong; the node can be mended, and loses nothing."""
    compute = lab.boot(address)
    lab.sql(
        compute,
        "insert into t values (2)",
        f"copy (select where false) to program 'chmod 0 {name}'",
    )
    path = Path(os.path.realpath(compute.cluster.pgdata_dir / name))
    mode = 0o700 if path.is_dir() else 0o600
    for step in (compute.stop, lambda: compute.start(lab.settings)):
        with pytest.raises(PostgresError, match=rf"\nhint: Let .* {path} \(mode 0000, owner"):
            step()
    path.chmod(mode)
    compute.start(lab.settings)
    compute.stop()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_links_of_no_tablespace_are_left_out(
    lab: Lab,
    address: Address,
    server_dir: Callable[[Path], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """PostgreSQL starts with them as well; they are named, and a tablespace is kept."""
    compute = lab.boot(address)
    pgdata_dir = compute.cluster.pgdata_dir
    place, foreign_file = server_dir(pgdata_dir), server_dir(pgdata_dir)
    lab.sql(
        compute,
        f"create tablespace elsewhere location '{place}'",
        "create table u tablespace elsewhere as select 2 i",
    )
    targets = {"99991": foreign_file, "99992": "/nowhere", "99993": "99993", "99994": "/dev/null"}
    for name, target in targets.items():
        lab.sql(compute, f"copy (select where false) to program 'ln -s {target} pg_tblspc/{name}'")
    lab.sql(compute, "copy (select where false) to program 'mkdir pg_tblspc/99995'")
    compute.cluster.stop()
    compute.start(lab.settings)
    compute.stop()
    lab.wait_idle()
    left_out = next(line for line in caplog.messages if "belong to no tablespace" in line)
    for name, target in targets.items():
        assert f"pg_tblspc/{name} -> {target}" in left_out
    assert left_out.endswith("pg_tblspc/99995")
    assert lab.read(address, "select i from t union select i from u order by i") == [(1,), (2,)]


def test_a_tablespace_that_is_not_mounted_is_refused_and_kept(
    lab: Lab, address: Address, server_dir: Callable[[Path], Path]
) -> None:
    """Its link and target are named, whether there is nothing or an empty directory."""
    compute = lab.boot(address)
    place = server_dir(compute.cluster.pgdata_dir)
    aside = place.with_name("aside")
    lab.sql(
        compute,
        f"create tablespace elsewhere location '{place}'",
        "create table u tablespace elsewhere as select 2 i",
        "checkpoint",
    )
    compute.cluster.stop()
    place.rename(aside)
    with pytest.raises(TakeoverError, match=rf"/pg_tblspc/\d+ -> {place}: No such file"):
        compute.stop()
    place.mkdir()
    with pytest.raises(TakeoverError, match=rf"/pg_tblspc/\d+ -> {place} has no PG_"):
        compute.stop()
    place.rmdir()
    aside.rename(place)
    compute.stop()
    assert lab.read(address, "select i from u") == [(2,)]


def test_a_killed_node_with_a_deep_tree_is_removed(lab: Lab, address: Address) -> None:
    """However deep a user has made it."""
    compute = lab.boot(address)
    lab.sql(compute, _NEST.format(15))
    compute.kill()
    assert not compute.cluster.pgdata_dir.exists()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_stop_keeps_the_directory(
    lab: Lab,
    address: Address,
    monkeypatch: pytest.MonkeyPatch,
    interruption: type[BaseException],
) -> None:
    """A Ctrl-C in the takeover, and the kill of a clean-up after it, lose nothing."""
    compute = lab.boot(address)
    lab.sql(compute, "insert into t values (2)")

    def interrupt(_fd: int) -> None:
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(interruption):
            compute.stop()
    compute.kill()
    assert compute.cluster.pgdata_dir.is_dir()
    lab.open()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_a_stop_that_takes_too_long_keeps_the_directory(
    lab: Lab, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not end in time is named; the next start waits for it."""
    compute = lab.boot(address)
    lab.sql(compute, "insert into t values (2)")
    os.kill(compute.cluster.pid, signal.SIGSTOP)
    stop = type(compute.cluster).stop
    monkeypatch.setattr(
        type(compute.cluster), "stop", lambda self, mode: stop(self, mode, timeout_s=0.01)
    )
    with pytest.raises(Exception, match="did not stop within"):
        compute.stop()
    monkeypatch.undo()
    os.kill(compute.cluster.pid, signal.SIGCONT)
    compute.kill()
    lab.open()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_an_old_state_that_cannot_be_removed_is_in_nobodys_way(
    lab: Lab, address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    """An immutable file in it costs a warning; stops, takeovers and starts go on."""
    immutable = lab.timeline(address).pgdata_dir / "immutable"
    immutable.touch()
    if subprocess.run(["chattr", "+i", immutable], check=False, capture_output=True).returncode:
        pytest.skip("no file can be made immutable here")
    lab.open()
    try:
        for _ in range(3):
            lab.play(address, "insert into t values (2)")
        assert "cannot be removed" in caplog.text
        lab.open()
        assert len(lab.read(address, "select i from t")) == 4
    finally:
        for path in immutable.parents[1].glob("*.old*/immutable"):
            subprocess.run(["chattr", "-i", path], check=True)


def test_lost_slots_are_named(lab: Lab, address: Address, caplog: pytest.LogCaptureFixture) -> None:
    """The stop warns of replication slots, which no basebackup has."""
    lab.settings = {**lab.settings, "wal_level": "logical"}
    compute = lab.boot(address)
    lab.sql(
        compute,
        "select pg_create_physical_replication_slot('for_standby', true)",
        "select pg_create_logical_replication_slot('for_subscriber', 'pgoutput')",
        "insert into t values (2)",
    )
    compute.stop()
    warnings = [each.getMessage() for each in caplog.records if "slots" in each.message]
    assert len(warnings) == 1
    assert (
        f"{address.timeline_id} has the replication slots for_standby, for_subscriber,"
        in (warnings[0])
    )
    caplog.clear()
    lab.play(address)
    assert "slots" not in caplog.text


def test_names_that_vanish_while_they_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is gone needs no sync."""
    for name in ("a", "b", "c/d", "e/f"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    fsync = os.fsync

    def vanishing(fd: int) -> None:
        fsync(fd)
        for name in ("a", "b"):
            (tmp_path / name).unlink(missing_ok=True)
        for name in ("c", "e"):
            remove_tree(tmp_path / name)

    monkeypatch.setattr(os, "fsync", vanishing)
    takeover.sync_tree(tmp_path)
    assert list(tmp_path.iterdir()) == []
