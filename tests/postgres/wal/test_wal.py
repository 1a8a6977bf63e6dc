"""WAL as pg_waldump and the server itself read it, record by record."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pytest

from bbcache.ids import Lsn
from bbcache.postgres.pgdata.control_file import ControlFile
from bbcache.postgres.server.cluster import Cluster
from bbcache.postgres.wal import (
    EndReason,
    ShutdownCheckpointDetector,
    WalReader,
    WalRecord,
    canonical_lsn,
    record_end_lsn,
    segment_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Templates

    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres

_PAGE = 8192
_SEGMENT = 1 << 20
_RMGRS = (
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
)
_DUMPED = re.compile(
    r"rmgr: (\w+) +len \(rec/tot\): +\d+/ *(\d+), tx: +(\d+), lsn: ([0-9A-F/]+), "
    r"prev ([0-9A-F/]+), desc: (\w+)"
)
_DUMP_END = re.compile(r"error in WAL record at [0-9A-F/]+: .* at ([0-9A-F/]+)")
_SETTINGS = {
    "autovacuum": "off",
    "fsync": "off",
    "synchronous_commit": "off",
    "max_wal_size": "4GB",
    "wal_keep_size": "4GB",
}


class Dumped(NamedTuple):
    """A record as pg_waldump shows it."""

    rmgr: str
    length_bytes: int
    xid: int
    lsn: Lsn
    prev_lsn: Lsn


def _shown(record: WalRecord) -> Dumped:
    """What pg_waldump would show of `record`."""
    return Dumped(
        _RMGRS[record.rmgr_id],
        record.total_length_bytes,
        record.xid,
        record.lsn,
        record.prev_lsn,
    )


class Dump:
    """What pg_waldump finds from one segment to another.

    Attributes:
        records: all the records.
        kinds: the kind of each, such as ``CHECKPOINT_SHUTDOWN``, by its LSN.
        end: where it found no more.
    """

    def __init__(self, pg: PostgresBinaries, wal_dir: Path, first: str, last: str) -> None:
        self.records: list[Dumped] = []
        self.kinds: dict[Lsn, str] = {}
        command = [str(pg.tool("pg_waldump")), f"--path={wal_dir}", first, last]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            for line in process.stdout:
                self._add(line)
            found = _DUMP_END.search(process.stderr.read())
        self.end = Lsn.from_str(found[1]) if found else None

    def _add(self, line: str) -> None:
        match = _DUMPED.match(line)
        assert match is not None, line[:200]
        rmgr, length_bytes, xid, lsn, prev_lsn, kind = match.groups()
        record = Dumped(
            rmgr, int(length_bytes), int(xid), Lsn.from_str(lsn), Lsn.from_str(prev_lsn)
        )
        self.records.append(record)
        self.kinds[record.lsn] = kind


@dataclass(frozen=True)
class History:
    """The WAL of a cluster that was used, crashed, restarted and stopped.

    Attributes:
        pgdata_dir: its data directory, cleanly shut down.
        records: all the records, as WalReader reads them.
        reader: the reader, at its end.
        dump: the same as pg_waldump reads them.
        server_ends: where the server itself says that records end, by their starts.
    """

    pgdata_dir: Path
    records: list[WalRecord]
    reader: WalReader
    dump: Dump
    server_ends: dict[Lsn, Lsn]

    @property
    def wal_dir(self) -> Path:
        """The directory of the segments."""
        return self.pgdata_dir / "pg_wal"


def _pgbench(cluster: Cluster, *args: str) -> None:
    cluster.binaries.run("pgbench", *args, f"--host={cluster.socket_dir}", "-Upostgres", "postgres")


def _make_history(cluster: Cluster) -> dict[Lsn, Lsn]:
    """Write at least 30,000 records, with all that can happen to WAL in between."""
    cluster.start()
    _pgbench(cluster, "-i", "-q", "-s", "1")
    _pgbench(cluster, "-c", "2", "-t", "500")
    cluster.psql(
        "create table bulk (i int primary key); insert into bulk select generate_series(1, 10000)"
    )
    for i in range(3):
        cluster.psql(f"create table switched{i} as select 1; select pg_switch_wal()")
    cluster.psql("select from pg_logical_emit_message(true, 'big', repeat('x', 3500000))")
    cluster.stop()
    cluster.start()
    _pgbench(cluster, "-c", "2", "-t", "100")
    cluster.stop("immediate")
    cluster.start()
    _pgbench(cluster, "-c", "2", "-t", "100")
    cluster.psql("checkpoint; begin; update bulk set i = -i; commit; checkpoint")
    cluster.psql("update bulk set i = -i where i > -1000")
    cluster.stop("immediate")
    cluster.start()
    ends = _ends_by_server(cluster)
    cluster.psql("create table last as select 1")
    cluster.stop()
    return ends


def _ends_by_server(cluster: Cluster) -> dict[Lsn, Lsn]:
    """Where records end by pg_walinspect, from the oldest segment on; {} where there is none."""
    if not cluster.psql("select name from pg_available_extensions where name = 'pg_walinspect'"):
        return {}
    first = next(iter(WalReader(cluster.pgdata_dir / "pg_wal")))
    cluster.psql("create extension pg_walinspect; select txid_current(); checkpoint")
    wal = f"pg_get_wal_records_info('{first.lsn}', pg_current_wal_flush_lsn())"
    rows = cluster.psql(f"select start_lsn, end_lsn from {wal}")  # noqa: S608 - an Lsn's text
    pairs = (row.split("|") for row in rows.splitlines())
    return {Lsn.from_str(start): Lsn.from_str(end) for start, end in pairs}


@pytest.fixture(scope="session")
def history(pg: PostgresBinaries, templates: Templates, pg_dir: Path) -> Iterator[History]:
    """The history, made once for each PostgreSQL."""
    directory = pg_dir / f"history{pg.major}"
    cluster = Cluster(pg, directory, settings=_SETTINGS)
    templates.copy(pg, (), cluster.pgdata_dir)
    server_ends = _make_history(cluster)
    wal_dir = directory / "pg_wal"
    reader = WalReader(wal_dir)
    records = list(reader)
    first = segment_name(1, records[0].lsn, _SEGMENT)
    last = segment_name(1, records[-1].lsn, _SEGMENT)
    yield History(directory, records, reader, Dump(pg, wal_dir, first, last), server_ends)
    shutil.rmtree(directory)


def test_every_record_is_as_pg_waldump_shows_it(history: History) -> None:
    """Resource manager, length, transaction, start and predecessor of each are equal."""
    assert len(history.dump.records) >= 30_000
    assert [_shown(record) for record in history.records] == history.dump.records


def test_every_end_is_as_the_server_sees_it(history: History) -> None:
    """The end of each record is the one that the server's own reader has."""
    if not history.server_ends:
        pytest.skip("this PostgreSQL comes without pg_walinspect")
    assert len(history.server_ends) >= 30_000
    ends = {record.lsn: record.end_lsn for record in history.records}
    assert {lsn: ends[lsn] for lsn in history.server_ends} == history.server_ends


