"""Sends an archive as CopyData messages; `sendfile` copies the bytes where it can."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
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
        file: one gzip member, open at its start.
        size_bytes: its size.
        is_gzip: whether it is sent as it is, or decompressed.

    Attributes:
        sent_bytes: how many bytes of the copy were sent.

    Raises:
        CommandError: the archive cannot be read.
    """

    def __init__(self, file: BinaryIO, size_bytes: int, *, is_gzip: bool) -> None:
        self.sent_bytes = 0
        self._fd = file.fileno()
        self._size_bytes = size_bytes
        self._whole = b""  # a small one
        self._pieces: Iterator[bytes] | None = None  # of one that is decompressed
        try:
            if is_gzip and size_bytes <= SMALL_SIZE_BYTES:
                self._whole = _read_whole(self._fd, size_bytes)
            elif is_gzip:
                os.pread(self._fd, 1, 0)
            else:
                self._pieces = _begun(open_stream(file))
        except (ArchiveError, OSError) as error:
            raise _unreadable() from error

    def run(self, transport: Transport, head: Data, tail: Data, check: Callable[[], None]) -> None:
        """Send all of it.

        Args:
            transport: where to.
            head: sent before it.
            tail: sent after it.
            check: called between pieces; what it raises ends the copy.

        Raises:
            CommandError: the archive cannot be read to its end. Only whole messages were
                sent, so that the error can follow them.
            DisconnectedError: the client is gone or does not take it.
        """
        if self._whole:
            transport.send(b"".join((head, copy_data_head(self._size_bytes), self._whole, tail)))
            self.sent_bytes = self._size_bytes
            return
        transport.send(head, more=True)
        if self._pieces is not None:
            self._send_pieces(self._pieces, transport, check)
        else:
            self._send_file(transport, check)
        transport.send(tail)

    def _send_pieces(
        self, pieces: Iterator[bytes], transport: Transport, check: Callable[[], None]
    ) -> None:
        while True:
            try:
                piece = next(pieces, None)
            except (ArchiveError, PostgresError, OSError) as error:
                raise _unreadable() from error
            if piece is None:
                return
            transport.send(copy_data_head(len(piece)), more=True)
            transport.send(piece)
            self.sent_bytes += len(piece)
            check()

    def _send_file(self, transport: Transport, check: Callable[[], None]) -> None:
        for offset in range(0, self._size_bytes, PIECE_SIZE_BYTES):
            check()
            size_bytes = min(PIECE_SIZE_BYTES, self._size_bytes - offset)
            transport.send(copy_data_head(size_bytes), more=True)
            self._send_piece(transport, offset, size_bytes)
            self.sent_bytes += size_bytes

    def _send_piece(self, transport: Transport, offset: int, size_bytes: int) -> None:
        """Send a piece, or fill its message up with zeros and raise."""
        end = offset + size_bytes
        while offset < end:
            try:
                sent_bytes = self._send_some(transport, offset, end - offset)
            except OSError as error:
                transport.send(bytes(end - offset))
                raise _unreadable() from error
            if sent_bytes == 0:
                transport.send(bytes(end - offset))
                raise _unreadable() from ArchiveError("the archive is cut short")
            offset += sent_bytes

    def _send_some(self, transport: Transport, offset: int, size_bytes: int) -> int:
        if not transport.is_encrypted:
            return transport.send_from(self._fd, offset, size_bytes)
        data = os.pread(self._fd, min(size_bytes, _READ_SIZE_BYTES), offset)
        transport.send(data)
        return len(data)


def _read_whole(fd: int, size_bytes: int) -> bytes:
    whole = os.pread(fd, size_bytes, 0)
    if len(whole) != size_bytes:
        raise ArchiveError("the archive is cut short")
    return whole


def _begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Return the same pieces, the first of which has been read."""
    first = next(pieces, None)

    def all_of_them() -> Iterator[bytes]:
        if first is not None:
            yield first
            yield from pieces

    return all_of_them()


def _unreadable() -> CommandError:
    return CommandError("the basebackup cannot be read to its end")
