"""Sends an archive as CopyData messages; `sendfile` copies the bytes where it can."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final

from bbcache.errors import ArchiveError, PostgresError
from bbcache.page_service.errors import CommandError
from bbcache.page_service.protocol.backend import copy_data_head
from bbcache.page_service.transport import Data, Transport
from bbcache.postgres.pgdata.tar_reader import open_stream

PIECE_SIZE_BYTES: Final = 1 << 20  # measured best with psql, which holds a piece in memory
_READ_SIZE_BYTES: Final = 1 << 18
SMALL_SIZE_BYTES: Final = 1 << 16  # up to which one copy costs less than another system call


class CopyOut:
    """Sends one archive. Not thread-safe.

    The constructor reads its first bytes, so that an archive that cannot be read is found
    before the client is told of a copy.

    Args:
        transport: where to.
        file: one gzip member, open at its start.
        size_bytes: its size.
        is_gzip: whether it is sent as it is, or decompressed.

    Attributes:
        sent_bytes: how many bytes of the copy were sent.

    Raises:
        CommandError: the archive cannot be read.
    """

    def __init__(
        self, transport: Transport, file: BinaryIO, size_bytes: int, *, is_gzip: bool
    ) -> None:
        self.sent_bytes = 0
        self._transport = transport
        self._fd = file.fileno()
        self._size_bytes = size_bytes
        self._pieces: Iterator[bytes] | None = None  # None for `sendfile`
        try:
            if not is_gzip:
                self._pieces = open_stream(file)
            elif transport.is_encrypted or size_bytes <= SMALL_SIZE_BYTES:
                self._pieces = map(self._read, range(0, size_bytes, _READ_SIZE_BYTES))
            self._first = (
                os.pread(self._fd, 1, 0) if self._pieces is None else next(self._pieces, b"")
            )
        except (ArchiveError, OSError) as error:
            raise _unreadable() from error

    def run(self, head: Data, tail: Data, check: Callable[[], None]) -> None:
        """Send all of it.

        Args:
            head: sent before it.
            tail: sent after it.
            check: called between pieces; what it raises ends the copy.

        Raises:
            CommandError: the archive cannot be read to its end. Only whole messages were
                sent, so that the error can follow them.
            DisconnectedError: the client is gone or does not take it.
        """
        if self._pieces is None:
            self._send_file(head, tail, check)
        else:
            self._send_pieces(self._pieces, head, tail, check)

    def _send_pieces(
        self, pieces: Iterator[bytes], head: Data, tail: Data, check: Callable[[], None]
    ) -> None:
        """Send each piece when the next one is there, the last one together with the tail."""
        parts, size_bytes = [head, copy_data_head(len(self._first)), self._first], len(self._first)
        try:
            for piece in pieces:
                self._send(parts, size_bytes)
                check()
                parts, size_bytes = [copy_data_head(len(piece)), piece], len(piece)
        except (ArchiveError, PostgresError, OSError) as error:
            self._send(parts, size_bytes)
            raise _unreadable() from error
        self._send([*parts, tail], size_bytes)

    def _send(self, parts: Iterable[Data], size_bytes: int) -> None:
        self._transport.send(b"".join(parts))
        self.sent_bytes += size_bytes

    def _send_file(self, head: Data, tail: Data, check: Callable[[], None]) -> None:
        for offset in range(0, self._size_bytes, PIECE_SIZE_BYTES):
            size_bytes = min(PIECE_SIZE_BYTES, self._size_bytes - offset)
            self._transport.send(b"".join((head, copy_data_head(size_bytes))), more=True)
            self._send_range(offset, offset + size_bytes)
            self.sent_bytes += size_bytes
            head = b""
            check()
        self._transport.send(tail)

    def _send_range(self, offset: int, end: int) -> None:
        """Send a range of the file, or fill its message up with zeros and raise."""
        while offset < end:
            try:
                offset += self._transport.send_from(self._fd, offset, end - offset)
            except (ArchiveError, OSError) as error:
                self._transport.send(bytes(end - offset))
                raise _unreadable() from error

    def _read(self, offset: int) -> bytes:
        size_bytes = min(_READ_SIZE_BYTES, self._size_bytes - offset)
        piece = os.pread(self._fd, size_bytes, offset)
        if len(piece) < size_bytes:
            raise ArchiveError("the archive is cut short")
        return piece


def _unreadable() -> CommandError:
    return CommandError("the basebackup cannot be read to its end")
