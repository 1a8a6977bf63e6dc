"""Decoding WAL bytes, in pieces of any size, into records.

The rules are those of PostgreSQL's xlogreader.c: the WAL ends at the same place.
"""

from __future__ import annotations

import struct
from io import BytesIO

from bbcache.errors import MissingExtraError
from bbcache.ids import Lsn
from bbcache.postgres.wal.page import (
    ALIGNMENT_BYTES,
    MIN_SEGMENT_SIZE_BYTES,
    PAGE_SIZE_BYTES,
    PageChecker,
    PageHeader,
    WalError,
    align,
    canonical_lsn,
    check_segment_size,
)
from bbcache.postgres.wal.record import (
    MAX_DATA_BYTES,
    MAX_RECORD_SIZE_BYTES,
    RECORD_HEADER_SIZE_BYTES,
    RMGR_INFO_MASK,
    XLOG_RMGR_ID,
    XLOG_SWITCH,
    EndOfWalError,
    EndReason,
    WalEnd,
    WalRecord,
)

try:
    import google_crc32c
except ImportError as error:
    raise MissingExtraError("bbcache.postgres cannot be imported", "postgres", error) from error

# xl_tot_len, xl_xid, xl_prev, xl_info, xl_rmid, xl_crc
_HEADER = struct.Struct("<IIQBB2xI")
_LENGTH = struct.Struct("<I")
_CHECKED_SIZE_BYTES = RECORD_HEADER_SIZE_BYTES - 4  # the checksum stands last
_MAX_BUILTIN_RMGR_ID = 21
_MIN_CUSTOM_RMGR_ID = 128

_unpack_header = _HEADER.unpack_from
_crc, _extend_crc = google_crc32c.value, google_crc32c.extend
_new_lsn, _new_record = int.__new__, tuple.__new__


