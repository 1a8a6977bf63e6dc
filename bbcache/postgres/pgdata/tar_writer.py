"""Writing a tar stream whose bytes depend only on names and contents.

The format is ustar (POSIX.1-1988, the interchange format of pax(1)), with GNU's
extension headers for names over 100 bytes and files of 8 GiB and more.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeAlias

from bbcache.errors import PostgresError

Buffer: TypeAlias = bytes | bytearray | memoryview

BLOCK_SIZE_BYTES = 512
# The compressor takes whole pieces of this size as they are; smaller ones are copied together.
_BUFFER_SIZE_BYTES = 1024 * 1024
_ZEROS = bytes(64 * 1024)
# Smaller holes are read: finding them costs more.
_MIN_HOLES_BYTES = 1024 * 1024
_STAT_BLOCK_SIZE_BYTES = 512  # of st_blocks
_END_MARKER_SIZE_BYTES = 2 * BLOCK_SIZE_BYTES
_MAX_USTAR_NAME_BYTES = 100
_MAX_USTAR_FILE_BYTES = 8**11 - 1
# 2000-01-01 00:00 UTC, PostgreSQL's epoch. GNU tar warns of 1970.
MEMBER_MTIME_S = 946_684_800
DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
# Far deeper than PostgreSQL's directories, far less than a recursion such as rmtree's can go.
MAX_PARTS = 128
# The limit of a restore: a name with a directory's slash and a NUL fills PATH_MAX.
MAX_NAME_BYTES = 4094


class Writer(Protocol):
    """The target of a tarball, such as a file open for writing."""

    def write(self, data: Buffer, /) -> int:
        """Write the bytes, and copy those that are kept; return the number of bytes written."""
        ...


class TarWriter:
    """Writes members to a `Writer` in large pieces. Not thread-safe.

    Every member belongs to user and group 0, is dated `MEMBER_MTIME_S` and has mode
    0700 (directories) or 0600 (files). Exceptions of `writer` pass through.

    Args:
        writer: gets pieces of 1 MiB, the last one shorter, from a buffer that is
            used again.
        directory: the directory of the files; errors name paths below it.

    Attributes:
        member_count: members begun.
        size_bytes: bytes of the tar so far.
    """

    def __init__(self, writer: Writer, directory: Path | None = None) -> None:
        self._writer = writer
        self._directory = directory or Path()
        self._buffer = memoryview(bytearray(_BUFFER_SIZE_BYTES))
        self._filled = 0
        self._flushed = 0
        self.member_count = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the tar so far."""
        return self._flushed + self._filled

    def add_directory(self, name: str) -> None:
        """Add the directory `name`, a relative path without a slash at its end."""
        self._add_header(f"{name}/", tarfile.DIRTYPE, DIRECTORY_MODE, 0)

    def add_bytes(self, name: str, content: bytes) -> None:
        """Add a file with this content."""
        self._add_header(name, tarfile.REGTYPE, FILE_MODE, len(content))
        self._put(content)
        self._pad(len(content))

    def add_file(
        self, name: str, fd: int, size_bytes: int, *, used_bytes: int | None = None
    ) -> None:
        """Add a file from a descriptor. Holes are not read; the tar has zeros for them.

        Args:
            name: its name in the tar.
            fd: open for reading, at its start.
            size_bytes: its size, which stands in the tar before the content.
            used_bytes: bytes to take from the start; zeros fill the rest. None is all.

        Raises:
            PostgresError: the descriptor cannot be read, or ends early.
        """
        self._add_header(name, tarfile.REGTYPE, FILE_MODE, size_bytes)
        used_bytes = size_bytes if used_bytes is None else used_bytes
        self._copy(self._directory / name, fd, used_bytes)
        self._put_zeros(size_bytes - used_bytes)
        self._pad(size_bytes)

    def finish(self) -> None:
        """Write the end marker and the rest of the buffer."""
        self._put_zeros(_END_MARKER_SIZE_BYTES)
        self._flush()

    def _add_header(self, name: str, kind: bytes, mode: int, size_bytes: int) -> None:
        self.member_count += 1
        encoded = os.fsencode(name)
        if len(encoded) <= _MAX_USTAR_NAME_BYTES and size_bytes <= _MAX_USTAR_FILE_BYTES:
            self._put(_ustar_header(encoded, kind, mode, size_bytes))
            return
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.size, info.mtime = kind, mode, size_bytes, MEMBER_MTIME_S
        self._put(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))

    def _copy(self, path: Path, fd: int, size_bytes: int) -> None:
        for hole_bytes, data_bytes in _extents(path, fd, size_bytes):
            self._put_zeros(hole_bytes)
            self._copy_data(path, fd, data_bytes)

    def _copy_data(self, path: Path, fd: int, size_bytes: int) -> None:
        left = size_bytes
        while left:
            room = self._room(left)
            try:
                got = os.readv(fd, [self._buffer[self._filled : self._filled + room]])
            except OSError as error:
                raise _unreadable(path, error) from error
            if not got:
                raise PostgresError(
                    f"{path} became shorter while it was read: {left} of {size_bytes} bytes are "
                    "gone\nhint: Nothing may write to a data directory that is being sent."
                )
            self._filled += got
            left -= got

    def _put(self, data: bytes) -> None:
        start = 0
        while start < len(data):
            room = self._room(len(data) - start)
            self._buffer[self._filled : self._filled + room] = data[start : start + room]
            self._filled += room
            start += room

    def _put_zeros(self, size_bytes: int) -> None:
        while size_bytes:
            piece = min(size_bytes, len(_ZEROS))
            self._put(_ZEROS[:piece] if piece < len(_ZEROS) else _ZEROS)
            size_bytes -= piece

    def _pad(self, size_bytes: int) -> None:
        self._put_zeros(-size_bytes % BLOCK_SIZE_BYTES)

    def _room(self, wanted: int) -> int:
        """How many of `wanted` bytes fit the buffer, which is emptied when full."""
        if self._filled == _BUFFER_SIZE_BYTES:
            self._flush()
        return min(wanted, _BUFFER_SIZE_BYTES - self._filled)

    def _flush(self) -> None:
        start = 0
        while start < self._filled:
            piece = self._buffer[start : self._filled]
            taken = self._writer.write(piece)
            if not 0 < taken <= len(piece):
                raise ValueError(f"the writer took {taken} of {len(piece)} bytes")
            start += taken
        self._flushed += self._filled
        self._filled = 0


