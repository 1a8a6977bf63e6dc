"""The decoder on real WAL in pieces, cut, damaged and followed by garbage."""

from __future__ import annotations

import random
import shutil
import struct
import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bbcache.ids import Lsn
from bbcache.postgres.server.cluster import Cluster
from bbcache.postgres.wal import (
    EndReason,
    ShutdownCheckpointDetector,
    WalDecoder,
    WalError,
    WalRecord,
    canonical_lsn,
    record_end_lsn,
)

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Templates

    from bbcache.postgres.server.cluster import PostgresBinaries

pytestmark = pytest.mark.postgres

_PAGE = 8192
_SEGMENT = 1 << 20
_MAX_RECORD_SIZE_BYTES = 1020 << 20


@dataclass(frozen=True)
class Wal:
    """Real WAL, from the start of a segment to the end of its last record.

    Attributes:
        start_lsn: where it starts.
        data: its bytes; what follows the end in the last segment is not among them.
        records: its records, as decoded from the whole.
    """

    start_lsn: Lsn
    data: bytes
    records: list[WalRecord]

    def at(self, lsn: int, stop_lsn: int | None = None) -> bytes:
        """The bytes from `lsn` on, all or up to `stop_lsn`."""
        stop = len(self.data) if stop_lsn is None else stop_lsn - self.start_lsn
        return self.data[lsn - self.start_lsn : stop]

    def patched(self, lsn: int, new: bytes) -> bytes:
        """The bytes with others in place of those at `lsn`."""
        offset = lsn - self.start_lsn
        return self.data[:offset] + new + self.data[offset + len(new) :]

    def within(self, start_lsn: int, stop_lsn: int) -> list[WalRecord]:
        """The records that start and end between the two (a switch ends with its bytes)."""
        return [
            r
            for r in self.records
            if start_lsn <= r.lsn
            and record_end_lsn(r.lsn, r.total_length_bytes, _SEGMENT) <= stop_lsn
        ]

    def crossing(self, unit: int, number: int = 0) -> WalRecord:
        """A record that crosses a boundary of `unit` bytes."""

        def crosses(record: WalRecord) -> bool:
            last_byte_lsn = record.lsn + record.total_length_bytes - 1
            return record.lsn // unit != last_byte_lsn // unit

        return list(filter(crosses, self.records))[number]

    @property
    def big(self) -> WalRecord:
        """The longest record."""
        return max(self.records, key=lambda record: record.total_length_bytes)

    @property
    def switch(self) -> WalRecord:
        """The segment switch."""
        return next(r for r in self.records if r.rmgr_id == 0 and r.info & 0xF0 == 0x40)


def _write_wal(cluster: Cluster) -> None:
    cluster.start()
    cluster.psql("create table t (i int primary key, x text)")
    cluster.psql("insert into t select i, repeat('x', i % 700) from generate_series(1, 3000) i")
    cluster.psql("select from pg_logical_emit_message(true, 'big', repeat('x', 1300000))")
    cluster.psql("create table u as select 1 x; select pg_switch_wal()")
    cluster.psql("update t set i = -i where i < 500")
    cluster.stop()


@pytest.fixture(scope="session")
def wal(newest_pg: PostgresBinaries, templates: Templates, pg_dir: Path) -> Wal:
    """WAL of a cluster with segments of 1 MiB."""
    directory = pg_dir / "decoder"
    cluster = Cluster(newest_pg, directory, settings={"fsync": "off", "wal_keep_size": "1GB"})
    templates.copy(newest_pg, (), cluster.pgdata_dir)
    _write_wal(cluster)
    names = sorted(p.name for p in (directory / "pg_wal").iterdir() if len(p.name) == 24)
    start_lsn = Lsn(int(names[0][16:], 16) * _SEGMENT)
    data = b"".join((directory / "pg_wal" / name).read_bytes() for name in names)
    shutil.rmtree(directory)
    decoder = WalDecoder(start_lsn)
    records = decoder.feed(data)
    assert decoder.end is not None
    return Wal(start_lsn, data[: decoder.last_record_lsn - start_lsn], records)


def _decode(
    start_lsn: Lsn, data: bytes, segment_size_bytes: int = _SEGMENT
) -> tuple[list[WalRecord], WalDecoder]:
    decoder = WalDecoder(start_lsn, segment_size_bytes)
    return decoder.feed(data), decoder


