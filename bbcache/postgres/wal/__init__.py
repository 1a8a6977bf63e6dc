"""PostgreSQL's WAL: its records from files or streams, and its shutdown checkpoints.

WAL of PostgreSQL 14 to 18 from little-endian machines, with pages of 8 KiB. The names here are
the public ones. No lock: a decoder or reader is for one thread. Must not import the other rooms
of `bbcache.postgres`, or the cache.
"""

from bbcache.postgres.wal.decoder import WalDecoder
from bbcache.postgres.wal.detector import ShutdownCheckpointDetector
from bbcache.postgres.wal.page import WalError, canonical_lsn, record_end_lsn
from bbcache.postgres.wal.reader import WalFollower, WalReader
from bbcache.postgres.wal.record import MAX_DATA_BYTES, EndReason, WalEnd, WalRecord
from bbcache.postgres.wal.segment import segment_name

__all__ = [
    "MAX_DATA_BYTES",
    "EndReason",
    "ShutdownCheckpointDetector",
    "WalDecoder",
    "WalEnd",
    "WalError",
    "WalFollower",
    "WalReader",
    "WalRecord",
    "canonical_lsn",
    "record_end_lsn",
    "segment_name",
]
