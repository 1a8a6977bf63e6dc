"""Compute nodes: their WAL followed, their ends, and what is refused."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pageserver.compute_lives import is_running
from support.cache_helpers import Gate, stop_before
from support.helpers import wait_until

from bbcache import Lsn
from bbcache.errors import ArchiveError, PostgresError, PrepareError
from bbcache.pageserver.wal_stream import WalStream
from bbcache.postgres.pgdata.postmaster_file import PostmasterFile
from bbcache.postgres.wal import WalFollower

if TYPE_CHECKING:
    from collections.abc import Callable

    from pageserver.conftest import Address, Lab

    from bbcache.pageserver import ComputeNode
    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres

_PAGE_BYTES = 8192
_PAGE_HEADER_BYTES = 24
_LAST_OF_PAGE = _PAGE_BYTES - 120  # where a shutdown checkpoint starts that ends with its page
_MESSAGE_BYTES = 24 + 5 + 24 + 2  # what a logical message's record has besides its text
_SMALLEST_BYTES = 400  # a smaller record has a shorter header


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Callable[[Lab], list[Lsn]]:
    """Note the LSN of each `send_prepare` from now on; all come from a following thread."""

    def watch(lab: Lab) -> list[Lsn]:
        lsns: list[Lsn] = []
        send_prepare = lab.pageserver.cache.send_prepare

        def note(shard: object, timeline_id: object, lsn: Lsn) -> None:
            assert threading.current_thread().name == f"bbcache-follow-{timeline_id}"
            lsns.append(lsn)
            send_prepare(shard, timeline_id, lsn)  # type: ignore[arg-type]

        monkeypatch.setattr(lab.pageserver.cache, "send_prepare", note)
        return lsns

    return watch


def test_tip_follows_a_running_compute_node(
    pg: PostgresBinaries, make_lab: Callable[..., Lab]
) -> None:
    """What the server has flushed is the tip, over segment ends too."""
    lab = make_lab(pg)
    lab.open()
    address = lab.add_timeline()
    timeline = lab.timeline(address)
    compute = lab.boot(address)

    def flushed() -> Lsn:
        ((text,),) = lab.sql(compute, "select pg_current_wal_flush_lsn()::text")
        return Lsn.from_str(text)

    for statement in (
        "create table t as select generate_series(1, 1000) i",
        "select pg_switch_wal()",
        "insert into t select i from t",
    ):
        lab.sql(compute, statement)
        wait_until(lambda: timeline.get_last_record_lsn() == flushed())
    before = flushed()
    assert compute.stop() == timeline.get_last_record_lsn() > before


def test_crash_recovery_is_no_stop(
    pg: PostgresBinaries,
    make_lab: Callable[..., Lab],
    sent: Callable[[Lab], list[Lsn]],
) -> None:
    """Its shutdown checkpoint is reported, and skipped once the server has gone on."""
    lab = make_lab(pg)
    lab.open()
    address = lab.add_timeline()
    compute = lab.boot(address)
    lsns = sent(lab)
    lab.sql(compute, "create table t as select 1 i")
    compute.cluster.stop("immediate")
    compute.start(lab.settings)
    assert "was not properly shut down" in compute.cluster.read_log()
    wait_until(lambda: len(lsns) == 1)
    lab.sql(compute, "insert into t values (2)")
    wait_until(lambda: lab.skips() == {"tip_moved": 1})
    lab.wait_idle()
    assert lab.archives() == []
    lsn = compute.stop()
    lab.wait_idle()
    assert lsns[1:] == [lsn]
    assert lsns[0] < lsn
    assert lab.prepares() == {"ok": 1, "skip": 1, "error": 0}
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]
    assert lab.reads()["hit"] == 1


def fill_page(lab: Lab, compute: ComputeNode) -> None:
    """Log messages until a shutdown checkpoint would end with its page."""
    for _ in range(20):
        ((at,),) = lab.sql(compute, "select (pg_current_wal_insert_lsn() - '0/0')::int8")
        gap_bytes = _LAST_OF_PAGE - at % _PAGE_BYTES
        if gap_bytes == 0:
            return
        if gap_bytes < _SMALLEST_BYTES:
            gap_bytes += _PAGE_BYTES - _PAGE_HEADER_BYTES
        text = f"repeat('x', {gap_bytes - _MESSAGE_BYTES})"
        lab.sql(compute, f"select from pg_logical_emit_message(false, 'p', {text})")
    raise AssertionError("other records came in between each time")


@pytest.mark.parametrize("streams_wal", [False, True], ids=["files", "stream"])
def test_a_stop_that_ends_with_a_page(
    pg: PostgresBinaries, make_lab: Callable[..., Lab], *, streams_wal: bool
) -> None:
    """The position has two names; prepare, hit and the next compute node use the same one."""
    lab = make_lab(pg)
    lab.open(streams_wal=streams_wal)
    address = lab.add_timeline()
    compute = lab.boot(address)
    lab.sql(compute, "create table t as select 1 i")
    fill_page(lab, compute)
    lsn = compute.stop()
    assert lsn % _PAGE_BYTES == 0
    lab.wait_idle()
    assert [entry.lsn for entry in lab.pageserver.cache.entries()] == [lsn]
    compute = lab.boot(address)
    assert lab.reads() == {"hit": 1, "miss": 1, "error": 0}
    lab.sql(compute, "insert into t values (2)")
    compute.stop()
    lab.wait_idle()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]
    assert lab.reads() == {"hit": 2, "miss": 1, "error": 0}
    assert lab.prepares() == {"ok": 2, "skip": 0, "error": 0}


def test_one_compute_node_at_a_time(lab: Lab) -> None:
    """A second one is refused, and the first goes on; after its end there can be another."""
    address = lab.add_timeline()
    archive = lab.pageserver.open_basebackup(*address).file
    with archive:
        compute = lab.boot(address)
        with pytest.raises(PrepareError, match=f"{address.timeline_id} has a compute node already"):
            lab.pageserver.make_compute(*address, archive)
    lab.sql(compute, "create table t as select 1 i")
    compute.stop()
    assert lab.read(address, "select i from t") == [(1,)]


def test_kill_puts_the_tip_back(lab: Lab) -> None:
    """What a killed compute node wrote is lost, and the cached basebackup is right again."""
    address = lab.add_timeline()
    lsn = lab.play(address, "create table t as select 1 i")
    compute = lab.boot(address)
    lab.sql(compute, "insert into t values (2)")
    lab.wait_tip_past(address, lsn)
    compute.kill()
    assert lab.timeline(address).get_last_record_lsn() == lsn
    assert not compute.cluster.pgdata_dir.exists()
    lab.pageserver.cache.run_cleanup()
    assert lab.read(address, "select i from t") == [(1,)]
    assert lab.reads() == {"hit": 2, "miss": 1, "error": 0}


def test_kill_ends_the_wait_of_a_prepare(lab: Lab, sent: Callable[[Lab], list[Lsn]]) -> None:
    """A shutdown checkpoint that is lost with its compute node is not waited for."""
    address = lab.add_timeline()
    lsns = sent(lab)
    compute = lab.boot(address)
    lab.sql(compute, "create table t ()")
    compute.cluster.stop("immediate")
    compute.start(lab.settings)
    wait_until(lambda: lsns)
    assert not lab.pageserver.cache.wait_idle(0)
    compute.kill()
    lab.wait_idle()  # in far less than wait_lsn_timeout, 300 s
    assert lab.prepares() == {"ok": 0, "skip": 0, "error": 1}
    assert lab.archives() == []


def test_an_ended_compute_node_cannot_harm_the_next(lab: Lab) -> None:
    """To kill it does nothing, and to stop it again is an error."""
    address = lab.add_timeline()
    first = lab.boot(address)
    lsn = first.stop()
    second = lab.boot(address)
    lab.sql(second, "create table t as select 1 i")
    lab.wait_tip_past(address, lsn)
    tip = lab.timeline(address).get_last_record_lsn()
    first.kill()
    with pytest.raises(PostgresError, match="has already ended"):
        first.stop()
    assert lab.timeline(address).get_last_record_lsn() >= tip
    with pytest.raises(PrepareError, match="already"):
        lab.timeline(address).lend_to_compute()
    second.stop()
    assert lab.read(address, "select i from t") == [(1,)]


@pytest.mark.parametrize("kept", [{}, {"wal_keep_size": "0"}], ids=["kept", "removed"])
def test_following_that_is_far_behind(
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kept: dict[str, str],
) -> None:
    """WAL is kept for it; where it is gone, that is logged once, and the stop is prepared for."""
    address = lab.add_timeline()
    lsn = lab.timeline(address).get_last_record_lsn()
    lab.settings = {**lab.settings, **kept}
    with Gate() as gate:
        stop_before(monkeypatch, WalFollower, "poll", gate)
        compute = lab.boot(address)
        gate.wait_for()
        lab.sql(compute, "create table t as select 1 i", "select pg_switch_wal()")
        lab.sql(compute, "insert into t values (2)", "checkpoint")
        assert lab.timeline(address).get_last_record_lsn() == lsn
        gate.open()
        gate.wait_for(3)
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    timeline = f"timeline {address.timeline_id}"
    assert errors == ([f"cannot follow the WAL of {timeline}"] if kept else [])
    assert compute.stop() == lab.timeline(address).get_last_record_lsn() > lsn
    lab.wait_idle()
    assert lab.prepares() == {"ok": 1, "skip": 0, "error": 0}
    assert lab.read(address, "select count(*)::int from t") == [(2,)]
    assert lab.reads() == {"hit": 1, "miss": 1, "error": 0}


@pytest.mark.parametrize("streams_wal", [False, True], ids=["files", "stream"])
def test_an_idle_compute_node_is_polled_seldom(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, *, streams_wal: bool
) -> None:
    """Polls are rare while nothing is written; later WAL is followed, and a stop prepared for."""
    lab.open(streams_wal=streams_wal)
    address = lab.add_timeline()
    follower = WalStream if streams_wal else WalFollower
    poll, polls = follower.poll, []

    def note(self: Any) -> Any:
        polls.append(time.monotonic())
        return poll(self)

    def last_pauses_s() -> list[float]:
        return [after - before for before, after in pairwise(polls[-4:])]

    monkeypatch.setattr(follower, "poll", note)
    monkeypatch.setattr("bbcache.pageserver.compute._LONGEST_PAUSE_S", 0.16)
    compute = lab.boot(address)
    wait_until(lambda: len(polls) > 4 and min(last_pauses_s()) >= 0.16)
    lsn = lab.timeline(address).get_last_record_lsn()
    lab.sql(compute, "create table t as select 1 i")
    lab.wait_tip_past(address, lsn)
    compute.stop()
    lab.wait_idle()
    assert lab.prepares() == {"ok": 1, "skip": 0, "error": 0}


def outdated(lab: Lab, address: Address) -> bytes:
    """The basebackup at an LSN that the timeline has left behind."""
    with lab.pageserver.open_basebackup(*address).file as archive:
        old = archive.read()
    lab.play(address, "create table t as select 1 i")
    return old


def cut_short(lab: Lab, address: Address) -> bytes:
    """Half a basebackup."""
    with lab.pageserver.open_basebackup(*address).file as archive:
        whole = archive.read()
    return whole[: len(whole) // 2]


@pytest.mark.parametrize(("make", "error"), [(outdated, PrepareError), (cut_short, ArchiveError)])
def test_a_wrong_archive_makes_no_compute_node(
    lab: Lab,
    tmp_path: Path,
    make: Callable[[Lab, Address], bytes],
    error: type[Exception],
) -> None:
    """Nothing is left of the attempt, and the right archive is accepted after it."""
    address = lab.add_timeline()
    archive = tmp_path / "archive"
    archive.write_bytes(make(lab, address))
    with archive.open("rb") as file, pytest.raises(error):
        lab.pageserver.make_compute(*address, file)
    assert list((lab.root / "computes").iterdir()) == []
    lab.boot(address).stop()


def test_a_compute_node_that_does_not_start_can_be_killed(lab: Lab) -> None:
    """The server's own words are in the error, and the timeline is free again."""
    address = lab.add_timeline()
    with lab.pageserver.open_basebackup(*address).file as archive:
        compute = lab.pageserver.make_compute(*address, archive)
    with pytest.raises(PostgresError, match="no_such_setting"):
        compute.start({"no_such_setting": "1"})
    compute.kill()
    lab.boot(address).stop()


