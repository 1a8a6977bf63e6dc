"""The segment files of a WAL directory: their names, and which of them have WAL."""

from __future__ import annotations

import os
import re

from bbcache.postgres.wal.page import (
    LONG_HEADER_SIZE_BYTES,
    PageChecker,
    PageHeader,
    check_segment_size,
)
from bbcache.postgres.wal.record import EndOfWalError

_SEGMENT_NAME = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")
_LOG_SIZE_BYTES = 1 << 32

# The log number and the number within the log, which order segments as LSNs do.
SegmentKey = tuple[int, int]


def segment_key(lsn: int, wal_segment_size_bytes: int) -> SegmentKey:
    """The key of the segment that holds the byte at `lsn`."""
    log, in_log = divmod(lsn, _LOG_SIZE_BYTES)
    return log, in_log // check_segment_size(wal_segment_size_bytes)


def segment_start_lsn(key: SegmentKey, wal_segment_size_bytes: int) -> int:
    """Where the segment starts."""
    log, number = key
    return log * _LOG_SIZE_BYTES + number * wal_segment_size_bytes


def segment_name(tli: int, lsn: int, wal_segment_size_bytes: int) -> str:
    """The name of the file of the segment that holds the byte at `lsn` (XLogFileName).

    Args:
        tli: the timeline (TimeLineID).
        lsn: a position in the segment.
        wal_segment_size_bytes: the cluster's WAL segment size.
    """
    return _name(tli, segment_key(lsn, wal_segment_size_bytes))


def _name(tli: int, key: SegmentKey) -> str:
    return f"{tli:08X}{key[0]:08X}{key[1]:08X}"


def list_segments(wal_dir: str) -> dict[SegmentKey, str]:
    """The name of each segment's file, in the order of the WAL.

    Of the files of several timelines the newest is taken: it starts with a copy of the
    older one up to the switch.

    Raises:
        OSError: the directory cannot be listed.
    """
    newest: dict[SegmentKey, int] = {}
    for name in os.listdir(wal_dir):
        if match := _SEGMENT_NAME.fullmatch(name):
            tli, log, number = (int(digits, 16) for digits in match.groups())
            newest[log, number] = max(tli, newest.get((log, number), 0))
    return {key: _name(newest[key], key) for key in sorted(newest)}


def first_segment(wal_dir: str) -> tuple[SegmentKey, int] | None:
    """The first segment with WAL of its own position, and the segment size in its header.

    Segments made in advance have none: they are zeros, or old files under a new name.

    Raises:
        OSError: the directory or a file in it cannot be read.
    """
    for key, name in list_segments(wal_dir).items():
        size_bytes = _stated_size(os.path.join(wal_dir, name), key)
        if size_bytes is not None:
            return key, size_bytes
    return None


def _stated_size(path: str, key: SegmentKey) -> int | None:
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read(LONG_HEADER_SIZE_BYTES)
    except FileNotFoundError:  # recycled meanwhile
        return None
    if len(data) < LONG_HEADER_SIZE_BYTES:
        return None
    checker = PageChecker(None)
    try:
        header = checker.check(data, 0, PageHeader.unpack(data).lsn)
    except EndOfWalError:
        return None
    is_own = segment_start_lsn(key, header.segment_size_bytes) == header.lsn
    return header.segment_size_bytes if is_own else None
