"""The results of reading WAL: its records, and the reason why it ends.

Facts from PostgreSQL's access/xlogrecord.h and catalog/pg_control.h.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from bbcache.ids import Lsn

RECORD_HEADER_SIZE_BYTES = 24
MAX_RECORD_SIZE_BYTES = 1020 << 20  # XLogRecordMaxSize
MAX_DATA_BYTES = 64 << 20  # that a decoder keeps of one record
XLOG_RMGR_ID = 0
XLOG_CHECKPOINT_SHUTDOWN = 0x00
XLOG_SWITCH = 0x40
RMGR_INFO_MASK = 0xF0  # the bits of info that belong to the resource manager


class WalRecord(NamedTuple):
    """One record of the WAL. Immutable, so thread-safe.

    Attributes:
        lsn: where it starts, after the page header if it is the first of a page.
        end_lsn: the canonical end: where the next record starts, or the page boundary
            before that; for a segment switch the end of the segment.
        rmgr_id: the resource manager that wrote it (access/rmgrlist.h).
        info: the kind of record and flags, by the resource manager.
        xid: the transaction id without its epoch, 0 if there is none.
        total_length_bytes: the length in its header, without page headers.
        prev_lsn: where the record before it starts.
        data: the bytes after the record's header, `total_length_bytes` less 24; None
            if they are longer than the reader keeps (`max_data_bytes`, by default 64 MiB).
            Such a record is checksummed as well.
    """

    lsn: Lsn
    end_lsn: Lsn
    rmgr_id: int
    info: int
    xid: int
    total_length_bytes: int
    prev_lsn: Lsn
    data: bytes | None

    @property
    def is_shutdown_checkpoint(self) -> bool:
        """Whether it is an XLOG_CHECKPOINT_SHUTDOWN.

        A server writes one when it shuts down, and also after crash recovery, when it
        goes on.
        """
        return (
            self.rmgr_id == XLOG_RMGR_ID and self.info & RMGR_INFO_MASK == XLOG_CHECKPOINT_SHUTDOWN
        )


class EndReason(enum.Enum):
    """Why reading stopped. All but `MISSING_SEGMENT` are ordinary ends of the WAL."""

    NO_MORE_BYTES = "the files end"
    ZEROS = "zeros follow"
    RECYCLED_PAGE = "the next page is an old one"
    BAD_PAGE = "the next page has a bad header"
    BAD_RECORD = "the next record has a bad header"
    BAD_CONTINUATION = "the rest of the next record is missing"
    BAD_CHECKSUM = "the checksum of the next record does not match"
    MISSING_SEGMENT = "a segment is missing before others that are there"


class WalEnd(NamedTuple):
    """Where reading stopped and why.

    PostgreSQL cannot tell a damaged record from the end of the WAL, and treats both as the
    end. The reason here says which it may be.

    Attributes:
        lsn: the canonical end of the last whole record.
        reason: the kind of end.
        message: the finding and its position, for people.
    """

    lsn: Lsn
    reason: EndReason
    message: str


class EndOfWalError(Exception):
    """Raised inside the decoder at the end of the WAL; callers do not see it.

    Attributes:
        reason: the kind of end.
        message: the finding and its position.
    """

    def __init__(self, reason: EndReason, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message
