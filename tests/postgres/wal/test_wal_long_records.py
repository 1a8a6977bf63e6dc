"""A record of any length is read in little memory, and its checksum still judged."""

from __future__ import annotations

import ast
import itertools
from typing import TYPE_CHECKING

import pytest
from postgres.long_records import SEGMENT_SIZE_BYTES, START_LSN, wal_with_a_long_record
from support.cache_helpers import run_child

from bbcache.postgres.pgdata.control_file import ControlFile
from bbcache.postgres.wal import MAX_DATA_BYTES, EndReason, WalDecoder

if TYPE_CHECKING:
    from conftest import ClusterFactory

    from bbcache.postgres.server.cluster import PostgresBinaries

_SLACK_BYTES = 24 << 20
_LONG_BYTES = 300 << 20


def test_a_longer_record_is_dropped_as_it_passes() -> None:
    """The decoder says how long the record is, gives no data, and goes on behind it."""
    out = run_child("postgres.long_records:measure_decoder", _LONG_BYTES)
    seen, grown_bytes = out.rsplit(maxsplit=1)
    assert ast.literal_eval(seen) == [(24 + _LONG_BYTES, None), (32, "data")]
    assert int(grown_bytes) < _SLACK_BYTES


def test_a_record_at_the_limit_is_kept_once() -> None:
    """The data of the longest record that is kept is in memory once, not twice."""
    out = run_child("postgres.long_records:measure_decoder", MAX_DATA_BYTES)
    seen, grown_bytes = out.rsplit(maxsplit=1)
    assert ast.literal_eval(seen) == [(24 + MAX_DATA_BYTES, "data"), (32, "data")]
    assert int(grown_bytes) < MAX_DATA_BYTES + _SLACK_BYTES


def test_the_detector_keeps_no_data() -> None:
    """Not even of a record that a reader would be given whole."""
    size_bytes = MAX_DATA_BYTES - 8
    got_to, grown_bytes = map(
        int, run_child("postgres.long_records:measure_detector", size_bytes).split()
    )
    assert got_to > size_bytes
    assert grown_bytes < _SLACK_BYTES


def test_a_real_record_is_read_in_little_memory(
    newest_pg: PostgresBinaries, make_cluster: ClusterFactory
) -> None:
    """A message of 100 MB that a server has logged."""
    cluster = make_cluster(newest_pg, settings={"wal_keep_size": "1GB"})
    start_lsn = ControlFile.read(cluster.pgdata_dir).checkpoint_end_lsn
    cluster.start()
    cluster.psql("SELECT FROM pg_logical_emit_message(true, '', repeat('x', 100000000))")
    cluster.stop()
    wal_dir = cluster.pgdata_dir / "pg_wal"
    out = run_child("postgres.long_records:measure_reader", wal_dir, start_lsn)
    length_bytes, has_no_data, grown_bytes = out.split()
    assert int(length_bytes) > 100_000_000
    assert has_no_data == "True"
    assert int(grown_bytes) < _SLACK_BYTES


@pytest.mark.parametrize("max_data_bytes", [0, 7, 8, 20_000, 20_008])
def test_the_limit_is_the_callers(max_data_bytes: int) -> None:
    """Data up to the limit is given, short and long, and the records are the same."""
    decoder = WalDecoder(START_LSN, SEGMENT_SIZE_BYTES, max_data_bytes=max_data_bytes)
    pages = wal_with_a_long_record(20_008)
    records = list(itertools.chain.from_iterable(map(decoder.feed, pages)))
    assert [record.data for record in records] == [
        b"d" * size_bytes if size_bytes <= max_data_bytes else None for size_bytes in (20_008, 8)
    ]
    assert [record.total_length_bytes for record in records] == [20_032, 32]
    assert decoder.last_record_lsn == records[-1].end_lsn


@pytest.mark.parametrize("max_data_bytes", [0, MAX_DATA_BYTES])
def test_a_dropped_record_is_judged(max_data_bytes: int) -> None:
    """A wrong checksum ends the WAL before the record, whether its data was kept or not."""
    decoder = WalDecoder(START_LSN, SEGMENT_SIZE_BYTES, max_data_bytes=max_data_bytes)
    for page in wal_with_a_long_record(50_000, is_right=False):
        assert decoder.feed(page) == []
        if decoder.end is not None:
            break
    assert decoder.end is not None
    assert decoder.end.reason is EndReason.BAD_CHECKSUM
    assert decoder.last_record_lsn == decoder.next_lsn == START_LSN
