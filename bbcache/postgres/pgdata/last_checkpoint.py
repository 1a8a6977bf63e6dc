"""The check that pg_wal has the record of the last checkpoint, from which a server starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from bbcache.postgres.pgdata.control_file import ControlFile
from bbcache.postgres.wal.decoder import WalDecoder
from bbcache.postgres.wal.page import LONG_HEADER_SIZE_BYTES, PageChecker
from bbcache.postgres.wal.record import EndOfWalError

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def has_last_checkpoint(wal_fd: int, control: ControlFile, segments: Mapping[str, int]) -> bool:
    """Return whether the WAL of a cleanly shut down server has its shutdown checkpoint.

    PostgreSQL also reads the header of the segment in which the record starts.

    Args:
        wal_fd: the directory of the WAL.
        control: the server's pg_control.
        segments: the segments of the record, in order, each with the bytes up to its end.

    Raises:
        OSError: a segment cannot be read.
    """
    size_bytes = control.wal_segment_size_bytes
    decoder = WalDecoder(control.checkpoint_lsn, size_bytes, max_data_bytes=0)
    checker = PageChecker(size_bytes)
    for name, used_bytes in segments.items():
        offset = decoder.next_lsn % size_bytes
        fd = os.open(name, _OPEN, dir_fd=wal_fd)
        try:
            checker.check(os.pread(fd, LONG_HEADER_SIZE_BYTES, 0), 0, decoder.next_lsn - offset)
            records = decoder.feed(os.pread(fd, used_bytes - offset, offset))
        except EndOfWalError:
            return False
        finally:
            os.close(fd)
        if records:
            return records[0].is_shutdown_checkpoint
    return False
