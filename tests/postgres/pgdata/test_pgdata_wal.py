"""The WAL in a basebackup suffices wherever the shutdown checkpoint lies."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.tarball import (
    inspect_pgdata,
    restore_tarball,
    send_pgdata_tarball,
)

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ClusterFactory

    from bbcache.postgres.pgdata.control_file import ControlFile
    from bbcache.postgres.server.cluster import Cluster, PostgresBinaries

pytestmark = pytest.mark.postgres

PAGE_BYTES = 8192
SEGMENT_BYTES = 1 << 20
LAST_PAGE = SEGMENT_BYTES - PAGE_BYTES
INNER_PAGE = SEGMENT_BYTES // 2
RECORD_BYTES = 120  # a shutdown checkpoint, aligned
# With these nothing but the messages of a test goes into the WAL.
QUIET_SETTINGS = {"wal_level": "minimal", "max_wal_senders": "0"}


class Place(NamedTuple):
    """Where in its segment the checkpoint starts, and how many segments it needs."""

    start: int
    segment_count: int


PLACES = {
    "first record of a segment": Place(40, 1),
    "ends with a page": Place(INNER_PAGE + PAGE_BYTES - RECORD_BYTES, 1),
    "crosses a page end": Place(INNER_PAGE + PAGE_BYTES - 64, 1),
    "ends with a segment": Place(LAST_PAGE + PAGE_BYTES - RECORD_BYTES, 1),
    "crosses a segment end": Place(LAST_PAGE + PAGE_BYTES - 64, 2),
    "crosses a segment end by one step": Place(LAST_PAGE + PAGE_BYTES - RECORD_BYTES + 8, 2),
}


def insert_position(connection: psycopg.Connection[Any]) -> int:
    """Where in its segment the next record starts."""
    row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    assert row is not None
    return int(row[0]) % SEGMENT_BYTES


def emit(connection: psycopg.Connection[Any], size_bytes: int) -> None:
    """Log a message whose record has about this size, and exactly where it can."""
    # Headers of the record, of long data and of the message, and the prefix.
    padding = max(1, size_bytes - 24 - 5 - 24 - 2)
    connection.execute("SELECT pg_logical_emit_message(false, 'p', repeat('x', %s))", [padding])


def fill_wal(connection: psycopg.Connection[Any], target: int) -> None:
    """Log messages until the next record starts at `target` of its segment."""
    emit(connection, 100)
    connection.execute("SELECT pg_switch_wal()")
    page_start = target - target % PAGE_BYTES
    while insert_position(connection) < page_start:
        emit(connection, max(300, (page_start - insert_position(connection)) * 9 // 10))
    if insert_position(connection) < target:
        emit(connection, target - insert_position(connection))


def stop_with_checkpoint_at(cluster: Cluster, start: int) -> ControlFile:
    """Stop so that the shutdown checkpoint starts at `start` of its segment.

    The server may log something of its own in between, so this tries a few times.
    """
    found = []
    for _ in range(5):
        cluster.start(QUIET_SETTINGS)
        with psycopg.connect(cluster.conninfo(), autocommit=True) as connection:
            fill_wal(connection, start)
        cluster.stop()
        control = inspect_pgdata(cluster.pgdata_dir)
        found.append(control.checkpoint_lsn % SEGMENT_BYTES)
        if found[-1] == start:
            return control
    raise AssertionError(f"checkpoints are at {found}, not at {start}")


def wal_names(tar: bytes) -> list[str]:
    """The files of pg_wal in a tar."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        members = [member for member in opened if member.name.startswith("pg_wal/")]
    return [member.name.removeprefix("pg_wal/") for member in members if member.isfile()]


