"""The WAL of a running server, received as a replica receives it.

Physical replication (PostgreSQL's manual, "Streaming Replication Protocol") through
psycopg2. A server that stops sends its shutdown checkpoint last, and exits only when its
receivers have confirmed it.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from bbcache.errors import MissingExtraError
from bbcache.ids import Lsn
from bbcache.postgres.wal import MAX_DATA_BYTES, WalDecoder, WalError, WalRecord

try:
    import psycopg2
    from psycopg2.extras import PhysicalReplicationConnection
except ImportError as error:
    raise MissingExtraError(
        "bbcache.pageserver.wal_stream cannot be imported", "replication", error
    ) from error


_CONNECT_TIMEOUT_S: Final = 10
_APPLICATION_NAME: Final = "bbcache"


class WalStream:
    """Follows the WAL that a running server sends. Polled by one thread.

    A server that stops waits for a stream that is not polled, up to its
    ``wal_sender_timeout``. WAL that the server removes before it was sent is lost, as for any
    replica without a slot. Nothing is written to disk here, so do not configure the stream as a
    synchronous replica.

    Args:
        start_lsn: the start of a record, or of a page, as for `WalDecoder`.
        wal_segment_size_bytes: the cluster's WAL segment size.
        max_data_bytes: a record with more data than this is returned without it.

    Raises:
        WalError: `start_lsn` or the segment size cannot be one.
    """

    def __init__(
        self,
        start_lsn: Lsn,
        wal_segment_size_bytes: int,
        *,
        max_data_bytes: int = MAX_DATA_BYTES,
    ) -> None:
        self._decoder = WalDecoder(start_lsn, wal_segment_size_bytes, max_data_bytes=max_data_bytes)
        self._conninfo: str | None = None  # set by any thread, read by the polling thread
        self._has_tried = threading.Event()
        self._connection: Any = None
        self._cursor: Any = None

    @property
    def last_record_lsn(self) -> Lsn:
        """The canonical end of the last whole record; `start_lsn` before the first."""
        return self._decoder.last_record_lsn

    @property
    def next_lsn(self) -> Lsn:
        """Where the WAL begins that has not been received yet."""
        return self._decoder.next_lsn

    def follow(self, conninfo: str) -> None:
        """Connect to a running server at the next `poll`, and again when the stream breaks off.

        Thread-safe, like `wait_tried` and `expect_end`.

        Args:
            conninfo: a libpq connection string, of a user who may replicate.
        """
        self._has_tried.clear()
        self._conninfo = conninfo

    def wait_tried(self, timeout_s: float) -> bool:
        """Wait until a poll in another thread has an answer of the server, or cannot connect.

        Returns:
            False if neither has happened in time.
        """
        return self._has_tried.wait(timeout_s)

    def expect_end(self) -> None:
        """Note that the server is about to stop: the end of the stream is not an error then."""
        self._conninfo = None

    def poll(self) -> Iterator[WalRecord]:
        """Return the new records since the last call, without waiting.

        Each piece of WAL is confirmed to the server when its records have been taken.

        Raises:
            WalError: the stream broke off, or cannot be opened; the next call connects
                again and continues after the last whole record.
        """
        conninfo = self._conninfo
        if self._connection is None:
            if conninfo is None:
                return
            self._connect(conninfo)
        try:
            while (message := self._read_message()) is not None:
                self._check_place(message.data_start)
                try:
                    yield from self._decoder.feed(message.payload)
                finally:  # after an error, too, or the server could not stop
                    self._confirm(message.data_start + len(message.payload))
                self._check_end()
            if self._cursor.wal_end:  # it has answered
                self._has_tried.set()
        except psycopg2.Error as error:
            self.close()
            if self._conninfo is not None:
                raise WalError(f"the WAL stream broke off: {_one_line(error)}") from error

    def close(self) -> None:
        """Close the connection; a later `poll` may open another."""
        connection, self._connection = self._connection, None
        self._cursor = None
        if connection is not None:
            connection.close()

    def _connect(self, conninfo: str) -> None:
        self._decoder.rewind()
        try:
            self._connection = psycopg2.connect(
                conninfo,
                connection_factory=PhysicalReplicationConnection,
                connect_timeout=_CONNECT_TIMEOUT_S,
                application_name=_APPLICATION_NAME,
            )
            self._cursor = self._connection.cursor()
            self._cursor.start_replication(start_lsn=int(self._decoder.next_lsn))
            # A server that stops before it streams just closes the connection.
            self._cursor.send_feedback(reply=True, force=True)
        except psycopg2.Error as error:
            self.close()
            self._has_tried.set()
            raise WalError(f"cannot stream WAL: {_one_line(error)}") from error

    def _read_message(self) -> Any:
        """Return the next message, or None if no whole message has arrived.

        One read of psycopg2 takes a few KiB from the socket, and a message has up to 128 KiB.
        """
        arrivals = select.poll()
        arrivals.register(self._cursor, select.POLLIN)
        while (message := self._cursor.read_message()) is None and arrivals.poll(0):
            pass
        return message

    def _confirm(self, lsn: int) -> None:
        with suppress(psycopg2.Error):  # the next read raises it
            # Flushed, too: psycopg2 reports the positions of keepalives as flushed, and a server
            # that has one flushed position waits for it to reach the end.
            self._cursor.send_feedback(write_lsn=lsn, flush_lsn=lsn, force=True)

    def _check_place(self, lsn: int) -> None:
        if lsn != self._decoder.next_lsn:
            wanted = self._decoder.next_lsn
            self.close()
            raise WalError(f"the server sends the WAL from {lsn} on, not from {wanted}")

    def _check_end(self) -> None:
        end = self._decoder.end
        if end is not None:
            self.close()
            raise WalError(f"the server sends invalid WAL: {end.message}")


def _one_line(error: psycopg2.Error) -> str:
    return str(error).partition("\n")[0]
