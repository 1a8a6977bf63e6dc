"""WAL with one long record, made page by page, and how much memory it takes to read it."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import google_crc32c

from bbcache.ids import Lsn
from bbcache.postgres.wal import ShutdownCheckpointDetector, WalDecoder, WalReader

if TYPE_CHECKING:
    from collections.abc import Iterator

SEGMENT_SIZE_BYTES: Final = 1 << 30
START_LSN: Final = Lsn(SEGMENT_SIZE_BYTES)
_PAGE: Final = 8192
_MAGIC, _TLI, _SYSTEM_IDENTIFIER = 0xD110, 1, 4711
_LOGICAL_MESSAGE_RMGR_ID: Final = 21
_PIECE_SIZE_BYTES: Final = 1 << 20


def _page_header(lsn: int, remaining_bytes: int) -> bytes:
    is_first = lsn % SEGMENT_SIZE_BYTES == 0
    flags = (1 if remaining_bytes else 0) | (2 if is_first else 0)
    header = struct.pack("<HHIQI4x", _MAGIC, flags, _TLI, lsn, remaining_bytes)
    if is_first:
        header += struct.pack("<QII", _SYSTEM_IDENTIFIER, SEGMENT_SIZE_BYTES, _PAGE)
    return header


def record_header(length_bytes: int, data_crc: int, prev_lsn: int) -> bytes:
    """The header of a record, with the checksum that its data makes right."""
    checked = struct.pack("<IIQBB2x", length_bytes, 0, prev_lsn, 0, _LOGICAL_MESSAGE_RMGR_ID)
    return checked + struct.pack("<I", google_crc32c.extend(data_crc, checked))


def _bytes_of_record(data_size_bytes: int, prev_lsn: int, *, is_right: bool) -> Iterator[bytes]:
    """A record with data of one byte value, in large pieces."""
    piece = b"d" * _PIECE_SIZE_BYTES
    pieces = [piece] * (data_size_bytes // len(piece)) + [piece[: data_size_bytes % len(piece)]]
    crc = 0
    for each in pieces:
        crc = google_crc32c.extend(crc, each)
    yield record_header(24 + data_size_bytes, crc if is_right else crc ^ 1, prev_lsn)
    yield from pieces


def wal_with_a_long_record(data_size_bytes: int, *, is_right: bool = True) -> Iterator[bytes]:
    """Pages from `START_LSN` on: one record of this size, and a short one behind it.

    Args:
        data_size_bytes: of the first record; a multiple of 8, which needs no padding.
        is_right: whether its checksum matches.
    """
    first_lsn = START_LSN + 40
    records = [
        (24 + data_size_bytes, _bytes_of_record(data_size_bytes, 0, is_right=is_right)),
        (24 + 8, _bytes_of_record(8, first_lsn, is_right=True)),
    ]
    lsn, page = int(START_LSN), bytearray(_page_header(START_LSN, 0))
    for length_bytes, pieces in records:
        left = length_bytes
        for piece in pieces:
            offset = 0
            while offset < len(piece):
                if len(page) == _PAGE:
                    yield bytes(page)
                    lsn += _PAGE
                    page = bytearray(_page_header(lsn, left if left < length_bytes else 0))
                taken = piece[offset : offset + _PAGE - len(page)]
                page += taken
                offset += len(taken)
                left -= len(taken)
    yield bytes(page)


def _peak_bytes() -> int:
    """The most memory that this process has had resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def _say(*values: object) -> None:
    sys.stdout.write(" ".join(map(str, values)) + "\n")


def measure_decoder(data_size_bytes: str) -> None:
    """Print what a decoder gives, and by how much the peak of memory has grown."""
    decoder, seen = WalDecoder(START_LSN, SEGMENT_SIZE_BYTES), []
    before_bytes = _peak_bytes()
    for page in wal_with_a_long_record(int(data_size_bytes)):
        seen += [(r.total_length_bytes, r.data and "data") for r in decoder.feed(page)]
    _say(seen, _peak_bytes() - before_bytes)


def measure_detector(data_size_bytes: str) -> None:
    """Print how far a detector has got, and by how much the peak of memory has grown."""
    detector = ShutdownCheckpointDetector(START_LSN, SEGMENT_SIZE_BYTES)
    before_bytes = _peak_bytes()
    for page in wal_with_a_long_record(int(data_size_bytes)):
        assert detector.feed(page) == []
    assert detector.end is None
    _say(detector.last_record_lsn - START_LSN, _peak_bytes() - before_bytes)


def measure_reader(wal_dir: str, start_lsn: str) -> None:
    """Print the longest record of a real server, and by how much the peak has grown."""
    before_bytes = _peak_bytes()
    longest = max(WalReader(wal_dir, Lsn.from_str(start_lsn)), key=lambda r: r.total_length_bytes)
    _say(longest.total_length_bytes, longest.data is None, _peak_bytes() - before_bytes)
