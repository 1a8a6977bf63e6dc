"""WAL after crashes and promotions, written by real servers."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from bbcache.ids import Lsn
from bbcache.postgres.pgdata.control_file import ControlFile
from bbcache.postgres.server.cluster import Cluster, PostgresBinaries
from bbcache.postgres.server.user import ServerUser
from bbcache.postgres.wal import (
    EndReason,
    ShutdownCheckpointDetector,
    WalFollower,
    WalReader,
    WalRecord,
    canonical_lsn,
    segment_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Templates

pytestmark = pytest.mark.postgres

_PAGE = 8192
_SEGMENT = 1 << 20
_DEADLINE_S = 60.0
_SETTINGS = {
    "autovacuum": "off",
    "fsync": "off",
    "synchronous_commit": "off",
    "max_wal_size": "4GB",
    "wal_keep_size": "4GB",
}
_DUMPED = re.compile(r", lsn: ([0-9A-F/]+), prev ([0-9A-F/]+), desc: ")


def _dump(
    pg: PostgresBinaries, wal_dir: Path, *, tli: int, start_lsn: Lsn, last_lsn: Lsn
) -> list[tuple[Lsn, Lsn]]:
    """Starts of records and of their predecessors, by pg_waldump on one timeline's files."""
    names = [segment_name(tli, lsn, _SEGMENT) for lsn in (start_lsn, last_lsn)]
    shown = subprocess.run(
        [pg.tool("pg_waldump"), f"--path={wal_dir}", *names],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,  # it calls the end of the WAL an error
    ).stdout
    pairs = (map(Lsn.from_str, match.groups()) for match in _DUMPED.finditer(shown))
    return [(lsn, prev) for lsn, prev in pairs if start_lsn <= lsn <= last_lsn]


def _is_overwrite(record: WalRecord) -> bool:
    return record.rmgr_id == 0 and record.info & 0xF0 == 0xD0