def _unreadable(path: Path, error: OSError) -> PostgresError:
    return PostgresError(f"cannot read {path}: {error.strerror}")


def _extents(path: Path, fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the sizes of each hole and of the data after it; the file is positioned at the data."""
    status = os.fstat(fd)
    missing_bytes = status.st_size - status.st_blocks * _STAT_BLOCK_SIZE_BYTES
    if not stat.S_ISREG(status.st_mode) or missing_bytes < _MIN_HOLES_BYTES:
        yield 0, size_bytes
        return
    end = 0
    while end < size_bytes:
        position = end
        try:
            start = min(_next_data(fd, position), size_bytes)
            end = start if start == size_bytes else os.lseek(fd, start, os.SEEK_HOLE)
            os.lseek(fd, start, os.SEEK_SET)
        except OSError as error:
            raise _unreadable(path, error) from error
        end = min(end, size_bytes)
        yield start - position, end - start


def _next_data(fd: int, position: int) -> int:
    """Return the offset of the next data, or the end of the file."""
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.lseek(fd, 0, os.SEEK_END)


def _ustar_header(name: bytes, kind: bytes, mode: int, size_bytes: int) -> bytes:
    """The 512 bytes before a member (the fields of ustar in POSIX pax(1))."""
    header = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0        %b%bustar\x0000%b" % (
        name.ljust(_MAX_USTAR_NAME_BYTES, b"\0"),
        mode,
        0,  # user id
        0,  # group id
        size_bytes,
        MEMBER_MTIME_S,
        kind,
        bytes(100),  # the name that a link points to
        bytes(247),  # user and group name, device numbers, prefix, padding
    )
    # The checksum counts itself as blanks.
    return b"%b%06o\0 %b" % (header[:148], sum(header), header[156:])