def test_sample_has_all_that_is_hard(wal: Wal) -> None:
    """The tests below would prove little on simpler WAL."""
    assert len(wal.records) > 5000
    assert wal.crossing(_PAGE, 50)
    assert wal.big.total_length_bytes > _SEGMENT
    assert wal.crossing(_SEGMENT)
    assert any(record.lsn % _PAGE > _PAGE - 24 for record in wal.records)  # split header
    assert any(record.end_lsn % _PAGE == 0 for record in wal.records)
    assert wal.switch.end_lsn - wal.switch.lsn > 3 * _PAGE


@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_any_size_give_the_same_records(wal: Wal, seed: int) -> None:
    """How the stream is cut makes no difference, and each byte is wanted once."""
    rng = random.Random(seed)
    decoder = WalDecoder(wal.start_lsn)
    records, offset = [], 0
    while offset < len(wal.data):
        assert decoder.next_lsn == wal.start_lsn + offset
        size_bytes = rng.choice([1, 7, 8, 23, 24, 40, 100, 8191, 8192, 8193, 100_000])
        records += decoder.feed(wal.data[offset : offset + size_bytes])
        offset += size_bytes
        assert decoder.end is None
    assert records == wal.records
    assert decoder.last_record_lsn == records[-1].end_lsn


def test_every_record_comes_with_its_last_byte(wal: Wal) -> None:
    """Byte by byte: a record is there once it is whole, without its padding or the next."""
    first = wal.crossing(_PAGE, 3)
    skipped = [record for record in wal.records if record.lsn < first.lsn]
    wanted = wal.records[len(skipped) : len(skipped) + 60]
    decoder = WalDecoder(first.lsn, _SEGMENT)
    for lsn in range(first.lsn, wanted[-1].end_lsn):
        for record in decoder.feed(wal.at(lsn, lsn + 1)):
            assert record == wanted.pop(0)
            assert record.end_lsn - 8 < lsn + 1 <= record.end_lsn
            assert decoder.last_record_lsn == record.end_lsn
    assert wanted == []


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_two_cuts_give_the_same_records(wal: Wal, data: st.DataObject) -> None:
    """Three pieces of a few pages, cut anywhere."""
    start = wal.crossing(_PAGE, 5)
    stop_lsn = wal.crossing(_PAGE, 9).end_lsn
    cuts = st.integers(start.lsn, stop_lsn)
    first, second = sorted((data.draw(cuts), data.draw(cuts)))
    decoder = WalDecoder(start.lsn, _SEGMENT)
    records = []
    for low, high in ((start.lsn, first), (first, second), (second, stop_lsn)):
        records += decoder.feed(wal.at(low, high))
    assert records == [r for r in wal.records if start.lsn <= r.lsn < stop_lsn]


def test_start_at_any_page(wal: Wal) -> None:
    """From a page boundary come the records that start there or later, by either name."""
    pages = range(wal.start_lsn, wal.records[-1].lsn, _PAGE)
    used = [lsn for lsn in pages if not wal.switch.lsn < lsn < wal.switch.end_lsn]
    for page_lsn in random.Random(1).sample(used, 50):
        stop_lsn = min(page_lsn + 20 * _PAGE, wal.records[-1].end_lsn)
        records, decoder = _decode(Lsn(page_lsn), wal.at(page_lsn, stop_lsn))
        assert (records, decoder.end) == (wal.within(page_lsn, stop_lsn), None)
        header = 40 if page_lsn % _SEGMENT == 0 else 24
        assert WalDecoder(Lsn(page_lsn + header), _SEGMENT).next_lsn == page_lsn


def test_start_at_any_record(wal: Wal) -> None:
    """From the start of a record come that record and all that follow."""
    numbers = random.Random(2).sample(range(1, len(wal.records) - 1), 40)
    edges = [i for i, r in enumerate(wal.records) if canonical_lsn(r.lsn, _SEGMENT) != r.lsn]
    for number in numbers + edges[1:20]:
        start_lsn = canonical_lsn(wal.records[number].lsn, _SEGMENT)
        stop_lsn = min(start_lsn + 5 * _PAGE, wal.records[-1].end_lsn)
        expected = wal.within(start_lsn, stop_lsn)
        for name in (start_lsn, wal.records[number].lsn, wal.records[number - 1].end_lsn):
            assert _decode(name, wal.at(start_lsn, stop_lsn))[0] == expected