def checkpoint_segment(cluster: Cluster) -> Path:
    """The segment that holds the shutdown checkpoint, of a cluster fresh from initdb."""
    control = inspect_pgdata(cluster.pgdata_dir)
    number = control.checkpoint_lsn // control.wal_segment_size_bytes
    return cluster.pgdata_dir / "pg_wal" / f"00000001{0:08X}{number:08X}"


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_checkpoint_anywhere(
    pg: PostgresBinaries, make_cluster: ClusterFactory, place: Place
) -> None:
    """A copy starts cleanly wherever the checkpoint is, works, and can be sent again."""
    cluster = make_cluster(pg, initdb_args=["--wal-segsize=1"])
    control = stop_with_checkpoint_at(cluster, place.start)
    tar = io.BytesIO()
    summary = send_pgdata_tarball(cluster.pgdata_dir, tar)

    assert len(wal_names(tar.getvalue())) == place.segment_count
    assert summary.lsn == control.checkpoint_end_lsn
    copy = make_cluster.on(pg, make_cluster.new_dir())
    restore_tarball(io.BytesIO(tar.getvalue()), copy.pgdata_dir)
    copy.start()
    assert "database system was shut down at" in copy.read_log()
    assert "recovery" not in copy.read_log()
    assert "not properly shut down" not in copy.read_log()
    copy.psql("CREATE TABLE t AS SELECT generate_series(1, 10000) i")
    copy.stop()
    assert send_pgdata_tarball(copy.pgdata_dir, io.BytesIO()).lsn > summary.lsn


def test_tail_of_segment_is_zeros(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """What an earlier use left in a recycled segment is not sent; what counts is."""
    cluster = make_cluster(pg, initdb_args=["--wal-segsize=1"])
    control = inspect_pgdata(cluster.pgdata_dir)
    end = control.checkpoint_end_lsn % SEGMENT_BYTES
    segment = checkpoint_segment(cluster)
    before = segment.read_bytes()
    segment.write_bytes(before[:end] + b"\xab" * (SEGMENT_BYTES - end))

    tar = io.BytesIO()
    send_pgdata_tarball(cluster.pgdata_dir, tar)
    with tarfile.open(fileobj=io.BytesIO(tar.getvalue())) as opened:
        sent = opened.extractfile(f"pg_wal/{segment.name}")
        assert sent is not None
        assert sent.read() == before[:end] + bytes(SEGMENT_BYTES - end)


def test_only_needed_segments(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """Of many segments, the one with the checkpoint is sent."""
    cluster = make_cluster(pg, initdb_args=["--wal-segsize=1"])
    cluster.start()
    for _ in range(3):
        cluster.psql("SELECT pg_logical_emit_message(false, 'p', 'x'); SELECT pg_switch_wal()")
    cluster.stop()
    assert len([p for p in (cluster.pgdata_dir / "pg_wal").iterdir() if p.is_file()]) > 1
    tar = io.BytesIO()
    send_pgdata_tarball(cluster.pgdata_dir, tar)
    assert len(wal_names(tar.getvalue())) == 1


def test_timeline_two(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A promoted cluster is sent with the segment and history of its timeline, and starts.

    The history is needed as long as the segment has pages of the timeline before.
    """
    cluster = make_cluster(newest_pg)
    (cluster.pgdata_dir / "standby.signal").touch()
    cluster.start()
    cluster.psql("SELECT pg_promote()")
    cluster.stop()
    tar = io.BytesIO()
    send_pgdata_tarball(cluster.pgdata_dir, tar)

    history, segment = wal_names(tar.getvalue())
    assert segment.startswith("00000002")
    assert history == "00000002.history"
    copy = make_cluster.on(newest_pg, make_cluster.new_dir())
    restore_tarball(io.BytesIO(tar.getvalue()), copy.pgdata_dir)
    copy.start()
    assert "database system was shut down at" in copy.read_log()
    assert "recovery" not in copy.read_log()


def test_missing_segment(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """Without the segment of the checkpoint nothing is sent."""
    cluster = make_cluster(newest_pg)
    segment = checkpoint_segment(cluster)
    segment.unlink()
    with pytest.raises(PostgresError, match=f"{segment.name} is missing"):
        send_pgdata_tarball(cluster.pgdata_dir, io.BytesIO())


def test_short_segment(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A segment that was cut is named."""
    cluster = make_cluster(newest_pg)
    segment = checkpoint_segment(cluster)
    with segment.open("r+b") as file:
        file.truncate(8192)
    with pytest.raises(PostgresError, match=f"{segment.name} .* has 8192 bytes, not the"):
        send_pgdata_tarball(cluster.pgdata_dir, io.BytesIO())
