"""Reading an untrusted tar stream, plain or gzip'd.

It accepts files and directories with relative names, of which basebackups consist.
Anything else in a stream is an `ArchiveError`; nothing is skipped.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

from isal import igzip_lib

from bbcache.errors import ArchiveError, ConfigError, LimitError, printable
from bbcache.postgres.pgdata.tar_writer import BLOCK_SIZE_BYTES, MAX_PARTS

_GZIP_MAGIC = b"\x1f\x8b"
_IN_SIZE_BYTES = 256 * 1024
_OUT_SIZE_BYTES = 512 * 1024
_GzipError = cast("type[Exception]", igzip_lib.IsalError)  # the stub has an instance
_ZERO_BLOCK = bytes(BLOCK_SIZE_BYTES)
_MAX_NAME_BYTES = 4096  # PATH_MAX
_NAME_BYTES = 64  # of a member, on average
_MAX_PADDING_BYTES = 1 << 20  # tar pads to 10 KiB, by default
_REGULAR_TYPES = (b"0", b"\0")
_DIRECTORY_TYPE = b"5"
_LONG_NAME_TYPE = b"L"
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a pipe",
}


class ByteSource(Protocol):
    """The source of the bytes of an archive, such as an open file."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""
        ...


@dataclass(frozen=True, slots=True)
class TarLimits:
    """The limits of a tar. Immutable, hence thread-safe.

    Attributes:
        max_size_bytes: size of the uncompressed tar.
        max_member_count: files and directories; their names may have 64 bytes on average.

    Raises:
        ConfigError: (a `ValueError`) a limit is below 1.
    """

    max_size_bytes: int
    max_member_count: int

    def __post_init__(self) -> None:
        for name in ("max_size_bytes", "max_member_count"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} is {value}, but must be at least 1")


class Member(NamedTuple):
    """One member: its checked relative path, kind, and size in bytes."""

    name: str
    is_directory: bool
    size_bytes: int


def open_stream(file: ByteSource) -> Iterator[bytes]:
    """The bytes of a tar, from a file that has it plain or as one gzip member.

    Pieces are at most 512 KiB, whatever the gzip expands to. Raises `ArchiveError`
    for a gzip that is damaged, cut short or followed by more bytes, at the latest at the end.
    """
    first = file.read(_IN_SIZE_BYTES)
    while first and len(first) < len(_GZIP_MAGIC):
        more = file.read(_IN_SIZE_BYTES)
        if not more:
            break
        first += more
    return _gunzip(file, first) if first.startswith(_GZIP_MAGIC) else _plain(file, first)


def _plain(file: ByteSource, first: bytes) -> Iterator[bytes]:
    piece = first
    while piece:
        yield piece
        piece = file.read(_OUT_SIZE_BYTES)


def _gunzip(file: ByteSource, first: bytes) -> Iterator[bytes]:
    """Decompress, checking the trailer's CRC-32 and size (RFC 1952)."""
    decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    piece = first
    while not decompressor.eof:
        if decompressor.needs_input and not piece:
            raise ArchiveError("the archive is cut short")
        try:
            out = decompressor.decompress(piece, _OUT_SIZE_BYTES)
        except _GzipError as error:
            raise ArchiveError(f"the archive is not a valid gzip file: {error}") from error
        if out:
            yield out
        is_hungry = decompressor.needs_input and not decompressor.eof
        piece = file.read(_IN_SIZE_BYTES) if is_hungry else b""
    if decompressor.unused_data or file.read(1):
        raise ArchiveError("the archive has bytes after its gzip member")