def restart_by_user(lab: Lab, compute: ComputeNode) -> int:
    """Restart the server with pg_ctl, as its user may from within; returns the new pid."""
    pgdata_dir = compute.cluster.pgdata_dir
    before = PostmasterFile.read(pgdata_dir)
    assert before is not None
    command = f"setsid {lab.binaries.tool('pg_ctl')} restart -D {pgdata_dir} -l {pgdata_dir}/log"
    statement = f"copy (select where false) to program '{command} >/dev/null 2>&1 </dev/null &'"
    with contextlib.suppress(psycopg.OperationalError):  # the restart may end its connection
        lab.sql(compute, statement)

    def is_ready() -> bool:
        file = PostmasterFile.read(pgdata_dir)
        return file is not None and file.pid != before.pid and file.is_ready

    wait_until(is_ready)
    file = PostmasterFile.read(pgdata_dir)
    assert file is not None
    return file.pid


def test_a_kill_after_a_restart_by_a_user(lab: Lab) -> None:
    """The server that runs now is ended, and does not write on into a removed directory."""
    compute = lab.boot(lab.add_timeline())
    pid = restart_by_user(lab, compute)
    compute.kill()
    assert not is_running(pid)
    assert not compute.cluster.pgdata_dir.exists()


def test_a_stop_after_a_restart_by_a_user(lab: Lab) -> None:
    """The server that runs now is shut down, and what it has committed is taken over."""
    address = lab.add_timeline()
    compute = lab.boot(address)
    lab.sql(compute, "create table t as select 1 i")
    pid = restart_by_user(lab, compute)
    compute.stop()
    assert not is_running(pid)
    assert lab.read(address, "select i from t") == [(1,)]


_FORGETFUL = """
import sys
from pathlib import Path
from bbcache import TenantId, TimelineId
from bbcache.pageserver import Pageserver
from bbcache.postgres.server.cluster import PostgresBinaries
root, bindir, tenant, timeline = sys.argv[1:]
address = TenantId.from_str(tenant), TimelineId.from_str(timeline)
pageserver = Pageserver(Path(root), PostgresBinaries.find(bindir), None)
with pageserver.open_basebackup(*address).file as archive:
    compute = pageserver.make_compute(*address, archive)
compute.start({"fsync": "off"})
compute.cluster.psql("create table t ()")
print(compute.cluster.pid)
"""


def test_a_compute_node_that_is_forgotten_ends_with_the_process(lab: Lab) -> None:
    """The process does not hang, its server is gone, and the next start takes over."""
    address = lab.add_timeline()
    lab.close()
    argv = [str(lab.root), str(lab.binaries.bindir), *map(str, address)]
    done = subprocess.run(
        [sys.executable, "-c", _FORGETFUL, *argv], check=True, capture_output=True, text=True
    )
    assert not Path("/proc", done.stdout.strip()).exists()
    lab.open()
    assert lab.read(address, "select to_regclass('t')::text") == [("t",)]