def test_ends_follow_from_starts_and_lengths(history: History) -> None:
    """An end is computed from start and length, is canonical, and the next record is there."""
    records = history.records
    for record, following in itertools.pairwise(records):
        assert canonical_lsn(record.end_lsn, _SEGMENT) == record.end_lsn
        if not _is_switch(record):
            expected = record_end_lsn(record.lsn, record.total_length_bytes, _SEGMENT)
            assert record.end_lsn == expected
        if not _is_overwrite(following):
            assert canonical_lsn(following.lsn, _SEGMENT) == record.end_lsn
        assert record.data is not None
        assert len(record.data) == record.total_length_bytes - 24


def _is_switch(record: WalRecord) -> bool:
    return record.rmgr_id == 0 and record.info & 0xF0 == 0x40


def _is_overwrite(record: WalRecord) -> bool:
    return record.rmgr_id == 0 and record.info & 0xF0 == 0xD0


def test_history_has_all_that_is_hard(history: History) -> None:
    """Records cross pages and segments, end on boundaries, and switch segments."""

    def count(unit: int) -> int:
        return sum(r.lsn // unit != (r.end_lsn - 1) // unit for r in history.records)

    assert count(_PAGE) > 300
    assert count(_SEGMENT) > 5
    assert max(record.total_length_bytes for record in history.records) > 3 * _SEGMENT
    assert sum(record.end_lsn % _PAGE == 0 for record in history.records) > 5
    assert sum(map(_is_switch, history.records)) == 3


def test_end_is_that_of_pg_waldump_and_pg_control(history: History) -> None:
    """Reading stops where pg_waldump stops, which is the end of the shutdown checkpoint."""
    end = history.reader.end
    assert end is not None
    control = ControlFile.read(history.pgdata_dir)
    assert end.lsn == history.reader.last_record_lsn == control.checkpoint_end_lsn
    assert history.dump.end is not None
    assert end.lsn == canonical_lsn(history.dump.end, _SEGMENT)
    assert end.reason in {EndReason.ZEROS, EndReason.RECYCLED_PAGE, EndReason.NO_MORE_BYTES}
    assert history.reader.wal_segment_size_bytes == _SEGMENT


@pytest.mark.parametrize("piece_size_bytes", [1000, 100_003, 1 << 30])
def test_detector_reports_what_pg_waldump_calls_shutdown_checkpoints(
    history: History, piece_size_bytes: int
) -> None:
    """The ends of exactly these records come out, whatever pieces the WAL comes in."""
    start_lsn = history.records[0].lsn // _SEGMENT * _SEGMENT
    names = sorted(path.name for path in history.wal_dir.iterdir() if len(path.name) == 24)
    wal = b"".join((history.wal_dir / name).read_bytes() for name in names)
    detector = ShutdownCheckpointDetector(Lsn(start_lsn))
    found = []
    for offset in range(0, len(wal), piece_size_bytes):
        found += detector.feed(wal[offset : offset + piece_size_bytes])
        if detector.end is not None:
            break
    kinds = history.dump.kinds
    expected = [r.end_lsn for r in history.records if kinds[r.lsn] == "CHECKPOINT_SHUTDOWN"]
    assert found == expected
    assert len(found) >= 4  # two stops and two recoveries
    assert detector.last_record_lsn == found[-1] == history.reader.last_record_lsn