class TarReader:
    """Reads members one after the other. Not thread-safe.

    Args:
        pieces: the tar's bytes.
        limits: the limits; None accepts any size.

    Attributes:
        size_bytes: bytes of the tar so far.
    """

    def __init__(self, pieces: Iterator[bytes], limits: TarLimits | None = None) -> None:
        self._pieces = pieces
        self._limits = limits
        self._name_bytes = 0
        self._piece = memoryview(b"")
        self._body_left = 0
        self._seen: dict[str, bool] = {}
        self.size_bytes = 0

    def next_member(self) -> Member | None:
        """Return the next member. Read its body to the end before the next call.

        Returns:
            None after the end marker, if only zeros follow.

        Raises:
            ArchiveError: the tar is cut short or damaged, or the member is not a file or
                directory, has an unsafe name or one that has occurred, or no directory.
            LimitError: the member does not fit the limits.
        """
        assert self._body_left == 0
        header = self._exactly(BLOCK_SIZE_BYTES)
        if header == _ZERO_BLOCK:
            self._check_end()
            return None
        long_name = None
        if header[156:157] == _LONG_NAME_TYPE:
            long_name = self._long_name(_size(header))
            header = self._exactly(BLOCK_SIZE_BYTES)
        member = _parse(header, long_name)
        self._check_place(member)
        self._check_limits(member)
        self._body_left = member.size_bytes
        return member

    def body(self) -> Iterator[memoryview]:
        """The content of the last member, in pieces that are not changed later."""
        padding = -self._body_left % BLOCK_SIZE_BYTES
        while self._body_left:
            piece = self._some(self._body_left)
            self._body_left -= len(piece)
            yield piece
        self._exactly(padding)

    def _some(self, wanted: int) -> memoryview:
        while not self._piece:
            self._piece = memoryview(next(self._pieces, b""))
            if not self._piece:
                raise ArchiveError(f"the tar is cut short after {self.size_bytes} bytes")
        taken, self._piece = self._piece[:wanted], self._piece[wanted:]
        self.size_bytes += len(taken)
        return taken

    def _exactly(self, size_bytes: int) -> bytes:
        data = b""
        while len(data) < size_bytes:
            data += self._some(size_bytes - len(data))
        return data

    def _check_end(self) -> None:
        if self._exactly(BLOCK_SIZE_BYTES) != _ZERO_BLOCK:
            raise ArchiveError("the tar's end marker is damaged")
        padding_bytes = 0
        while True:
            padding_bytes += len(self._piece)
            self.size_bytes += len(self._piece)
            if any(self._piece):
                raise ArchiveError("the tar has bytes after its end marker")
            if padding_bytes > _MAX_PADDING_BYTES:
                raise ArchiveError(
                    f"the tar has more than {_MAX_PADDING_BYTES} bytes of zeros after its end"
                )
            piece = next(self._pieces, None)
            if piece is None:
                return
            self._piece = memoryview(piece)

    def _long_name(self, size_bytes: int) -> bytes:
        """A name over 100 bytes, which GNU tar puts into a member of its own."""
        if not 0 < size_bytes <= _MAX_NAME_BYTES:
            raise ArchiveError(f"a name in the tar has {size_bytes} bytes")
        name = self._exactly(size_bytes)
        self._exactly(-size_bytes % BLOCK_SIZE_BYTES)
        return name.removesuffix(b"\0")

    def _check_limits(self, member: Member) -> None:
        """Raise if the member, by its header, exceeds the limits."""
        if self._limits is None:
            return
        most, most_members = self._limits.max_size_bytes, self._limits.max_member_count
        size_bytes = self.size_bytes + member.size_bytes
        if size_bytes > most:
            raise LimitError(f"the tar has {size_bytes} bytes or more; {most} are allowed")
        if len(self._seen) > most_members:
            raise LimitError(f"the tar has more than {most_members} members, which are allowed")
        self._name_bytes += len(member.name)
        if self._name_bytes > most_members * _NAME_BYTES:
            raise LimitError(
                f"the names in the tar have more than {_NAME_BYTES} bytes for each of the "
                f"{most_members} members that are allowed"
            )

    def _check_place(self, member: Member) -> None:
        """Raise unless the name is new and its directory has occurred."""
        parent, _, _ = member.name.rpartition("/")
        if member.name in self._seen:
            raise ArchiveError(f"{printable(member.name)} is in the tar twice")
        if parent and not self._seen.get(parent):
            raise ArchiveError(f"{printable(member.name)} is in the tar before its directory")
        self._seen[member.name] = member.is_directory


def _parse(header: bytes, long_name: bytes | None) -> Member:
    """Check one header block (the fields of ustar in POSIX pax(1))."""
    if _number(header[148:156], "checksum") != _checksum(header):
        raise ArchiveError("the tar is damaged: the checksum of a header is wrong")
    kind = header[156:157]
    raw_name = long_name or header[:100].partition(b"\0")[0]
    if long_name is None and header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
        raw_name = prefix + b"/" + raw_name if prefix else raw_name
    if kind not in (*_REGULAR_TYPES, _DIRECTORY_TYPE):
        what = _KINDS.get(kind, f"of type {kind!r}")
        raise ArchiveError(
            f"{os.fsdecode(raw_name)!r} in the tar is {what}, not a file or directory"
        )
    is_directory = kind == _DIRECTORY_TYPE
    size_bytes = _size(header)
    if is_directory and size_bytes:
        raise ArchiveError(f"directory {os.fsdecode(raw_name)!r} in the tar has content")
    return Member(_checked_name(raw_name, is_directory=is_directory), is_directory, size_bytes)


def _checksum(header: bytes) -> int:
    """The sum of a header's bytes, with blanks in the place of the checksum.

    Adler-32 begins with such a sum, plus 1, modulo 65521 (RFC 1950): that of 256 bytes is less.
    It is made in C, in a tenth of the time of `sum`.
    """
    blanked = b"%b        %b" % (header[:148], header[156:])
    halves = zlib.adler32(blanked[:256]) & 0xFFFF, zlib.adler32(blanked[256:]) & 0xFFFF
    return sum(halves) - 2


def _checked_name(raw_name: bytes, *, is_directory: bool) -> str:
    """The name without a leading ``./`` and without a directory's trailing ``/``."""
    name = os.fsdecode(raw_name)
    relative = name.removesuffix("/") if is_directory else name
    relative = relative.removeprefix("./")
    parts = relative.split("/")
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ArchiveError(f"{name!r} in the tar is not a path inside the data directory")
    if len(parts) > MAX_PARTS:
        raise ArchiveError(f"a name in the tar has {len(parts)} parts, more than {MAX_PARTS}")
    return relative


def _size(header: bytes) -> int:
    return _number(header[124:136], "size")


def _number(field: bytes, what: str) -> int:
    """A field in octal, or as GNU tar has large ones: 0x80 and big-endian bytes."""
    if field[0] == 0x80:  # noqa: PLR2004 - the mark itself
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        raise ArchiveError(f"the tar is damaged: the {what} in a header is {field!r}")
    return int(digits, 8)
