"""WAL as a running server streams it: all of it, up to the shutdown checkpoint."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg
import psycopg2
import pytest
from psycopg2.extras import PhysicalReplicationConnection
from support.helpers import wait_until

from bbcache import Lsn
from bbcache.pageserver.wal_stream import WalStream
from bbcache.postgres.pgdata.tarball import inspect_pgdata
from bbcache.postgres.wal import WalError, WalFollower, WalReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import ClusterFactory
    from pageserver.conftest import Lab

    from bbcache.postgres.server.cluster import Cluster, PostgresBinaries
    from bbcache.postgres.wal import WalRecord

pytestmark = pytest.mark.postgres


class Noted:
    """What the cache was told, and whether the server was still there."""

    def __init__(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lsns: list[Lsn] = []
        self.ran: list[bool] = []
        self.cluster: Cluster | None = None
        send_prepare = lab.pageserver.cache.send_prepare

        def note(shard: object, timeline_id: object, lsn: Lsn) -> None:
            assert threading.current_thread().name == f"bbcache-follow-{timeline_id}"
            self.lsns.append(lsn)
            if self.cluster is not None:
                self.ran.append((self.cluster.pgdata_dir / "postmaster.pid").exists())
            send_prepare(shard, timeline_id, lsn)  # type: ignore[arg-type]

        monkeypatch.setattr(lab.pageserver.cache, "send_prepare", note)


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def poll(_: WalFollower) -> NoReturn:
        raise AssertionError("the files of the WAL are looked at")

    monkeypatch.setattr(WalFollower, "poll", poll)


@pytest.fixture
def streaming(make_lab: Callable[..., Lab], pg: PostgresBinaries) -> Lab:
    """A lab whose compute nodes stream their WAL."""
    lab = make_lab(pg)
    lab.open(streams_wal=True)
    return lab


def test_a_stop_is_prepared_for(streaming: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shutdown checkpoint comes over the wire before the server ends; the next start hits."""
    address = streaming.add_timeline()
    noted = Noted(streaming, monkeypatch)
    total = 0
    for _ in range(3):
        compute = streaming.boot(address)
        noted.cluster = compute.cluster
        streaming.sql(
            compute,
            "create table if not exists t (i int)",
            "insert into t select i from generate_series(1, 20000) i",
        )
        total += 20000 * 20001 // 2
        lsn = compute.stop()
        assert noted.lsns == [lsn]
        assert noted.ran == [True]
        noted.lsns.clear()
        noted.ran.clear()
        streaming.wait_idle()
        assert streaming.timeline(address).get_last_record_lsn() == lsn
    assert streaming.prepares() == {"ok": 3, "skip": 0, "error": 0}
    assert streaming.read(address, "select sum(i)::int from t") == [(total,)]
    assert streaming.reads() == {"hit": 3, "miss": 1, "error": 0}