class WalDecoder:
    """Turns WAL bytes into records. Not thread-safe.

    Keeps the data of one unfinished record, up to `max_data_bytes`, and at most an incomplete
    page header. The bytes of a longer record are checked and dropped as they arrive.

    Args:
        start_lsn: the position of the first byte fed: the start of a record, or of a page.
            The rest of a record that began on an earlier page is skipped. The position
            after a page header counts as the start of the page.
        wal_segment_size_bytes: the cluster's WAL segment size. None takes it from the
            first page, so `start_lsn` must then be the start of a segment.
        max_data_bytes: a record with more data than this is returned without it.

    Raises:
        WalError: `start_lsn` or the segment size cannot be one.
    """

    def __init__(
        self,
        start_lsn: Lsn,
        wal_segment_size_bytes: int | None = None,
        *,
        max_data_bytes: int = MAX_DATA_BYTES,
    ) -> None:
        if wal_segment_size_bytes is not None:
            start_lsn = canonical_lsn(start_lsn, check_segment_size(wal_segment_size_bytes))
        elif start_lsn % MIN_SEGMENT_SIZE_BYTES:
            raise WalError(
                f"no segment starts at {start_lsn}, so its size cannot be read there\n"
                "hint: Pass wal_segment_size_bytes."
            )
        if start_lsn % ALIGNMENT_BYTES:
            raise WalError(f"no record starts at {start_lsn}: it is not a multiple of 8")
        self._checker = PageChecker(wal_segment_size_bytes)
        self._max_data_bytes = max_data_bytes
        self._last_record_lsn = start_lsn
        self._restart = int(start_lsn)  # where to continue when the unfinished record is dropped
        self._prev_lsn: Lsn | None = None  # the start of the last record
        self._end: WalEnd | None = None
        self.rewind()

    def rewind(self) -> None:
        """Drop the unfinished record; `feed` then expects it from its start.

        For a caller whose bytes may change, such as those of a file being written.
        Afterwards `next_lsn` is not before `last_record_lsn`.
        """
        self._position = self._restart  # the next position to decode; may be ahead of the bytes
        self._input = self._restart  # the position after the last byte fed
        self._tail = b""  # the bytes before it that are not decoded yet
        self._forget_partial()

    def _forget_partial(self) -> None:
        """Drop the unfinished record, if there is one."""
        self._partial_lsn = 0
        self._received = 0  # the number of its bytes so far
        self._header = bytearray()  # the first of them
        self._length = 0  # its length, 0 until known
        self._data_crc = 0
        self._data: BytesIO | None = None  # None if it is too long to be kept

    @property
    def next_lsn(self) -> Lsn:
        """The position of the first byte of the next `feed`."""
        return Lsn(self._input)

    @property
    def last_record_lsn(self) -> Lsn:
        """The canonical end of the last whole record; `start_lsn` before the first."""
        return self._last_record_lsn

    @property
    def end(self) -> WalEnd | None:
        """Why the last `feed` stopped early; None if it used all its bytes."""
        return self._end

    @property
    def wal_segment_size_bytes(self) -> int | None:
        """The WAL segment size, None until it is known."""
        return self._checker.wal_segment_size_bytes

    def feed(self, data: bytes | bytearray | memoryview) -> list[WalRecord]:
        """Take the next bytes and return the records that they complete.

        If the WAL ends, `end` says why, and the rest of `data` and the unfinished record are
        dropped. The next call continues at `next_lsn`, which has moved back, and may bring
        bytes that were written there since.

        Args:
            data: the bytes from `next_lsn` on, any number of them.
        """
        records: list[WalRecord] = []
        self._end = None
        origin = self._input - len(self._tail)
        buffer = self._tail + bytes(data) if self._tail else bytes(data)
        self._input = origin + len(buffer)
        try:
            self._decode(buffer, origin, records)
        except EndOfWalError as end:
            self._end = WalEnd(self._last_record_lsn, end.reason, end.message)
            self.rewind()
        else:
            self._tail = buffer[self._position - origin :]
        return records

    def _decode(self, buffer: bytes, origin: int, records: list[WalRecord]) -> None:
        """Decode `buffer`, which starts at `origin`, but keep an incomplete page header."""
        while (offset := self._position - origin) < len(buffer):
            in_page = self._position % PAGE_SIZE_BYTES
            if in_page == 0:
                if len(buffer) - offset < self._checker.header_size_bytes(self._position):
                    return
                self._enter_page(self._checker.check(buffer, offset, self._position))
                continue
            stop = min(len(buffer), offset + PAGE_SIZE_BYTES - in_page)
            if not self._received:
                offset = self._decode_whole(buffer, offset, stop, records)
            if offset < stop:
                self._assemble(buffer[offset:stop], records)

    def _enter_page(self, header: PageHeader) -> None:
        """Move to the first position to decode on the page of this header."""
        size = self._checker.header_size_bytes(header.lsn)
        if self._received:
            self._check_continuation(header)
        elif header.is_continuation:
            if self._prev_lsn is not None:
                raise EndOfWalError(
                    EndReason.BAD_CONTINUATION,
                    f"the page at {Lsn(header.lsn)} continues a record, but none is unfinished",
                )
            size = min(size + align(header.remaining_bytes), PAGE_SIZE_BYTES)
        self._position += size

    def _check_continuation(self, header: PageHeader) -> None:
        if header.is_overwrite:  # the server crashed within the record and continued here
            self._forget_partial()
            return
        remaining = self._length - self._received
        if not header.is_continuation or header.remaining_bytes != remaining:
            has = header.remaining_bytes if header.is_continuation else "none"
            raise EndOfWalError(
                EndReason.BAD_CONTINUATION,
                f"{remaining} bytes are missing of the record at {Lsn(self._partial_lsn)}, and "
                f"the page at {Lsn(header.lsn)} has {has}",
            )

    def _decode_whole(self, buffer: bytes, offset: int, stop: int, records: list[WalRecord]) -> int:
        """Decode the records that lie in buffer[offset:stop], within one page.

        The fast path: it takes complete and valid records, and stops at the first other one.

        Returns:
            The offset at which it stopped.
        """
        position, lsn, prev_lsn = self._position, Lsn(self._position), self._prev_lsn
        last, max_data_bytes = stop - RECORD_HEADER_SIZE_BYTES, self._max_data_bytes
        while offset <= last:
            length, xid, prev, info, rmgr_id, crc = _unpack_header(buffer, offset)
            end = offset + length
            body = offset + RECORD_HEADER_SIZE_BYTES
            if prev != prev_lsn or not body <= end <= stop:
                break
            if rmgr_id == XLOG_RMGR_ID and info & RMGR_INFO_MASK == XLOG_SWITCH:
                break
            data: bytes | None = buffer[body:end]
            if _extend_crc(_crc(data), buffer[offset : offset + _CHECKED_SIZE_BYTES]) != crc:
                break
            step = (length + ALIGNMENT_BYTES - 1) & -ALIGNMENT_BYTES
            position += step
            offset += step
            if length - RECORD_HEADER_SIZE_BYTES > max_data_bytes:
                data = None
            # Without their constructors, which take half of the time.
            end_lsn = _new_lsn(Lsn, position)
            fields = (lsn, end_lsn, rmgr_id, info, xid, length, prev_lsn, data)
            records.append(_new_record(WalRecord, fields))
            prev_lsn, lsn = lsn, end_lsn
        if position > self._position:
            self._prev_lsn = prev_lsn
            self._settle(lsn)
        return offset

    def _settle(self, end_lsn: Lsn) -> None:
        """Note that a record has ended at `end_lsn`."""
        self._position = self._restart = int(end_lsn)
        self._last_record_lsn = end_lsn

    def _assemble(self, piece: bytes, records: list[WalRecord]) -> None:
        """Add `piece`, from one page, to the unfinished record; check it as early as possible."""
        if not self._received:
            self._partial_lsn = self._position
        missing = RECORD_HEADER_SIZE_BYTES - len(self._header)
        if missing:
            self._header += piece[:missing]
            self._pass(min(missing, len(piece)))
            if not self._length and len(self._header) >= _LENGTH.size:
                self._length = self._check_length()
            if len(self._header) < RECORD_HEADER_SIZE_BYTES:
                return
            self._check_header()
            is_kept = self._length - RECORD_HEADER_SIZE_BYTES <= self._max_data_bytes
            self._data = BytesIO() if is_kept else None
            piece = piece[missing:]
        self._take_data(piece[: self._length - self._received])
        if self._received == self._length:
            records.append(self._finish())

    def _take_data(self, piece: bytes) -> None:
        self._data_crc = _extend_crc(self._data_crc, piece)
        if self._data is not None:
            self._data.write(piece)
        self._pass(len(piece))

    def _pass(self, size_bytes: int) -> None:
        self._received += size_bytes
        self._position += size_bytes

    def _check_length(self) -> int:
        length: int = _LENGTH.unpack_from(self._header)[0]
        lsn = Lsn(self._partial_lsn)
        if length == 0:
            raise EndOfWalError(EndReason.ZEROS, f"zeros at {lsn}")
        if not RECORD_HEADER_SIZE_BYTES <= length <= MAX_RECORD_SIZE_BYTES:
            raise EndOfWalError(EndReason.BAD_RECORD, f"a record of {length} bytes at {lsn}")
        return length

    def _check_header(self) -> None:
        """Check the header and its link to the record before; the first record has no such link."""
        _, _, prev, _, rmgr_id, _ = _unpack_header(self._header)
        lsn = Lsn(self._partial_lsn)
        if self._prev_lsn is None:
            is_known = rmgr_id <= _MAX_BUILTIN_RMGR_ID or rmgr_id >= _MIN_CUSTOM_RMGR_ID
            if prev < lsn and is_known:
                return
        elif prev == self._prev_lsn:
            return
        raise EndOfWalError(
            EndReason.BAD_RECORD,
            f"the record at {lsn} follows one at {Lsn(prev)}, not at {self._prev_lsn}",
        )

    def _finish(self) -> WalRecord:
        """Turn the unfinished record, now whole, into a record."""
        length, xid, prev, info, rmgr_id, crc = _unpack_header(self._header)
        lsn = Lsn(self._partial_lsn)
        if _extend_crc(self._data_crc, bytes(self._header[:_CHECKED_SIZE_BYTES])) != crc:
            raise EndOfWalError(
                EndReason.BAD_CHECKSUM, f"the checksum of the record at {lsn} does not match"
            )
        end = align(self._position)
        if rmgr_id == XLOG_RMGR_ID and info & RMGR_INFO_MASK == XLOG_SWITCH:
            assert self.wal_segment_size_bytes is not None
            end += -end % self.wal_segment_size_bytes
        data = None if self._data is None else self._data.getvalue()
        self._forget_partial()
        self._prev_lsn = lsn
        self._settle(Lsn(end))
        return WalRecord(lsn, Lsn(end), rmgr_id, info, xid, length, Lsn(prev), data)
