"""The geometry of the WAL: pages, segments, and the positions of records.

Facts from PostgreSQL's access/xlog_internal.h and xlogreader.c. Everything here is
immutable or a pure function, so thread-safe, except `PageChecker`.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

from bbcache.errors import PostgresError
from bbcache.ids import Lsn
from bbcache.postgres.wal.record import EndOfWalError, EndReason

PAGE_SIZE_BYTES = 8192
SHORT_HEADER_SIZE_BYTES = 24
LONG_HEADER_SIZE_BYTES = 40  # of the first page of a segment
ALIGNMENT_BYTES = 8
MIN_SEGMENT_SIZE_BYTES = 1 << 20
MAX_SEGMENT_SIZE_BYTES = 1 << 30

_SHORT_HEADER = struct.Struct("<HHIQI4x")
_LONG_HEADER_REST = struct.Struct("<24xQII")
# XLOG_PAGE_MAGIC of PostgreSQL 14 to 18.
_MAGICS = frozenset({0xD10D, 0xD110, 0xD113, 0xD116, 0xD118})
_IS_CONTINUATION = 0x0001  # XLP_FIRST_IS_CONTRECORD
_IS_LONG = 0x0002  # XLP_LONG_HEADER
_IS_OVERWRITE = 0x0008  # XLP_FIRST_IS_OVERWRITE_CONTRECORD
_ALL_FLAGS = 0x000F


class WalError(PostgresError):
    """An impossible position or size, or WAL that has been removed.

    The end of the WAL, even by a corrupted record, is not an error: see `WalEnd`.
    """


def check_segment_size(size_bytes: int) -> int:
    """Return a WAL segment size unchanged.

    Raises:
        WalError: it is not a power of two from 1 MiB to 1 GiB.
    """
    is_power_of_two = size_bytes & (size_bytes - 1) == 0
    if not (is_power_of_two and MIN_SEGMENT_SIZE_BYTES <= size_bytes <= MAX_SEGMENT_SIZE_BYTES):
        raise WalError(
            "a WAL segment size is a power of two from "
            f"{MIN_SEGMENT_SIZE_BYTES} to {MAX_SEGMENT_SIZE_BYTES} bytes, not {size_bytes}"
        )
    return size_bytes


def align(position: int) -> int:
    """The first position from this one on at which a record may start."""
    return position + -position % ALIGNMENT_BYTES


def header_size_bytes(page_lsn: int, wal_segment_size_bytes: int) -> int:
    """The size of the header of the page at `page_lsn`."""
    is_first = page_lsn % wal_segment_size_bytes == 0
    return LONG_HEADER_SIZE_BYTES if is_first else SHORT_HEADER_SIZE_BYTES


def canonical_lsn(lsn: int, wal_segment_size_bytes: int) -> Lsn:
    """The canonical name of a position.

    If a record ends on a page boundary, its end has two names: the boundary, and the
    position after the header of the next page, where the next record starts. The
    boundary is the canonical name: PostgreSQL calls it the end of the
    record. Every LSN in a cache key must be canonical.

    Args:
        lsn: a position at which a record ends or starts.
        wal_segment_size_bytes: the cluster's WAL segment size.

    Raises:
        WalError: the segment size cannot be one.
    """
    check_segment_size(wal_segment_size_bytes)
    in_page = lsn % PAGE_SIZE_BYTES
    if in_page == header_size_bytes(lsn - in_page, wal_segment_size_bytes):
        return Lsn(lsn - in_page)
    return Lsn(lsn)


def record_end_lsn(lsn: int, length_bytes: int, wal_segment_size_bytes: int) -> Lsn:
    """The canonical end of a record, from its start and the length in its header.

    Args:
        lsn: where the record starts: after the page header, not on the boundary.
        length_bytes: ``xl_tot_len``, without page headers in between.
        wal_segment_size_bytes: the cluster's WAL segment size.

    Raises:
        WalError: the segment size cannot be one.
    """
    check_segment_size(wal_segment_size_bytes)
    end = lsn + length_bytes
    page_lsn = lsn - lsn % PAGE_SIZE_BYTES + PAGE_SIZE_BYTES
    while end > page_lsn:
        end += header_size_bytes(page_lsn, wal_segment_size_bytes)
        page_lsn += PAGE_SIZE_BYTES
    return Lsn(align(end))


class PageHeader(NamedTuple):
    """The header of a WAL page.

    Attributes:
        magic: the WAL version.
        flags: the ``XLP_`` bits.
        tli: the timeline (TimeLineID) of the first record on the page.
        lsn: where the page starts.
        remaining_bytes: the rest of a record that began on an earlier page.
        system_identifier: the cluster's; in the first page of a segment, else 0.
        segment_size_bytes: the WAL segment size, likewise.
        page_size_bytes: the WAL page size, likewise.
    """

    magic: int
    flags: int
    tli: int
    lsn: int
    remaining_bytes: int
    system_identifier: int = 0
    segment_size_bytes: int = 0
    page_size_bytes: int = 0

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Self:
        """Read the header at `offset`, unchecked; the long one if it says so and is there."""
        short = _SHORT_HEADER.unpack_from(data, offset)
        if short[1] & _IS_LONG and len(data) - offset >= LONG_HEADER_SIZE_BYTES:
            return cls(*short, *_LONG_HEADER_REST.unpack_from(data, offset))
        return cls(*short)

    @property
    def is_continuation(self) -> bool:
        """Whether the page starts with the rest of a record."""
        return bool(self.flags & _IS_CONTINUATION)

    @property
    def is_overwrite(self) -> bool:
        """Whether the page replaces the rest of a record that was never finished."""
        return bool(self.flags & _IS_OVERWRITE)


class PageChecker:
    """Checks the headers of pages that are read one after another.

    Each page must agree with the pages before in version, cluster, segment size and
    timeline. Not thread-safe.

    Args:
        wal_segment_size_bytes: None takes it from the first page.

    Attributes:
        wal_segment_size_bytes: as given or read.
    """

    def __init__(self, wal_segment_size_bytes: int | None) -> None:
        self.wal_segment_size_bytes = wal_segment_size_bytes
        self._magic: int | None = None
        self._system_identifier: int | None = None
        self._tli = 0

    def header_size_bytes(self, page_lsn: int) -> int:
        """The size of the header of the page at `page_lsn`."""
        if self.wal_segment_size_bytes is None:
            return LONG_HEADER_SIZE_BYTES
        return header_size_bytes(page_lsn, self.wal_segment_size_bytes)

    def check(self, data: bytes, offset: int, lsn: int) -> PageHeader:
        """Read and check the header at `offset`, of the page at `lsn`.

        Raises:
            EndOfWalError: it is not the header of that page.
        """
        header = PageHeader.unpack(data, offset)
        if not any(header):
            raise EndOfWalError(EndReason.ZEROS, f"the page at {Lsn(lsn)} is empty")
        fault = self._fault(header)
        if fault:
            raise EndOfWalError(EndReason.BAD_PAGE, f"the page at {Lsn(lsn)} has {fault}")
        if header.lsn != lsn:
            raise EndOfWalError(
                EndReason.RECYCLED_PAGE, f"at {Lsn(lsn)} there is an old page of {Lsn(header.lsn)}"
            )
        fault = self._fault_in_place(header)
        if fault:
            raise EndOfWalError(EndReason.BAD_PAGE, f"the page at {Lsn(lsn)} has {fault}")
        self._learn(header)
        return header

    def _fault(self, header: PageHeader) -> str | None:
        if header.magic not in _MAGICS or self._magic not in (None, header.magic):
            return f"magic number {header.magic:04X}"
        if header.flags & ~_ALL_FLAGS:
            return f"flags {header.flags:04X}"
        return None

    def _fault_in_place(self, header: PageHeader) -> str | None:
        if header.tli < self._tli:
            return f"timeline {header.tli} after {self._tli}"
        is_long = bool(header.flags & _IS_LONG)
        if is_long != (self.header_size_bytes(header.lsn) == LONG_HEADER_SIZE_BYTES):
            return f"a {'long' if is_long else 'short'} header"
        return self._long_fault(header) if is_long else None

    def _long_fault(self, header: PageHeader) -> str | None:
        if header.page_size_bytes != PAGE_SIZE_BYTES:
            return f"a page size of {header.page_size_bytes} bytes"
        try:
            check_segment_size(header.segment_size_bytes)
        except WalError as error:
            return f"a segment size of {header.segment_size_bytes} bytes ({error})"
        if self.wal_segment_size_bytes not in (None, header.segment_size_bytes):
            return f"a segment size of {header.segment_size_bytes} bytes"
        if self._system_identifier not in (None, header.system_identifier):
            return f"system identifier {header.system_identifier}, of another cluster"
        return None

    def _learn(self, header: PageHeader) -> None:
        self._magic = header.magic
        self._tli = header.tli
        if header.flags & _IS_LONG:
            self.wal_segment_size_bytes = header.segment_size_bytes
            self._system_identifier = header.system_identifier
