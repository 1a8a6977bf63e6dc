"""Takeovers beside readers, of compute nodes that died, and on a disk that fails."""

from __future__ import annotations

import errno
import io
import os
import signal
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import Gate, Worker
from support.helpers import wait_until
from support.threads import is_waiting

from bbcache.errors import BrokenError, PostgresError, PrepareError, TakeoverError
from bbcache.pageserver import takeover
from bbcache.postgres.pgdata.tarball import inspect_pgdata

if TYPE_CHECKING:
    from pageserver.conftest import Lab
    from typing_extensions import Buffer

pytestmark = pytest.mark.postgres


class SlowWriter(io.BytesIO):
    """Stops at a gate before it takes its first bytes."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def write(self, data: Buffer, /) -> int:
        """Take them."""
        self._gate()
        return super().write(data)


def test_takeover_waits_for_a_basebackup_being_read(lab: Lab) -> None:
    """The reader gets the old state whole; one that comes during the takeover gets none of it."""
    address = lab.add_timeline()
    timeline = lab.timeline(address)
    lsn = timeline.get_last_record_lsn()
    whole = io.BytesIO()
    timeline.send_basebackup_tarball(whole, lsn)
    compute = lab.boot(address)
    compute.cluster.psql("create table t ()")
    with Gate() as gate:
        slow, late = SlowWriter(gate), io.BytesIO()
        reader = Worker(timeline.send_basebackup_tarball, slow, lsn)
        gate.wait_for()
        stop = Worker(compute.stop)
        wait_until(lambda: is_waiting(stop, "take_over"))
        late_reader = Worker(timeline.send_basebackup_tarball, late, lsn)
        assert stop.is_alive()
        assert late_reader.is_alive()
        assert compute.cluster.pgdata_dir.exists()
        gate.open()
        reader.result()
        new_lsn = stop.result()
    assert slow.getvalue() == whole.getvalue()
    with pytest.raises(PrepareError, match="has its directory at"):
        late_reader.result()
    assert late.getvalue() == b""
    assert timeline.get_last_record_lsn() == new_lsn


def test_readers_of_one_state_do_not_wait_for_each_other(lab: Lab) -> None:
    """Two basebackups are read at once."""
    address = lab.add_timeline()
    timeline = lab.timeline(address)
    lsn = timeline.get_last_record_lsn()
    with Gate() as gate:
        readers = [
            Worker(timeline.send_basebackup_tarball, SlowWriter(gate), lsn) for _ in range(2)
        ]
        gate.wait_for(2)
        gate.open()
        for reader in readers:
            reader.result()


def test_a_compute_node_that_crashed_can_be_started_and_stopped_again(lab: Lab) -> None:
    """Its stop is refused, with the directory kept; recovered, it is taken over."""
    address = lab.add_timeline()
    lab.play(address, "create table t as select 1 i")
    compute = lab.boot(address)
    compute.cluster.psql("insert into t values (2)")
    os.kill(compute.cluster.pid, signal.SIGQUIT)
    with pytest.raises(PostgresError, match="not shut down cleanly") as caught:
        compute.stop()
    assert str(compute.cluster.pgdata_dir) in str(caught.value)
    with pytest.raises(BrokenError, match="a takeover failed"):
        lab.pageserver.open_basebackup(*address)
    compute.start(lab.settings)
    compute.cluster.psql("insert into t values (3)")
    lsn = compute.stop()
    assert lab.timeline(address).get_last_record_lsn() == lsn
    lab.wait_idle()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,), (3,)]
    assert lab.reads() == {"hit": 2, "miss": 1, "error": 0}


def test_a_compute_node_that_crashed_at_its_stop_is_adopted(lab: Lab) -> None:
    """The next start recovers it, though it was killed after its stop had failed."""
    address = lab.add_timeline()
    lab.play(address, "create table t as select 1 i")
    compute = lab.boot(address)
    compute.cluster.psql("insert into t values (2)")
    os.kill(compute.cluster.pid, signal.SIGQUIT)
    with pytest.raises(PostgresError, match="not shut down cleanly"):
        compute.stop()
    compute.kill()
    with pytest.raises(BrokenError, match="a takeover failed"):
        lab.boot(address)
    lab.open()
    assert lab.read(address, "select i from t order by i") == [(1,), (2,)]


def test_a_directory_that_was_not_shut_down_is_refused(lab: Lab) -> None:
    """What counts is pg_control, not how the server's process ended."""
    address = lab.add_timeline()
    timeline = lab.timeline(address)
    lsn = timeline.get_last_record_lsn()
    compute = lab.boot(address)
    compute.cluster.psql("create table t ()")
    with pytest.raises(PostgresError, match="is running"):
        timeline.take_over(compute.cluster.pgdata_dir)
    compute.cluster.stop("immediate")
    with pytest.raises(PostgresError, match="not shut down cleanly"):
        timeline.take_over(compute.cluster.pgdata_dir)
    with pytest.raises(PostgresError, match="not shut down cleanly"):
        lab.pageserver.tenants.get_tenant(address.tenant_id).add_timeline(
            compute.cluster.pgdata_dir
        )
    compute.kill()
    assert timeline.get_last_record_lsn() == lsn
    timeline.send_basebackup_tarball(io.BytesIO(), lsn)


@pytest.mark.parametrize("failing", ["sync_tree", "sync_directory"])
def test_a_disk_that_fails_makes_the_timeline_unusable_until_a_start(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """The new state stays where it is for the next start; nothing is mixed up before."""
    address = lab.add_timeline()
    lsn = lab.play(address, "create table t as select 1 i")
    compute = lab.boot(address)
    compute.cluster.psql("insert into t values (2)")

    def fail(_directory: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(takeover, failing, fail)
        with pytest.raises(TakeoverError, match="Input/output error") as caught:
            compute.stop()
    assert inspect_pgdata(caught.value.pgdata_dir).checkpoint_end_lsn > lsn
    lab.wait_idle()  # its prepare ends at once
    for use in (
        lambda: lab.pageserver.open_basebackup(*address),
        lambda: lab.pageserver.make_compute(*address, io.BytesIO()),
        lambda: lab.timeline(address).send_basebackup_tarball(io.BytesIO(), lsn),
    ):
        with pytest.raises(PrepareError, match="failed half-way or was interrupted\nhint: "):
            use()
    lab.pageserver.cache.run_cleanup()
    assert len(lab.archives()) == 1
    assert lab.prepares()["ok"] == 1
    lab.open()
    assert lab.read(address, "select count(*)::int from t") == [(2,)]
    assert lab.reads()["hit"] == 0


def test_a_stop_can_be_tried_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a first one could not take over a second one does."""
    address = lab.add_timeline()
    lab.play(address, "create table t as select 1 i")
    compute = lab.boot(address)
    compute.cluster.psql("insert into t values (2)")

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(TakeoverError, match="Input/output error"):
            compute.stop()
    lsn = compute.stop()
    assert lab.timeline(address).get_last_record_lsn() == lsn
    assert os.listdir(lab.root / "computes") == []
    lab.wait_idle()
    assert lab.read(address, "select count(*)::int from t") == [(2,)]
    assert lab.reads()["hit"] == 2