def test_a_stop_right_after_the_start(streaming: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A started compute node is followed: nothing that it writes is missed."""
    address = streaming.add_timeline()
    streaming.play(address, "create table t as select 1 i")
    noted = Noted(streaming, monkeypatch)
    compute = streaming.boot(address)
    noted.cluster = compute.cluster
    assert [compute.stop()] == noted.lsns
    assert noted.ran == [True]


class SlowCursor:
    """A cursor on a slow network: after each message it has to wait for the next."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor
        self._is_waiting = False
        self._never_readable = os.eventfd(0)
        weakref.finalize(self, os.close, self._never_readable)

    def read_message(self) -> object:
        """The next message, every other time."""
        self._is_waiting = not self._is_waiting
        return None if self._is_waiting else self._cursor.read_message()

    def fileno(self) -> int:
        """A descriptor that is never readable."""
        return self._never_readable

    def __getattr__(self, name: str) -> object:
        return getattr(self._cursor, name)


class SlowConnection(PhysicalReplicationConnection):
    """A connection whose cursors are slow."""

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """A `SlowCursor`."""
        return SlowCursor(super().cursor(*args, **kwargs))


def test_the_tip_follows(streaming: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server has flushed is the tip, over segment ends too.

    The padding of a segment is no record, and does not make polls rare: here there are a hundred
    polls, and a pause that is doubled after each never ends.
    """
    monkeypatch.setattr(
        "bbcache.pageserver.wal_stream.PhysicalReplicationConnection", SlowConnection
    )
    monkeypatch.setattr("bbcache.pageserver.compute._SHORTEST_PAUSE_S", 0.001)
    monkeypatch.setattr("bbcache.pageserver.compute._LONGEST_PAUSE_S", 3600.0)
    address = streaming.add_timeline()
    timeline = streaming.timeline(address)
    compute = streaming.boot(address)

    def flushed() -> Lsn:
        ((text,),) = streaming.sql(compute, "select pg_current_wal_flush_lsn()::text")
        return Lsn.from_str(text)

    def is_past(lsn: Lsn) -> bool:
        return timeline.get_last_record_lsn() >= lsn

    # The tip is a record's end: it says nothing of a switch before the next record is there.
    for statements in (
        ["create table t as select generate_series(1, 1000) i"],
        ["select pg_switch_wal()", "insert into t select i from t"],
    ):
        streaming.sql(compute, *statements)
        wait_until(partial(is_past, flushed()))
        assert timeline.get_last_record_lsn() <= flushed()
    compute.stop()


def test_one_poll_takes_what_has_come(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A message is taken whole, though it is larger than one read of the socket."""
    cluster = make_cluster(pg)
    control = inspect_pgdata(cluster.pgdata_dir)
    cluster.start()
    stream = WalStream(control.checkpoint_end_lsn, control.wal_segment_size_bytes)
    stream.follow(cluster.conninfo())
    _poll_until(stream, Lsn.from_str(cluster.psql("select pg_current_wal_flush_lsn()")))
    cluster.psql("select pg_logical_emit_message(true, 'x', repeat('y', 100000))")

    def arrived_bytes() -> int:
        answer = fcntl.ioctl(stream._cursor.fileno(), termios.FIONREAD, bytes(4))
        (count,) = struct.unpack("i", answer)
        return int(count)

    wait_until(lambda: arrived_bytes() > 100_000)
    assert max(record.total_length_bytes for record in stream.poll()) > 100_000
    stream.close()


def test_a_superuser_of_any_name(streaming: Lab) -> None:
    """A compute node is followed where the superuser was renamed in an earlier one."""
    address = streaming.add_timeline()
    compute = streaming.boot(address)
    streaming.sql(compute, "create role other superuser login")
    host = compute.cluster.socket_dir
    with psycopg.connect(f"host={host} user=other dbname=postgres", autocommit=True) as other:
        other.execute('alter role postgres rename to "the boss"')
    compute.stop()
    compute = streaming.boot(address)
    streaming.sql(compute, "create table t as select 1 i")
    ((text,),) = streaming.sql(compute, "select pg_current_wal_flush_lsn()::text")
    timeline = streaming.timeline(address)
    wait_until(lambda: timeline.get_last_record_lsn() >= Lsn.from_str(text))
    compute.stop()


def test_a_crash(streaming: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it, the new server is followed from where the old one's WAL was left."""
    address = streaming.add_timeline()
    compute = streaming.boot(address)
    noted = Noted(streaming, monkeypatch)
    streaming.sql(compute, "create table t as select 1 i")
    compute.cluster.stop("immediate")
    compute.start(streaming.settings)
    wait_until(lambda: len(noted.lsns) == 1)  # recovery ends with one, too
    streaming.sql(compute, "insert into t values (2)")
    wait_until(lambda: streaming.skips() == {"tip_moved": 1})
    lsn = compute.stop()
    streaming.wait_idle()
    assert noted.lsns[1:] == [lsn]
    assert streaming.read(address, "select i from t order by i") == [(1,), (2,)]
    assert streaming.reads()["hit"] == 1


def test_a_stream_that_is_cut(streaming: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken up again."""
    address = streaming.add_timeline()
    noted = Noted(streaming, monkeypatch)
    compute = streaming.boot(address)
    cut_pids: set[int] = set()

    def new_pids() -> set[int]:
        streams = "select pid from pg_stat_replication where state = 'streaming'"
        return {pid for (pid,) in streaming.sql(compute, streams)} - cut_pids

    for _ in range(3):
        streaming.sql(compute, "create table if not exists t (i int)", "insert into t values (1)")
        wait_until(new_pids)
        for pid in new_pids():
            streaming.sql(compute, f"select pg_terminate_backend({pid})")
            cut_pids.add(pid)
    wait_until(new_pids)  # one that was cut may still be there
    assert [compute.stop()] == noted.lsns


def test_a_server_that_streams_nothing(streaming: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """Is logged once, and its stop is prepared for all the same."""
    streaming.settings = {**streaming.settings, "max_wal_senders": "0"}
    address = streaming.add_timeline()
    compute = streaming.boot(address)
    streaming.sql(compute, "create table t as select 1 i")
    compute.stop()
    streaming.wait_idle()
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.message for record in errors] == [
        f"cannot follow the WAL of timeline {address.timeline_id}"
    ]
    assert "cannot stream WAL: " in str(errors[0].exc_info[1])  # type: ignore[index]
    assert streaming.prepares() == {"ok": 1, "skip": 0, "error": 0}


def test_a_kill(streaming: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """It ends the stream, which is no error."""
    address = streaming.add_timeline()
    compute = streaming.boot(address)
    streaming.sql(compute, "create table t as select 1 i")
    compute.kill()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert [each for each in threading.enumerate() if "bbcache-follow" in each.name] == []


def _poll_until(stream: WalStream, lsn: Lsn) -> list[WalRecord]:
    records: list[WalRecord] = []

    def is_there() -> bool:
        records.extend(stream.poll())
        return stream.last_record_lsn >= lsn

    wait_until(is_there)
    return records


def test_every_record_comes_once(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """Those of the wire are those of the files, over pages, segments and broken connections."""
    cluster = make_cluster(pg, initdb_args=["--wal-segsize=1"], settings={"wal_keep_size": "1GB"})
    control = inspect_pgdata(cluster.pgdata_dir)
    start_lsn, segment_size_bytes = control.checkpoint_end_lsn, control.wal_segment_size_bytes
    cluster.start()
    stream = WalStream(start_lsn, segment_size_bytes)
    records: list[WalRecord] = []
    for number in range(4):
        stream.follow(cluster.conninfo())
        cluster.psql(
            "create table if not exists t (i int, s text); "
            "insert into t select i, repeat('x', i % 3000) from generate_series(1, 3000) i; "
            + ("select pg_switch_wal(); " * (number % 2))
            + "select pg_logical_emit_message(true, 'x', repeat('y', 300000))"
        )
        flushed = Lsn.from_str(cluster.psql("select pg_current_wal_flush_lsn()"))
        records += _poll_until(stream, flushed)
        stream.close()
    stream.follow(cluster.conninfo())
    records += stream.poll()
    stream.expect_end()
    stopping = threading.Thread(target=cluster.stop)
    stopping.start()

    while stopping.is_alive() or not records[-1].is_shutdown_checkpoint:
        records += stream.poll()
    stopping.join()
    stream.close()
    end_lsn = inspect_pgdata(cluster.pgdata_dir).checkpoint_end_lsn
    assert records[-1].end_lsn == end_lsn
    wal_dir = cluster.pgdata_dir / "pg_wal"
    assert records == list(WalReader(wal_dir, start_lsn, segment_size_bytes))
    assert len(records) > 10_000


class CutCursor:
    """A cursor that loses its connection after some messages."""

    def __init__(self, cursor: Any, message_count: int) -> None:
        self._cursor = cursor
        self._left = message_count

    def read_message(self) -> object:
        """The next one, as long as there may be one."""
        if not self._left:
            raise psycopg2.OperationalError("the connection is cut")
        message = self._cursor.read_message()
        self._left -= message is not None
        return message

    def __getattr__(self, name: str) -> object:
        return getattr(self._cursor, name)


def test_a_stream_that_is_cut_within_a_record(
    pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """The record is received again, from its start."""
    cluster = make_cluster(pg)
    control = inspect_pgdata(cluster.pgdata_dir)
    start_lsn, segment_size_bytes = control.checkpoint_end_lsn, control.wal_segment_size_bytes
    cluster.start()
    stream = WalStream(start_lsn, segment_size_bytes)
    stream.follow(cluster.conninfo())
    records = list(stream.poll())
    cluster.psql("select pg_logical_emit_message(true, 'x', repeat('y', 3000000))")
    stream._cursor = CutCursor(stream._cursor, 3)
    with pytest.raises(WalError, match="broke off: the connection is cut"):
        wait_until(lambda: records.extend(stream.poll()))
    flushed = Lsn.from_str(cluster.psql("select pg_current_wal_flush_lsn()"))
    assert stream.last_record_lsn < flushed
    records += _poll_until(stream, flushed)
    stream.close()
    cluster.stop("immediate")
    assert max(record.total_length_bytes for record in records) > 3_000_000
    found = list(WalReader(cluster.pgdata_dir / "pg_wal", start_lsn, segment_size_bytes))
    assert records == found[: len(records)]


def test_wal_that_is_gone(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """Is an error that says so, each time that it is asked for."""
    cluster = make_cluster(pg, initdb_args=["--wal-segsize=1"])
    control = inspect_pgdata(cluster.pgdata_dir)
    cluster.start({"wal_keep_size": "0", "min_wal_size": "2MB", "max_wal_size": "2MB"})
    for _ in range(3):
        cluster.psql("create table t as select generate_series(1, 30000) i; drop table t")
        cluster.psql("checkpoint")
    stream = WalStream(control.checkpoint_end_lsn, control.wal_segment_size_bytes)
    stream.follow(cluster.conninfo())
    for _ in range(2):
        with pytest.raises(WalError, match="has already been removed"):
            wait_until(lambda: list(stream.poll()))
    stream.close()
    cluster.stop()


def test_without_psycopg2(make_lab: Callable[..., Lab], newest_pg: PostgresBinaries) -> None:
    """The extra that brings it is named, and the timeline can be used by another."""
    lab = make_lab(newest_pg)
    lab.open()
    address = lab.add_timeline()
    lab.close()
    code = """
import sys
sys.modules["psycopg2"] = None
from pathlib import Path
from bbcache import BasebackupCacheConfig, ConfigError, TenantId, TimelineId
from bbcache.pageserver import Pageserver
from bbcache.postgres.server.cluster import PostgresBinaries
root, bindir, tenant, timeline = sys.argv[1:]
binaries = PostgresBinaries.find(Path(bindir))
ids = TenantId.from_str(tenant), TimelineId.from_str(timeline)
with Pageserver(Path(root), binaries, BasebackupCacheConfig(), streams_wal=True) as pageserver:
    with pageserver.open_basebackup(*ids).file as archive:
        for _ in range(2):
            try:
                pageserver.make_compute(*ids, archive)
            except ConfigError as error:
                print(error)
"""
    argv = [lab.root, lab.binaries.bindir, *address]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], check=True, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("cannot stream WAL: ")
    assert lines[1] == "hint: Install what it needs with `pip install 'bbcache[replication]'`."
    assert lines[2:] == lines[:2]
