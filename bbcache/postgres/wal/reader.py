"""Reading records from a directory of WAL segments, of a stopped or a running server."""

from __future__ import annotations

import os
from collections.abc import Iterator

from bbcache.arguments import check_passable
from bbcache.ids import Lsn
from bbcache.postgres.wal.decoder import WalDecoder
from bbcache.postgres.wal.page import WalError
from bbcache.postgres.wal.record import MAX_DATA_BYTES, EndReason, WalEnd, WalRecord
from bbcache.postgres.wal.segment import (
    SegmentKey,
    first_segment,
    list_segments,
    segment_key,
    segment_start_lsn,
)

_CHUNK_SIZE_BYTES = 256 << 10


class WalReader:
    """Reads the records of a WAL directory in order, to its end. Not thread-safe.

    A server may write there meanwhile; the next call then continues with its records.
    Iteration yields the records up to the present end, and `end` says why it is one. The
    reader keeps no file open between calls. It keeps one unfinished record in memory, up to
    `max_data_bytes`, and the records of at most 256 KiB of WAL.

    Args:
        wal_dir: a ``pg_wal`` directory.
        start_lsn: the start of a record, or of a page, as for `WalDecoder`. None starts
            at the first segment that holds WAL.
        wal_segment_size_bytes: the cluster's WAL segment size; None takes it from the
            first segment that holds WAL.
        max_data_bytes: a record with more data than this is returned without it.

    Raises:
        WalError: the segment size cannot be one.
    """

    def __init__(
        self,
        wal_dir: str | os.PathLike[str],
        start_lsn: Lsn | None = None,
        wal_segment_size_bytes: int | None = None,
        *,
        max_data_bytes: int = MAX_DATA_BYTES,
    ) -> None:
        check_passable("the directory of the WAL", wal_dir, WalError)
        self._wal_dir = os.path.abspath(os.fspath(wal_dir))
        self._start_lsn = start_lsn
        self._max_data_bytes = max_data_bytes
        self._end: WalEnd | None = None
        self._decoder: WalDecoder | None = None
        self._segment: tuple[SegmentKey, str] | None = None  # being read, and its file's path
        if start_lsn is not None and wal_segment_size_bytes is not None:
            self._decoder = self._decode_from(start_lsn, wal_segment_size_bytes)

    @property
    def end(self) -> WalEnd | None:
        """Why the WAL ends at the last `read`; None if there is more."""
        return self._end

    @property
    def last_record_lsn(self) -> Lsn:
        """The canonical end of the last record read; the start position before the first."""
        if self._decoder is None:
            return self._start_lsn or Lsn(0)
        return self._decoder.last_record_lsn

    @property
    def wal_segment_size_bytes(self) -> int | None:
        """The WAL segment size, None until it is known."""
        return None if self._decoder is None else self._decoder.wal_segment_size_bytes

    def __iter__(self) -> Iterator[WalRecord]:
        """The records up to the end of the WAL.

        Leaving the loop early loses records that were read together.

        Raises:
            WalError: as for `read`.
        """
        while True:
            yield from self.read()
            if self._end is not None:
                return

    def read(self) -> list[WalRecord]:
        """Return the next records: those of one piece of WAL, or those before its end.

        Sets `end` at the end of the WAL, with the last records or without any.

        Raises:
            WalError: the directory or a file in it cannot be read, or no record can
                start at `start_lsn`.
        """
        self._end = None
        try:
            if self._decoder is None:
                self._decoder = self._make_decoder()
            if self._decoder is None:
                message = f"no segment of {self._wal_dir} has WAL yet"
                self._end = WalEnd(self.last_record_lsn, EndReason.NO_MORE_BYTES, message)
                return []
            return self._read(self._decoder)
        except OSError as error:
            name = error.filename or self._wal_dir
            raise WalError(f"{name} cannot be read: {error.strerror}") from error

    def _make_decoder(self) -> WalDecoder | None:
        first = first_segment(self._wal_dir)
        if first is None:
            return None
        key, size_bytes = first
        start_lsn = self._start_lsn
        if start_lsn is None:
            start_lsn = Lsn(segment_start_lsn(key, size_bytes))
        return self._decode_from(start_lsn, size_bytes)

    def _decode_from(self, start_lsn: Lsn, size_bytes: int) -> WalDecoder:
        return WalDecoder(start_lsn, size_bytes, max_data_bytes=self._max_data_bytes)

    def _read(self, decoder: WalDecoder) -> list[WalRecord]:
        while True:
            data = self._read_chunk(decoder)
            records = decoder.feed(data)
            self._end = decoder.end if data else self._end_of_files(decoder)
            if self._end is not None:
                self._segment = None  # a file of another timeline may replace it
                decoder.rewind()  # the bytes of an unfinished record may be stale
            elif decoder.last_record_lsn > decoder.next_lsn:
                decoder.rewind()  # past the unused rest of a segment
            if records or self._end is not None:
                return records

    def _read_chunk(self, decoder: WalDecoder) -> bytes:
        """Read the next bytes for the decoder, from one segment; none at the end."""
        lsn, size_bytes = decoder.next_lsn, decoder.wal_segment_size_bytes
        assert size_bytes is not None
        key = segment_key(lsn, size_bytes)
        if self._segment is None or self._segment[0] != key:
            name = list_segments(self._wal_dir).get(key)
            if name is None:
                return b""
            self._segment = key, os.path.join(self._wal_dir, name)
        offset = lsn % size_bytes
        try:
            with open(self._segment[1], "rb", buffering=0) as file:
                file.seek(offset)
                return file.read(min(_CHUNK_SIZE_BYTES, size_bytes - offset))
        except FileNotFoundError:  # recycled meanwhile
            return b""

    def _end_of_files(self, decoder: WalDecoder) -> WalEnd:
        assert decoder.wal_segment_size_bytes is not None
        key = segment_key(decoder.next_lsn, decoder.wal_segment_size_bytes)
        segments = list_segments(self._wal_dir)
        reason, message = EndReason.NO_MORE_BYTES, f"there is nothing from {decoder.next_lsn} on"
        if key not in segments and any(later > key for later in segments):
            reason = EndReason.MISSING_SEGMENT
            message = f"the segment of {decoder.next_lsn} is missing, and later ones are there"
        return WalEnd(decoder.last_record_lsn, reason, message)