def test_start_within_a_record_longer_than_a_page(wal: Wal) -> None:
    """Pages that hold nothing but the middle of a record are passed over."""
    big = wal.big
    page_lsn = Lsn((big.lsn // _PAGE + 5) * _PAGE)
    decoder = WalDecoder(page_lsn, _SEGMENT)
    assert decoder.feed(wal.at(page_lsn, page_lsn + 3 * _PAGE)) == []
    assert decoder.end is None
    assert decoder.last_record_lsn == page_lsn
    assert decoder.feed(wal.at(page_lsn + 3 * _PAGE)) == [
        record for record in wal.records if record.lsn > big.lsn
    ]


def test_segment_size_comes_from_the_first_page(wal: Wal) -> None:
    """Without a segment size the first page says it; a wrong one is found out."""
    assert WalDecoder(wal.start_lsn).wal_segment_size_bytes is None
    decoder = WalDecoder(wal.start_lsn)
    decoder.feed(wal.data[:_PAGE])
    assert decoder.wal_segment_size_bytes == _SEGMENT
    records, decoder = _decode(wal.start_lsn, wal.data, 2 * _SEGMENT)
    assert records == []
    assert decoder.end is not None
    assert decoder.end.reason is EndReason.BAD_PAGE


@pytest.mark.parametrize(
    ("lsn", "size_bytes", "said"),
    [
        (0x1000004, 1 << 20, "not a multiple of 8"),
        (0x1000028, None, "hint: Pass wal_segment_size_bytes"),
        (0x1002000, None, "no segment starts at 0/1002000"),
        (0x1000000, 1000, "a WAL segment size is"),
    ],
)
def test_impossible_starts_are_refused(lsn: int, size_bytes: int | None, said: str) -> None:
    """A position that cannot be a start is an error at once, not an end of the WAL."""
    for make in (WalDecoder, ShutdownCheckpointDetector):
        with pytest.raises(WalError, match=said):
            make(Lsn(lsn), size_bytes)


def _byte_lsns(record: WalRecord) -> list[int]:
    """Where the bytes of a record stand, page headers left out."""
    lsns: list[int] = []
    lsn = int(record.lsn)
    while len(lsns) < record.total_length_bytes:
        if lsn % _PAGE == 0:
            lsn += 40 if lsn % _SEGMENT == 0 else 24
        lsns.append(lsn)
        lsn += 1
    return lsns


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bit_ends_the_wal_at_its_record(wal: Wal, seed: int) -> None:
    """All before the damaged record is read, nothing of it or after it."""
    rng = random.Random(seed)
    for _ in range(40):
        number = rng.randrange(20, len(wal.records))
        before, record = wal.records[number - 20 : number], wal.records[number]
        lsn = rng.choice(_byte_lsns(record)[: rng.choice([4, 24, None])])
        flipped = bytes([wal.at(lsn, lsn + 1)[0] ^ 1 << rng.randrange(8)])
        start_lsn = canonical_lsn(before[0].lsn, _SEGMENT)
        data = wal.patched(lsn, flipped)[start_lsn - wal.start_lsn :]
        records, decoder = _decode(start_lsn, data)
        assert records == before
        assert decoder.last_record_lsn == canonical_lsn(record.lsn, _SEGMENT)
        if decoder.end is None:  # a length that asks for more than there is
            assert lsn < record.lsn + 4
            continue
        assert decoder.end.lsn == decoder.last_record_lsn
        if lsn not in _byte_lsns(record)[:16]:  # neither length nor link
            assert decoder.end.reason is EndReason.BAD_CHECKSUM


@pytest.mark.parametrize("unit", [_PAGE, _SEGMENT])
@pytest.mark.parametrize(
    ("offset", "form", "number", "reason", "said"),
    [
        (0, "<H", 0xD10C, EndReason.BAD_PAGE, "magic number D10C"),
        (0, "<H", 0xD10D, EndReason.BAD_PAGE, "magic number D10D"),  # of another version
        (2, "<H", 0x0010, EndReason.BAD_PAGE, "flags 0010"),
        (4, "<I", 0, EndReason.BAD_PAGE, "timeline 0 after 1"),
        (8, "<Q", 0x123000, EndReason.RECYCLED_PAGE, "an old page of 0/123000"),
        (16, "<I", 4711, EndReason.BAD_CONTINUATION, "has 4711"),
    ],
)
def test_bad_page_headers_end_the_wal(
    wal: Wal, unit: int, offset: int, form: str, number: int, reason: EndReason, said: str
) -> None:
    """Each field of the header of a page in the middle of a record is judged."""
    record = wal.crossing(unit, 5 if unit == _PAGE else 0)
    page_lsn = record.lsn // unit * unit + unit
    data = wal.patched(page_lsn + offset, struct.pack(form, number))
    records, decoder = _decode(wal.start_lsn, data)
    assert records == [r for r in wal.records if r.lsn < record.lsn]
    assert decoder.end is not None
    assert (decoder.end.lsn, decoder.end.reason) == (
        canonical_lsn(record.lsn, _SEGMENT),
        reason,
    )
    assert said in decoder.end.message


@pytest.mark.parametrize(
    ("offset", "form", "number", "said"),
    [
        (2, "<H", 0x0001, "a short header"),
        (24, "<Q", 1, "system identifier 1, of another cluster"),
        (32, "<I", 2 << 20, "a segment size of 2097152 bytes"),
        (32, "<I", 0, "a segment size of 0 bytes"),
        (36, "<I", 4096, "a page size of 4096 bytes"),
    ],
)
def test_bad_segment_headers_end_the_wal(
    wal: Wal, offset: int, form: str, number: int, said: str
) -> None:
    """So is each field that only the first page of a segment has."""
    record = wal.crossing(_SEGMENT)
    page_lsn = record.lsn // _SEGMENT * _SEGMENT + _SEGMENT
    data = wal.patched(page_lsn + offset, struct.pack(form, number))
    decoder = _decode(wal.start_lsn, data)[1]
    assert decoder.end is not None
    assert decoder.end.reason is EndReason.BAD_PAGE
    assert said in decoder.end.message


def test_long_header_within_a_segment_ends_the_wal(wal: Wal) -> None:
    """Only the first page of a segment has a long header."""
    page_lsn = wal.crossing(_PAGE, 5).lsn // _PAGE * _PAGE + _PAGE
    decoder = _decode(wal.start_lsn, wal.patched(page_lsn + 2, b"\3\0"))[1]
    assert decoder.end is not None
    assert "a long header" in decoder.end.message


@pytest.mark.parametrize(
    ("flags", "reason"),
    [(0, EndReason.BAD_CONTINUATION), (4, EndReason.BAD_CONTINUATION)],
)
def test_rest_of_a_record_must_be_announced(wal: Wal, flags: int, reason: EndReason) -> None:
    """A page without the flag for it does not continue a record."""
    page_lsn = wal.crossing(_PAGE, 5).lsn // _PAGE * _PAGE + _PAGE
    decoder = _decode(wal.start_lsn, wal.patched(page_lsn + 2, struct.pack("<H", flags)))[1]
    assert decoder.end is not None
    assert decoder.end.reason is reason
    assert "has none" in decoder.end.message


def test_rest_of_no_record_ends_the_wal(wal: Wal) -> None:
    """A page that continues a record where none is unfinished is not the next one."""
    page_lsn = next(r.end_lsn for r in wal.records if r.end_lsn % _PAGE == 0)
    decoder = _decode(wal.start_lsn, wal.patched(page_lsn + 2, b"\1\0"))[1]
    assert decoder.end is not None
    assert (decoder.end.lsn, decoder.end.reason) == (page_lsn, EndReason.BAD_CONTINUATION)


@pytest.mark.parametrize(
    ("length_bytes", "reason"),
    [
        (0, EndReason.ZEROS),
        (23, EndReason.BAD_RECORD),
        (_MAX_RECORD_SIZE_BYTES + 1, EndReason.BAD_RECORD),
        (2**32 - 1, EndReason.BAD_RECORD),
    ],
)
def test_lengths_are_judged(wal: Wal, length_bytes: int, reason: EndReason) -> None:
    """A record shorter than its header or longer than any ends the WAL."""
    record = wal.records[100]
    data = wal.patched(record.lsn, struct.pack("<I", length_bytes))
    records, decoder = _decode(wal.start_lsn, data)
    assert records == wal.records[:100]
    assert decoder.end is not None
    assert (decoder.end.lsn, decoder.end.reason) == (wal.records[99].end_lsn, reason)


def test_claimed_length_reserves_no_memory(wal: Wal) -> None:
    """A header that claims the greatest length takes the memory of the bytes that arrived."""
    record = wal.records[100]
    data = wal.patched(record.lsn, struct.pack("<I", _MAX_RECORD_SIZE_BYTES))
    cut = data[: record.lsn - wal.start_lsn + 64]
    tracemalloc.start()
    decoder = _decode(wal.start_lsn, cut)[1]
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert decoder.end is None
    assert peak_bytes < 4 * len(cut) + 100_000


def test_implausible_header_ends_the_wal_before_its_body_comes(wal: Wal) -> None:
    """A wrong link to the record before is seen as soon as the header is there."""
    record = wal.big
    offset = record.lsn - wal.start_lsn
    data = wal.patched(record.lsn + 8, struct.pack("<Q", record.prev_lsn - 8))
    decoder = WalDecoder(wal.start_lsn)
    decoder.feed(data[: offset + 23])
    assert decoder.next_lsn == record.lsn + 23
    decoder.feed(data[offset + 23 : offset + 24])
    assert decoder.end is not None
    assert decoder.end.reason is EndReason.BAD_RECORD
    assert f"not at {record.prev_lsn}" in decoder.end.message


@pytest.mark.parametrize(("offset", "new"), [(8, b"\xff" * 8), (17, b"\x16"), (17, b"\x7f")])
def test_first_record_is_judged_without_a_predecessor(wal: Wal, offset: int, new: bytes) -> None:
    """A start that is none: the link leads forward, or there is no such resource manager."""
    record = wal.records[100]
    decoder = _decode(
        record.lsn, wal.patched(record.lsn + offset, new)[record.lsn - wal.start_lsn :]
    )[1]
    assert decoder.end is not None
    assert (decoder.end.lsn, decoder.end.reason) == (record.lsn, EndReason.BAD_RECORD)


def test_switch_takes_the_rest_of_its_segment(wal: Wal) -> None:
    """The end of a segment switch is that of the segment, whatever stands in between."""
    switch = wal.switch
    assert switch.end_lsn % _SEGMENT == 0
    unused = switch.end_lsn - switch.lsn - switch.total_length_bytes
    assert unused > 0
    data = wal.patched(switch.lsn + switch.total_length_bytes, b"\xff" * unused)
    assert _decode(wal.start_lsn, data)[0] == wal.records


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["zeros", "old", "noise"])
def test_garbage_after_the_end_is_replaced_by_true_bytes(wal: Wal, kind: str, seed: int) -> None:
    """The stream may end anywhere in garbage; true bytes from next_lsn on are all read."""
    rng = random.Random(seed)
    detector = ShutdownCheckpointDetector(wal.start_lsn)
    decoder = WalDecoder(wal.start_lsn)
    records, found = [], []
    for _ in range(40):
        offset = decoder.next_lsn - wal.start_lsn
        true = wal.data[offset : offset + rng.randrange(150_000)]
        cut = offset + len(true)
        garbage = {
            "zeros": bytes(20_000),
            "old": wal.data[cut - _SEGMENT : cut - _SEGMENT + 20_000],
            "noise": rng.randbytes(20_000),
        }[kind]
        records += decoder.feed(true + garbage)
        found += detector.feed(true + garbage)
        assert decoder.end == detector.end
        assert decoder.next_lsn == detector.next_lsn
        if decoder.end is None:  # it might still be the start of something
            decoder.rewind()
            detector._decoder.rewind()
        assert decoder.last_record_lsn <= decoder.next_lsn
        assert records == wal.records[: len(records)]
    records += decoder.feed(wal.at(decoder.next_lsn))
    found += detector.feed(wal.at(detector.next_lsn))
    assert records == wal.records
    assert found == [record.end_lsn for record in records if record.is_shutdown_checkpoint]
    assert decoder.end is None


def test_rewind_forgets_the_unfinished_record(wal: Wal) -> None:
    """Afterwards the bytes are wanted again from the end of the last whole record on."""
    record = wal.crossing(_PAGE, 4)
    decoder = WalDecoder(wal.start_lsn)
    middle = record.end_lsn - 16
    records = decoder.feed(wal.data[: middle - wal.start_lsn])
    assert decoder.next_lsn == middle
    decoder.rewind()
    assert decoder.next_lsn == decoder.last_record_lsn == canonical_lsn(record.lsn, _SEGMENT)
    records += decoder.feed(memoryview(wal.at(decoder.next_lsn)))
    assert records == wal.records


def test_any_bytes_like_object_will_do(wal: Wal) -> None:
    """The data of a socket may have any type of buffer."""
    for kind in (bytes, bytearray, memoryview):
        decoder = WalDecoder(wal.start_lsn)
        assert decoder.feed(kind(wal.data[:5000])) + decoder.feed(kind(wal.data[5000:])) == (
            wal.records
        )


def test_detector_starts_where_it_is_told(wal: Wal) -> None:
    """Before the first record the last one is taken to end at the canonical start."""
    page_lsn = Lsn(wal.start_lsn + 3 * _PAGE)
    detector = ShutdownCheckpointDetector(Lsn(page_lsn + 24), _SEGMENT)
    assert detector.last_record_lsn == detector.next_lsn == page_lsn
    assert detector.end is None
    found = detector.feed(wal.at(page_lsn))
    assert found[-1] == detector.last_record_lsn == wal.records[-1].end_lsn
