"""Reading and following directories of segment files, real ones and damaged ones."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from bbcache.ids import Lsn
from bbcache.postgres.pgdata.control_file import ControlFile
from bbcache.postgres.server.cluster import Cluster
from bbcache.postgres.server.user import ServerUser
from bbcache.postgres.wal import (
    EndReason,
    WalEnd,
    WalError,
    WalFollower,
    WalReader,
    WalRecord,
    canonical_lsn,
    segment_name,
)

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Templates

    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres

_PAGE = 8192
_SEGMENT = 1 << 20
_BUSY_POLLS = 50  # that find something


class Original(NamedTuple):
    """A directory of real segments, and what is in it."""

    wal_dir: Path
    records: list[WalRecord]


@pytest.fixture(scope="session")
def original(newest_pg: PostgresBinaries, templates: Templates, pg_dir: Path) -> Original:
    """Some segments of 1 MiB, with unused ones behind them; tests work on copies."""
    directory = pg_dir / "reader"
    cluster = Cluster(newest_pg, directory, settings={"fsync": "off", "wal_keep_size": "1GB"})
    templates.copy(newest_pg, (), cluster.pgdata_dir)
    cluster.start()
    cluster.psql("create table t (i int primary key, x text)")
    cluster.psql("insert into t select i, repeat('x', i % 700) from generate_series(1, 3000) i")
    cluster.psql("create table u as select 1 x; select pg_switch_wal()")
    cluster.psql("select from pg_logical_emit_message(true, 'big', repeat('x', 1200000))")
    cluster.psql("update t set i = -i where i < 1000")
    cluster.stop()
    wal_dir = directory / "pg_wal"
    records = list(WalReader(wal_dir))
    last = records[-1].end_lsn
    for path in list(wal_dir.glob("0" * 7 + "1*")):
        if path.name > segment_name(1, last, _SEGMENT):
            path.unlink()
    return Original(wal_dir, records)


@pytest.fixture
def wal_dir(original: Original, tmp_path: Path) -> Path:
    """A copy of the segments that a test may change."""
    copy = tmp_path / "pg_wal"
    shutil.copytree(original.wal_dir, copy)
    return copy


def _segments(wal_dir: Path) -> list[Path]:
    return sorted(path for path in wal_dir.iterdir() if len(path.name) == 24)


def _end(reader: WalReader | WalFollower) -> WalEnd:
    assert reader.end is not None
    return reader.end


def test_reads_what_is_there(original: Original) -> None:
    """Without a start it begins with the first segment, and learns the segment size."""
    reader = WalReader(str(original.wal_dir))
    assert (reader.end, reader.wal_segment_size_bytes, reader.last_record_lsn) == (None, None, 0)
    records = list(reader)
    assert len(records) > 5000
    assert records == original.records
    assert reader.wal_segment_size_bytes == _SEGMENT
    assert _end(reader).lsn == reader.last_record_lsn == records[-1].end_lsn


def test_starts_where_it_is_told(original: Original) -> None:
    """At a record, at its end before a page header, or at a page; with or without a size."""
    rng = random.Random(3)
    for number in rng.sample(range(1, len(original.records)), 20):
        start_lsn = original.records[number].lsn
        for name in (start_lsn, original.records[number - 1].end_lsn):
            for size_bytes in (None, _SEGMENT):
                reader = WalReader(original.wal_dir, name, size_bytes)
                assert reader.last_record_lsn in {name, canonical_lsn(name, _SEGMENT)}
                assert next(iter(reader)) == original.records[number]


def test_reads_in_bounded_pieces(original: Original) -> None:
    """One call gives no more than 256 KiB of WAL and the record it completes."""
    reader = WalReader(original.wal_dir)
    records = []
    while reader.end is None:
        piece = reader.read()
        assert all(record.lsn - piece[1].lsn < 256 << 10 for record in piece[1:])
        records += piece
    assert records == original.records
    assert reader.read() == []


def test_other_files_are_no_segments(wal_dir: Path, original: Original) -> None:
    """Only names of 24 upper-case hex digits count, whatever else lies in the directory."""
    for name in (
        "00000002.history",
        "000000010000000000000001.partial",
        "000000010000000000000001.00000028.backup",
        "xlogtemp.4711",
        "00000009000000000000000a",
        "00000009000000000000001\n",
    ):
        (wal_dir / name).write_bytes(b"x" * 100)
    assert list(WalReader(wal_dir)) == original.records


def test_unused_segments_end_the_wal(wal_dir: Path, original: Original) -> None:
    """Behind the last record come zeros or old pages: files made in advance."""
    last_lsn = original.records[-1].end_lsn
    for ahead in (1, 2, 3):
        path = wal_dir / segment_name(1, last_lsn + ahead * _SEGMENT, _SEGMENT)
        path.write_bytes(_segments(wal_dir)[0].read_bytes())
    reader = WalReader(wal_dir)
    assert list(reader) == original.records
    assert _end(reader).reason is EndReason.ZEROS  # of the last page


@pytest.mark.parametrize("kind", ["zeros", "old"])
def test_unused_pages_end_the_wal(wal_dir: Path, original: Original, kind: str) -> None:
    """So do the pages of the last segment that have not been written yet."""
    first, *_, last = _segments(wal_dir)
    page_lsn = original.records[-1].lsn // _PAGE * _PAGE
    offset = page_lsn % _SEGMENT
    unused = bytes(_SEGMENT - offset) if kind == "zeros" else first.read_bytes()[offset:]
    last.write_bytes(last.read_bytes()[:offset] + unused)
    reader = WalReader(wal_dir)
    assert list(reader) == [r for r in original.records if r.end_lsn <= page_lsn]
    expected = EndReason.ZEROS if kind == "zeros" else EndReason.RECYCLED_PAGE
    assert _end(reader).reason is expected


def test_recycled_segment_ends_the_wal(wal_dir: Path, original: Original) -> None:
    """A segment that is an old one under a new name is not read."""
    first, *_, last = _segments(wal_dir)
    last.write_bytes(first.read_bytes())
    reader = WalReader(wal_dir)
    segment_lsn = original.records[-1].lsn // _SEGMENT * _SEGMENT
    assert list(reader) == [r for r in original.records if r.end_lsn <= segment_lsn]
    assert _end(reader).reason is EndReason.RECYCLED_PAGE


def test_segment_size_is_not_taken_from_unused_segments(wal_dir: Path, original: Original) -> None:
    """Zeros, old pages, cut files and links to nothing before the WAL are passed over."""
    first = _segments(wal_dir)[0]
    prefix, number = first.name[:16], int(first.name[16:], 16)
    (wal_dir / f"{prefix}{number - 4:08X}").write_bytes(bytes(_SEGMENT))
    (wal_dir / f"{prefix}{number - 3:08X}").write_bytes(first.read_bytes())
    (wal_dir / f"{prefix}{number - 2:08X}").write_bytes(first.read_bytes()[:39])
    (wal_dir / f"{prefix}{number - 1:08X}").symlink_to("nowhere")
    assert list(WalReader(wal_dir)) == original.records


def test_end_at_the_end_of_a_segment(wal_dir: Path, original: Original) -> None:
    """Where the switch was the last record, the next segment may not be there yet."""
    switch = next(r for r in original.records if r.rmgr_id == 0 and r.info & 0xF0 == 0x40)
    for path in _segments(wal_dir):
        if path.name >= segment_name(1, switch.end_lsn, _SEGMENT):
            path.unlink()
    reader = WalReader(wal_dir)
    assert list(reader) == [r for r in original.records if r.lsn <= switch.lsn]
    assert _end(reader).lsn == switch.end_lsn
    assert _end(reader).reason is EndReason.NO_MORE_BYTES
    name = segment_name(1, switch.end_lsn, _SEGMENT)
    shutil.copy(original.wal_dir / name, wal_dir)
    assert next(iter(reader)).lsn == switch.end_lsn + 40


def test_cut_file_ends_the_wal(wal_dir: Path, original: Original) -> None:
    """A file that is shorter than a segment is read as far as it goes."""
    first, record = _segments(wal_dir)[0], original.records[100]
    data = first.read_bytes()
    first.write_bytes(data[: record.lsn % _SEGMENT + 10])
    reader = WalReader(wal_dir)
    assert list(reader) == original.records[:100]
    assert _end(reader).reason is EndReason.NO_MORE_BYTES
    assert reader.last_record_lsn == original.records[99].end_lsn
    first.write_bytes(data)
    assert list(reader) == original.records[100:]


def test_rest_of_a_switched_segment_is_not_read(wal_dir: Path, original: Original) -> None:
    """Behind a segment switch nothing is wanted, not even zeros."""
    switch = next(r for r in original.records if r.rmgr_id == 0 and r.info & 0xF0 == 0x40)
    path = wal_dir / segment_name(1, switch.lsn, _SEGMENT)
    path.write_bytes(path.read_bytes()[: switch.lsn % _SEGMENT + switch.total_length_bytes])
    assert list(WalReader(wal_dir)) == original.records


def test_half_written_record_is_read_again(wal_dir: Path, original: Original) -> None:
    """Zeros within a record, on the last page of the last segment, are not kept as its bytes."""
    record = max(original.records, key=lambda r: r.total_length_bytes)
    path = wal_dir / segment_name(1, record.lsn, _SEGMENT)
    rest = [segment for segment in _segments(wal_dir) if segment.name > path.name]
    for segment in rest:
        segment.unlink()
    whole = path.read_bytes()
    assert record.total_length_bytes > _SEGMENT > record.lsn % _SEGMENT + 24
    unwritten = min(_PAGE - 100, _SEGMENT - record.lsn % _SEGMENT - 24)
    path.write_bytes(whole[:-unwritten] + bytes(unwritten))
    follower = WalFollower(wal_dir, original.records[0].lsn)
    records = follower.poll()
    assert records == [r for r in original.records if r.lsn < record.lsn]
    path.write_bytes(whole)
    for segment in rest:
        shutil.copy(original.wal_dir / segment.name, segment)
    assert records + follower.poll() == original.records


def test_missing_segment_is_told_from_the_end(wal_dir: Path, original: Original) -> None:
    """A gap is named by the reader, and is an error for a follower."""
    gap = _segments(wal_dir)[1]
    gap.unlink()
    gap_lsn = int(gap.name[16:], 16) * _SEGMENT
    expected = [r for r in original.records if r.end_lsn <= gap_lsn]
    reader = WalReader(wal_dir)
    assert list(reader) == expected
    assert _end(reader).reason is EndReason.MISSING_SEGMENT
    assert f"the segment of {Lsn(gap_lsn)} is missing" in _end(reader).message

    follower = WalFollower(wal_dir, original.records[0].lsn)
    assert follower.poll() == expected
    with pytest.raises(WalError, match="is missing, and later ones are there\nhint: "):
        follower.poll()
    gap.symlink_to("nowhere")  # as if it went away between being listed and opened
    assert follower.poll() == []
    assert _end(follower).reason is EndReason.NO_MORE_BYTES
    gap.unlink()
    shutil.copy(original.wal_dir / gap.name, gap)
    assert expected + follower.poll() == original.records


def test_nothing_there_yet(tmp_path: Path, original: Original) -> None:
    """An empty directory has no WAL yet; it is read once it has."""
    wal_dir = tmp_path / "empty"
    wal_dir.mkdir()
    reader, follower = WalReader(wal_dir), WalFollower(wal_dir, original.records[7].lsn)
    assert list(reader) == follower.poll() == []
    assert _end(reader).reason is EndReason.NO_MORE_BYTES
    assert _end(follower).lsn == follower.last_record_lsn == original.records[7].lsn
    assert "has WAL yet" in _end(follower).message
    shutil.copytree(original.wal_dir, wal_dir, dirs_exist_ok=True)
    assert list(reader) == original.records
    assert follower.poll() == original.records[7:]


def test_what_cannot_be_read_is_an_error(wal_dir: Path) -> None:
    """A directory that is not there, and a file that is none, are no end of the WAL."""
    with pytest.raises(WalError, match=r"/nowhere cannot be read: No such file"):
        list(WalReader(wal_dir / "nowhere"))
    last = _segments(wal_dir)[-1]
    last.unlink()
    last.mkdir()
    with pytest.raises(WalError, match="cannot be read: Is a directory") as caught:
        list(WalReader(wal_dir))
    assert str(last) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_starts_that_are_none_are_refused(wal_dir: Path, original: Original) -> None:
    """With a segment size at once, else when it is known."""
    wrong = Lsn(original.records[0].lsn + 4)
    with pytest.raises(WalError, match="not a multiple of 8"):
        WalReader(wal_dir, wrong, _SEGMENT)
    reader = WalReader(wal_dir, wrong)
    with pytest.raises(WalError, match="not a multiple of 8"):
        reader.read()


def _garbage(kind: str, rng: random.Random, size_bytes: int, old: bytes, offset: int) -> bytes:
    if kind == "zeros":
        return bytes(size_bytes)
    if kind == "noise":
        return rng.randbytes(size_bytes)
    return old[offset : offset + size_bytes]


@pytest.mark.parametrize("kind", ["cut", "zeros", "old", "noise"])
@pytest.mark.parametrize("seed", range(3))
def test_follower_reads_what_is_being_written(
    original: Original, tmp_path: Path, kind: str, seed: int
) -> None:
    """Wherever the writer stands, and whatever is behind that, each record is returned once."""
    rng = random.Random(seed)
    names = [path.name for path in _segments(original.wal_dir)]
    whole = [(original.wal_dir / name).read_bytes() for name in names]
    follower = WalFollower(tmp_path, Lsn(int(names[0][16:], 16) * _SEGMENT))
    records = follower.poll()
    written = whole_count = 0
    total = sum(map(len, whole))
    while written < total:
        written = min(total, written + rng.choice([8, 100, _PAGE, 50_000, 300_000]))
        number, offset = divmod(written, _SEGMENT)
        for i in range(whole_count, number):
            (tmp_path / names[i]).write_bytes(whole[i])
        whole_count = number
        if number < len(names):
            data = whole[number][:offset]
            if kind != "cut":
                data += _garbage(kind, rng, _SEGMENT - offset, whole[0], offset)
            (tmp_path / names[number]).write_bytes(data)
        found = follower.poll()
        assert found == original.records[len(records) : len(records) + len(found)]
        records += found
        assert follower.last_record_lsn == (
            records[-1].end_lsn if records else int(names[0][16:], 16) * _SEGMENT
        )
    assert records == original.records


def test_follower_keeps_up_with_a_busy_server(pg: PostgresBinaries, make_cluster: Any) -> None:
    """Polled all the while a server writes, it sees what a reader sees afterwards."""
    cluster = make_cluster(
        pg,
        initdb_args=("--wal-segsize=1",),
        settings={"wal_keep_size": "1GB", "full_page_writes": "on"},
    )
    start_lsn = ControlFile.read(cluster.pgdata_dir).checkpoint_end_lsn
    wal_dir = cluster.pgdata_dir / "pg_wal"
    follower = WalFollower(wal_dir, start_lsn)
    assert follower.poll() == []
    cluster.start()
    flags = [f"--host={cluster.socket_dir}", "--username=postgres"]
    pg.run("pgbench", "-iq", *flags, "postgres")
    records, polls = [], 0
    with subprocess.Popen(
        **ServerUser.current().subprocess_kwargs(
            [pg.tool("pgbench"), "-c2", "-T100", "-n", *flags, "postgres"]
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as work:
        while polls < _BUSY_POLLS:
            assert work.poll() is None
            found = follower.poll()
            polls += bool(found)
            records += found
        work.terminate()
    # The flush position itself may be at the end of a page, in the middle of a record.
    written = Lsn.from_str(cluster.psql("select pg_logical_emit_message(true, 'test', 'done')"))
    records += follower.poll()
    assert follower.last_record_lsn >= canonical_lsn(written, _SEGMENT)
    cluster.stop()
    records += follower.poll()
    assert records == list(WalReader(wal_dir, start_lsn))
    assert records[-1].is_shutdown_checkpoint
    control = ControlFile.read(cluster.pgdata_dir)
    assert follower.last_record_lsn == control.checkpoint_end_lsn == _end(follower).lsn


def test_segments_of_64_mib(pg: PostgresBinaries, make_cluster: Any) -> None:
    """Their size is learnt from them; the records are those that pg_waldump shows."""
    cluster = make_cluster(pg, initdb_args=("--wal-segsize=64",), settings={"wal_keep_size": "1GB"})
    cluster.start()
    cluster.psql("create table t as select generate_series(1, 20000) i; select pg_switch_wal()")
    cluster.psql("insert into t select i from t")
    cluster.stop()
    wal_dir = cluster.pgdata_dir / "pg_wal"
    reader = WalReader(wal_dir)
    records = list(reader)
    assert reader.wal_segment_size_bytes == 64 << 20
    control = ControlFile.read(cluster.pgdata_dir)
    assert reader.last_record_lsn == control.checkpoint_end_lsn
    assert records[-1].lsn == control.checkpoint_lsn
    assert records[-1].lsn // (64 << 20) > records[0].lsn // (64 << 20)
    first, last = (segment_name(1, records[number].lsn, 64 << 20) for number in (0, -1))
    shown = subprocess.run(  # it ends with an error, as it has read to the end
        [pg.tool("pg_waldump"), f"--path={wal_dir}", first, last],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    lsns = [Lsn.from_str(text) for text in re.findall(r", lsn: ([0-9A-F/]+), prev", shown)]
    assert [record.lsn for record in records] == lsns