class WalFollower:
    """Follows the WAL that a running server writes. Not thread-safe.

    Args:
        wal_dir: the server's ``pg_wal`` directory.
        start_lsn: the start of a record, or of a page, as for `WalDecoder`.
        wal_segment_size_bytes: the cluster's WAL segment size; None takes it from the
            first segment that holds WAL.
        max_data_bytes: a record with more data than this is returned without it.

    Raises:
        WalError: the segment size cannot be one.
    """

    def __init__(
        self,
        wal_dir: str | os.PathLike[str],
        start_lsn: Lsn,
        wal_segment_size_bytes: int | None = None,
        *,
        max_data_bytes: int = MAX_DATA_BYTES,
    ) -> None:
        self._reader = WalReader(
            wal_dir, start_lsn, wal_segment_size_bytes, max_data_bytes=max_data_bytes
        )

    @property
    def end(self) -> WalEnd | None:
        """Where the WAL ended at the last `poll` and why; None before the first."""
        return self._reader.end

    @property
    def last_record_lsn(self) -> Lsn:
        """The canonical end of the last whole record; `start_lsn` before the first."""
        return self._reader.last_record_lsn

    def poll(self) -> list[WalRecord]:
        """Return the records that were completed since the last call.

        Does not wait, and sees only WAL that the server has written to its files. All new
        records are in memory together.

        Raises:
            WalError: WAL that was not read yet has been removed (the server keeps as
                much as its ``wal_keep_size`` and replication slots say), or as for
                `WalReader.read`.
        """
        records = list(self._reader)
        end = self._reader.end
        if end is not None and end.reason is EndReason.MISSING_SEGMENT and not records:
            raise WalError(
                f"{end.message}\nhint: Poll more often, or raise the server's wal_keep_size."
            )
        return records