def test_crash_recovery_writes_a_shutdown_checkpoint_and_goes_on(
    pg: PostgresBinaries, make_cluster: Any
) -> None:
    """The detector reports the one that ends recovery, and WAL follows it at once."""
    cluster = make_cluster(pg)
    cluster.start()
    cluster.psql("create table t as select generate_series(1, 100) x")
    before = Lsn.from_str(cluster.psql("select pg_current_wal_flush_lsn()"))
    cluster.stop("immediate")
    cluster.start()
    cluster.psql("insert into t values (0)")
    cluster.psql("checkpoint")

    control = ControlFile.read(cluster.pgdata_dir)
    size_bytes = control.wal_segment_size_bytes
    start_lsn = Lsn(before // size_bytes * size_bytes)
    path = cluster.pgdata_dir / "pg_wal" / segment_name(1, start_lsn, size_bytes)
    detector = ShutdownCheckpointDetector(start_lsn, size_bytes)
    recovered = [lsn for lsn in detector.feed(path.read_bytes()) if lsn > before]
    assert len(recovered) == 1
    assert detector.last_record_lsn > recovered[0]
    assert detector.last_record_lsn > control.checkpoint_lsn > recovered[0]

    cluster.stop()
    control = ControlFile.read(cluster.pgdata_dir)
    fresh = path.read_bytes()[detector.next_lsn - start_lsn :]
    assert detector.feed(fresh) == [control.checkpoint_end_lsn]
    assert detector.last_record_lsn == control.checkpoint_end_lsn


def _crossing(records: list[WalRecord], unit: int) -> WalRecord:
    """The last but one of the records that cross a boundary of `unit` bytes."""
    return [r for r in records if r.lsn // unit != (r.end_lsn - 1) // unit][-2]


def _zero_from(wal_dir: Path, lsn: int) -> None:
    """What a power loss does: nothing from `lsn` on has been written."""
    for path in wal_dir.iterdir():
        if len(path.name) == 24:
            start = int(path.name[16:], 16) * _SEGMENT
            with path.open("r+b") as file:
                if start >= lsn:
                    file.write(bytes(_SEGMENT))
                elif start + _SEGMENT > lsn:
                    file.seek(lsn - start)
                    file.write(bytes(start + _SEGMENT - lsn))


@pytest.mark.parametrize("unit", [_PAGE, _SEGMENT])
def test_record_that_was_never_finished_is_passed_over(
    pg: PostgresBinaries, make_cluster: Any, unit: int
) -> None:
    """A crash within a record: the server goes on behind it, and so does the reader."""
    cluster = make_cluster(pg, initdb_args=("--wal-segsize=1",), settings=_SETTINGS)
    cluster.start()
    cluster.psql("create table t (x text); checkpoint")
    cluster.psql("insert into t select repeat('x', 500) from generate_series(1, 6000)")
    cluster.psql("set synchronous_commit = on; insert into t values ('')")
    cluster.stop("immediate")
    wal_dir = cluster.pgdata_dir / "pg_wal"
    control = ControlFile.read(cluster.pgdata_dir)
    before = list(WalReader(wal_dir, control.redo_lsn))
    cut = _crossing(before, unit)
    boundary = Lsn(cut.end_lsn - 1 - (cut.end_lsn - 1) % unit)
    _zero_from(wal_dir, boundary)

    reader = WalReader(wal_dir, control.redo_lsn)
    assert list(reader) == [record for record in before if record.lsn < cut.lsn]
    assert reader.end is not None
    assert reader.end.lsn == canonical_lsn(cut.lsn, _SEGMENT)

    cluster.start()
    cluster.psql("create table u as select 1; checkpoint")
    cluster.stop()
    after = list(WalReader(wal_dir, control.redo_lsn))
    overwrite = next(record for record in after if _is_overwrite(record))
    assert overwrite.prev_lsn == cut.prev_lsn
    assert canonical_lsn(overwrite.lsn, _SEGMENT) == boundary
    assert overwrite.data is not None
    assert int.from_bytes(overwrite.data[2:10], "little") == cut.lsn  # overwritten_lsn
    assert list(reader) == after[after.index(overwrite) :]  # which stood before it
    dumped = _dump(pg, wal_dir, tli=1, start_lsn=control.redo_lsn, last_lsn=after[-1].lsn)
    assert [(record.lsn, record.prev_lsn) for record in after] == dumped
    assert after[-1].end_lsn == ControlFile.read(cluster.pgdata_dir).checkpoint_end_lsn


@dataclass(frozen=True)
class Promotion:
    """A standby that was promoted, with files of the primary's further history beside its own.

    Attributes:
        primary: on timeline 1, stopped.
        standby: on timeline 2, stopped.
        start_lsn: where the WAL of the standby's backup starts.
        followed: what a follower of the standby's WAL saw while all this happened.
    """

    primary: Cluster
    standby: Cluster
    start_lsn: Lsn
    followed: list[WalRecord]

    @property
    def wal_dir(self) -> Path:
        """The standby's segments."""
        return self.standby.pgdata_dir / "pg_wal"


def _fill(cluster: Cluster, table: str) -> None:
    """Write some 3 MiB of WAL."""
    cluster.psql(f"create table {table} (x text)")
    wide_rows = "select repeat('x', 500) from generate_series(1, 6000)"
    cluster.psql(f"insert into {table} {wide_rows}")
    cluster.psql("set synchronous_commit = on; select txid_current()")


def _make_standby(primary: Cluster, pgdata_dir: Path) -> Cluster:
    pgdata_dir.mkdir(mode=0o700)
    ServerUser.current().own_tree(pgdata_dir)
    primary.binaries.run(
        "pg_basebackup",
        f"--pgdata={pgdata_dir}",
        f"--dbname={primary.conninfo()}",
        "--wal-method=stream",
        "--checkpoint=fast",
        "--write-recovery-conf",
        "--no-sync",
    )
    return Cluster(primary.binaries, pgdata_dir, settings=_SETTINGS)


def _wait_for_replay(standby: Cluster, lsn: str) -> None:
    deadline_s = time.monotonic() + _DEADLINE_S
    while standby.psql(f"select pg_last_wal_replay_lsn() >= '{lsn}'") != "t":
        assert time.monotonic() < deadline_s


@pytest.fixture(scope="session")
def promotion(pg: PostgresBinaries, templates: Templates, pg_dir: Path) -> Iterator[Promotion]:
    """A standby made by pg_basebackup and promoted; the primary goes on as well."""
    primary = Cluster(pg, pg_dir / f"primary{pg.major}", settings=_SETTINGS)
    templates.copy(pg, (), primary.pgdata_dir)
    primary.start()
    _fill(primary, "before")
    standby = _make_standby(primary, pg_dir / f"standby{pg.major}")
    wal_dir = standby.pgdata_dir / "pg_wal"
    redo_lsn = ControlFile.read(standby.pgdata_dir).redo_lsn
    start_lsn = Lsn(redo_lsn - redo_lsn % _SEGMENT)
    follower = WalFollower(wal_dir, start_lsn)
    followed = follower.poll()
    standby.start()
    _fill(primary, "streamed")
    _wait_for_replay(standby, primary.psql("select pg_current_wal_flush_lsn()"))
    followed += follower.poll()
    standby.psql("select pg_promote()")
    _fill(standby, "ours")
    followed += follower.poll()
    _fill(primary, "theirs")
    _fill(primary, "theirs2")
    primary.stop()
    standby.stop()
    followed += follower.poll()
    for path in (primary.pgdata_dir / "pg_wal").glob("00000001????????????????"):
        shutil.copy(path, wal_dir)  # as an archive would bring them
    yield Promotion(primary, standby, start_lsn, followed)
    for cluster in (primary, standby):
        shutil.rmtree(cluster.pgdata_dir)


def test_reader_follows_the_newest_timeline(pg: PostgresBinaries, promotion: Promotion) -> None:
    """Records up to the promotion and of the new timeline, none of the old one's further."""
    records = list(WalReader(promotion.wal_dir, promotion.start_lsn))
    switch_lsn = next(r.lsn for r in records if r.rmgr_id == 0 and r.info & 0xF0 == 0x90)
    segment_lsn = Lsn(switch_lsn // _SEGMENT * _SEGMENT)
    last_lsn = records[-1].lsn
    old = _dump(
        pg,
        promotion.primary.pgdata_dir / "pg_wal",
        tli=1,
        start_lsn=promotion.start_lsn,
        last_lsn=last_lsn,
    )
    new = _dump(pg, promotion.wal_dir, tli=2, start_lsn=segment_lsn, last_lsn=last_lsn)
    expected = [pair for pair in old if pair[0] < segment_lsn] + new
    assert [(record.lsn, record.prev_lsn) for record in records] == expected
    assert len([lsn for lsn, _ in old if lsn >= switch_lsn]) > 10  # there was a wrong way to go
    assert len(records) > 10_000
    assert records[-1].end_lsn == ControlFile.read(promotion.standby.pgdata_dir).checkpoint_end_lsn


def test_follower_sees_a_promotion_as_the_reader_does(promotion: Promotion) -> None:
    """Every record comes once, before and after the switch of the timeline."""
    assert promotion.followed == list(WalReader(promotion.wal_dir, promotion.start_lsn))


def test_old_timeline_is_not_taken_up_again(promotion: Promotion, tmp_path: Path) -> None:
    """Where the new timeline's segments end, the old one's further segments are not WAL."""
    wal_dir = tmp_path / "pg_wal"
    shutil.copytree(promotion.wal_dir, wal_dir)
    records = list(WalReader(wal_dir, promotion.start_lsn))
    (wal_dir / segment_name(2, records[-1].lsn, _SEGMENT)).unlink()
    assert (wal_dir / segment_name(1, records[-1].lsn, _SEGMENT)).exists()
    reader = WalReader(wal_dir, promotion.start_lsn)
    read = list(reader)
    assert read == records[: len(read)]
    assert reader.end is not None
    assert reader.end.reason is EndReason.BAD_PAGE
    assert "timeline 1 after 2" in reader.end.message
