"""Finding the shutdown checkpoints in a stream of WAL."""

from __future__ import annotations

from bbcache.ids import Lsn
from bbcache.postgres.wal.decoder import WalDecoder
from bbcache.postgres.wal.record import WalEnd


class ShutdownCheckpointDetector:
    """Reports the shutdown checkpoints in a stream of WAL bytes. Not thread-safe.

    A shutdown checkpoint does not prove that the server has stopped: crash recovery
    writes one as well, and the server goes on. No data of a record is kept.

    Args:
        start_lsn: the position of the first byte fed: the start of a record, or of a page,
            as for `WalDecoder`.
        wal_segment_size_bytes: the cluster's WAL segment size. None takes it from the
            first page, so `start_lsn` must then be the start of a segment.

    Raises:
        WalError: `start_lsn` or the segment size cannot be one.
    """

    def __init__(self, start_lsn: Lsn, wal_segment_size_bytes: int | None = None) -> None:
        self._decoder = WalDecoder(start_lsn, wal_segment_size_bytes, max_data_bytes=0)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Lsn]:
        """Take the next bytes; return the canonical end of each shutdown checkpoint in them.

        If the WAL ends, `end` says why, and the rest of `data` is dropped. The next call
        continues at `next_lsn`, which has moved back, and may bring bytes that were written
        there since.

        Args:
            data: the bytes from `next_lsn` on, any number of them.
        """
        records = self._decoder.feed(data)
        return [record.end_lsn for record in records if record.is_shutdown_checkpoint]

    @property
    def last_record_lsn(self) -> Lsn:
        """The canonical end of the last whole record; `start_lsn` before the first."""
        return self._decoder.last_record_lsn

    @property
    def next_lsn(self) -> Lsn:
        """The position of the first byte of the next `feed`."""
        return self._decoder.next_lsn

    @property
    def end(self) -> WalEnd | None:
        """Why the last `feed` stopped early; None if it used all its bytes."""
        return self._decoder.end
