"""A pageserver that is killed loses nothing that its compute nodes have committed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pageserver.compute_lives import Orphan, is_running, leave_orphan
from support.helpers import wait_until

from bbcache.errors import BrokenError
from bbcache.pageserver import Pageserver
from bbcache.postgres.server.cluster import Cluster
from bbcache.postgres.server.orphan import end_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from pageserver.conftest import Address, Lab

pytestmark = pytest.mark.postgres


@pytest.fixture
def address(lab: Lab) -> Address:
    """A timeline with one row in a table."""
    return lab.add_timeline(sql="create table t as select 1 i")


def test_a_running_compute_node_is_ended_and_taken_over(lab: Lab, address: Address) -> None:
    """Its server was still running; what it had committed is what the next one finds."""
    orphan = leave_orphan(lab, address, "insert into t values (2)")
    socket_dir = socket_dir_of(orphan)
    lab.open()
    assert not is_running(orphan.pid)
    assert not socket_dir.exists()
    assert os.listdir(lab.root / "computes") == []
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def socket_dir_of(orphan: Orphan) -> Path:
    """The directory with the socket of a server that runs."""
    lines = (orphan.pgdata_dir / "postmaster.pid").read_text().splitlines()
    socket_dir = Path(lines[4])  # as PostgreSQL's pidfile.h says
    assert list(socket_dir.glob(".s.PGSQL.*"))
    return socket_dir


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGKILL, signal.SIGINT])
def test_a_server_that_has_ended_is_recovered(
    lab: Lab, address: Address, number: signal.Signals
) -> None:
    """However it has ended: a prepared transaction needs the settings that it ran with."""
    orphan = leave_orphan(
        lab,
        address,
        "insert into t values (2)",
        "begin; insert into t values (3); prepare transaction 'waiting'",
    )
    socket_dir = socket_dir_of(orphan)
    os.kill(orphan.pid, number)
    wait_until(lambda: not is_running(orphan.pid))
    lab.open()
    compute = lab.boot(address)
    lab.sql(compute, "commit prepared 'waiting'")
    assert lab.sql(compute, "select i from t order by i") == [(1,), (2,), (3,)]
    assert not socket_dir.exists()


def test_a_server_without_its_first_process_is_ended(lab: Lab, address: Address) -> None:
    """A backend that goes on calculating after it keeps the directory in use; it goes, too."""
    orphan = leave_orphan(lab, address, "insert into t values (2)")
    socket_dir = socket_dir_of(orphan)
    children = Path(f"/proc/{orphan.pid}/task/{orphan.pid}/children").read_text().split()
    for child in children:
        with suppress(ProcessLookupError):  # that of a connection that was closed
            os.kill(int(child), signal.SIGSTOP)
    os.kill(orphan.pid, signal.SIGKILL)
    assert any(is_running(int(child)) for child in children)
    lab.open()
    assert not any(is_running(int(child)) for child in children)
    assert not socket_dir.exists()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_one_that_was_never_started_is_removed(lab: Lab, address: Address) -> None:
    """There is nothing in it that the timeline has not."""
    orphan = leave_orphan(lab, address, is_started=False)
    assert orphan.pgdata_dir.is_dir()
    lab.open()
    assert os.listdir(lab.root / "computes") == []
    assert lab.read(address, "select i from t") == [(1,)]


def test_one_of_no_timeline_is_ended_and_removed(lab: Lab, address: Address) -> None:
    """Its server does not write on into a directory that is gone."""
    other = lab.add_timeline()
    orphan = leave_orphan(lab, other, "create table t ()")
    socket_dir = socket_dir_of(orphan)
    shutil.rmtree(lab.root / "tenants" / str(other.tenant_id))
    lab.open()
    assert not is_running(orphan.pid)
    assert not socket_dir.exists()
    assert os.listdir(lab.root / "computes") == []
    assert lab.read(address, "select i from t") == [(1,)]


def test_a_failed_adoption_keeps_the_directory(
    lab: Lab, address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named, the timeline is not served with old data, and a later start adopts it."""
    other = lab.add_timeline()
    orphan = leave_orphan(lab, address, "insert into t values (2)")
    os.kill(orphan.pid, signal.SIGQUIT)
    wait_until(lambda: not is_running(orphan.pid))
    wal_dir, aside = orphan.pgdata_dir / "pg_wal", lab.root / "aside"
    wal_dir.rename(aside)
    lab.open()
    assert_refused(lab, address, caplog, str(orphan.pgdata_dir))
    lab.boot(other).stop()
    assert orphan.pgdata_dir.is_dir()
    aside.rename(wal_dir)
    lab.open()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_a_pipe_in_the_place_of_the_version(
    lab: Lab, address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    """The start does not wait for a writer; it names the file, and goes on."""
    command = "mv PG_VERSION V; mkfifo PG_VERSION"
    orphan = leave_orphan(
        lab,
        address,
        "insert into t values (2)",
        f"copy (select where false) to program '{command}'",
    )
    os.kill(orphan.pid, signal.SIGQUIT)
    wait_until(lambda: not is_running(orphan.pid))
    lab.open()
    assert_refused(lab, address, caplog, f"{orphan.pgdata_dir}/PG_VERSION")
    (orphan.pgdata_dir / "V").rename(orphan.pgdata_dir / "PG_VERSION")
    lab.open()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_whatever_fails_the_directory_is_named(
    lab: Lab, address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    """A record of the start that is JSON but no object keeps the directory, and names it."""
    orphan = leave_orphan(lab, address, "insert into t values (2)")
    os.kill(orphan.pid, signal.SIGQUIT)
    wait_until(lambda: not is_running(orphan.pid))
    record = orphan.started_path.read_bytes()
    orphan.started_path.write_text("[]")
    lab.open()
    assert_refused(lab, address, caplog, str(orphan.pgdata_dir))
    orphan.started_path.write_bytes(record)
    lab.open()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


@pytest.mark.parametrize("suffix", ["", ".started"])
def test_one_that_cannot_be_looked_at_is_kept_and_named(
    lab: Lab,
    address: Address,
    suffix: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failing disk does not end the start: the other timelines are served."""
    other = lab.add_timeline()
    orphan = leave_orphan(lab, address, "insert into t values (2)")
    os.kill(orphan.pid, signal.SIGQUIT)
    wait_until(lambda: not is_running(orphan.pid))
    sick = f"{orphan.pgdata_dir}{suffix}"
    wal_dir, aside = orphan.pgdata_dir / "pg_wal", lab.root / "aside"
    wal_dir.rename(aside)  # the disk has no WAL either, so that nothing can be adopted
    real_stat, real_lstat = os.stat, os.lstat

    def failing(path: Any, *, really: Callable[..., Any], **kwargs: Any) -> Any:
        if isinstance(path, str | os.PathLike) and os.fspath(path) == sick:
            raise OSError(errno.EIO, os.strerror(errno.EIO), sick)
        return really(path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", partial(failing, really=real_stat))
        patch.setattr(os, "lstat", partial(failing, really=real_lstat))
        lab.open()
    assert_refused(lab, address, caplog, str(orphan.pgdata_dir))
    lab.boot(other).kill()
    assert orphan.started_path.exists()
    aside.rename(wal_dir)
    lab.open()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_two_directories_of_one_timeline_are_both_kept(
    lab: Lab, address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    """Which of them is right nobody can tell: both are named, and no server goes on."""
    orphan = leave_orphan(lab, address, "insert into t values (2)")
    end_server(orphan.pgdata_dir)
    twin = orphan.pgdata_dir.with_name(orphan.pgdata_dir.name[:-8] + "01234567")
    subprocess.run(["cp", "-a", orphan.pgdata_dir, twin], check=True)
    shutil.copy(orphan.started_path, orphan._replace(pgdata_dir=twin).started_path)
    server = Cluster(lab.binaries, twin, settings=lab.settings)
    server.start()
    pid = server.pid
    lab.open()
    assert_refused(lab, address, caplog, str(orphan.pgdata_dir), str(twin))
    assert not is_running(pid)
    shutil.rmtree(twin)
    lab.open()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_one_that_the_timeline_has_left_behind_is_kept(
    lab: Lab, address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    """An older state never takes the place of a newer one."""
    orphan = leave_orphan(lab, address, "insert into t values (2)")
    end_server(orphan.pgdata_dir)
    started = orphan.started_path
    aside = lab.root / "aside"
    aside.mkdir()
    for path in (orphan.pgdata_dir, started):
        path.rename(aside / path.name)
    lab.open()
    for number in range(3):
        lab.play(address, f"insert into t select generate_series(1, 1000) + {number}")
    lab.close()
    for path in (orphan.pgdata_dir, started):
        (aside / path.name).rename(path)
    lab.open()
    assert_refused(lab, address, caplog, str(orphan.pgdata_dir), "already")
    assert orphan.pgdata_dir.is_dir()


def test_without_programs_some_are_looked_for(lab: Lab, address: Address) -> None:
    """A pageserver that only serves still recovers compute nodes of the last one."""
    orphan = leave_orphan(lab, address, "insert into t values (2)")
    os.kill(orphan.pid, signal.SIGKILL)
    wait_until(lambda: not is_running(orphan.pid))
    with Pageserver(lab.root, None, None):
        pass
    assert not orphan.pgdata_dir.exists()
    lab.open()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def assert_refused(
    lab: Lab, address: Address, caplog: pytest.LogCaptureFixture, *words: str
) -> None:
    """Check that a timeline is not served, and that a log line at the start has said why."""
    with pytest.raises(BrokenError, match=f"{address.timeline_id} .* is broken"):
        lab.pageserver.open_basebackup(*address)
    (line,) = {record.getMessage() for record in caplog.records if "is broken" in record.message}
    assert all(word in line for word in words)
