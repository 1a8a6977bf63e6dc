"""The bytes of an archive: one sealed gzip member.

Layout, by RFC 1952: the ten fixed bytes of a gzip header with FLG.FEXTRA set, one extra
subfield ``BB`` with the seal, then the *body*: raw deflate, CRC-32 and ISIZE. Every gzip reader
skips the seal. By the seal bbcache finds out whether a file is complete and has its own name.
The header has a fixed size, so the seal can be patched in after the body is written.

Every function is thread-safe.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from isal import isal_zlib
from xxhash import xxh3_64_digest, xxh3_128

from bbcache.archive.deflate import PIECE_SIZE_BYTES
from bbcache.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator

SEAL_VERSION: Final = 1

_MAGIC: Final = b"\x1f\x8b"
_FLG_FEXTRA: Final = 0x04
_FLG_RESERVED: Final = 0xE0
_FLG_OFFSET: Final = 3
_GZIP: Final = 31
# The gzip header up to the head of the subfield, which the seal follows.
_HEAD: Final = struct.pack("<2sBBIBBH2sH", _MAGIC, 8, _FLG_FEXTRA, 0, 0, 255, 45, b"BB", 41)
_SEAL: Final = struct.Struct("<BQQ16s")
_CHECK_SIZE_BYTES: Final = 8

HEADER_WITHOUT_SEAL: Final = _HEAD + b"\0" * (_SEAL.size + _CHECK_SIZE_BYTES)
HEADER_SIZE_BYTES: Final = len(HEADER_WITHOUT_SEAL)


class Seal(NamedTuple):
    """The facts about an archive in its header.

    Attributes:
        body_bytes: size of everything after the header.
        tar_bytes: size of the tarball.
        digest: xxh3-128 of the body.
    """

    body_bytes: int
    tar_bytes: int
    digest: bytes


def pack_header(seal: Seal, key: bytes, lsn: int) -> bytes:
    """Make the header of a finished archive, bound to its timeline and LSN."""
    head = _HEAD + _SEAL.pack(SEAL_VERSION, *seal)
    return head + _check(head, key, lsn)


def parse_header(header: bytes, key: bytes, lsn: int) -> Seal | None:
    """Read the seal in the first `HEADER_SIZE_BYTES` of a file.

    Returns:
        None for a gzip header without extra field, as Neon writes it.

    Raises:
        ArchiveError: there is no gzip header; or the seal is broken, of an unknown version, or
            of another timeline or LSN.
    """
    if header[:2] != _MAGIC or len(header) <= _FLG_OFFSET:
        raise ArchiveError("the file does not begin with a gzip header")
    if header[_FLG_OFFSET] & _FLG_RESERVED:
        raise ArchiveError("the gzip header has flags that must not be set")
    if not header[_FLG_OFFSET] & _FLG_FEXTRA:
        return None
    head, check = header[:-_CHECK_SIZE_BYTES], header[-_CHECK_SIZE_BYTES:]
    if len(header) != HEADER_SIZE_BYTES or check != _check(head, key, lsn):
        raise ArchiveError("the seal is broken, or made for another timeline or LSN")
    version, *fields = _SEAL.unpack_from(head, len(_HEAD))
    if version != SEAL_VERSION or not head.startswith(_HEAD):
        raise ArchiveError(f"the seal has version {version}, but {SEAL_VERSION} is known here")
    return Seal(*fields)


def _check(head: bytes, key: bytes, lsn: int) -> bytes:
    return xxh3_64_digest(head + key + lsn.to_bytes(8, "little"))


def read_seal(fd: int, key: bytes, lsn: int) -> Seal | None:
    """Read the seal of an open archive, without use of the file's offset.

    Returns:
        None for an archive without seal.

    Raises:
        ArchiveError: as `parse_header`.
        OSError: the file cannot be read; it may be good.
    """
    header = b""
    while len(header) < HEADER_SIZE_BYTES:  # a read may return less than it was asked for
        part = os.pread(fd, HEADER_SIZE_BYTES - len(header), len(header))
        if not part:
            break
        header += part
    return parse_header(header, key, lsn)


def check_sealed(fd: int, size_bytes: int, seal: Seal, *, with_digest: bool) -> None:
    """Check an open archive against its seal, without use of the file's offset.

    Args:
        fd: the open file.
        size_bytes: its size.
        seal: the seal in its header.
        with_digest: whether to read the body and compare its digest.

    Raises:
        ArchiveError: the archive is bad.
        OSError: it cannot be read; it may be good.
    """
    sealed_bytes = HEADER_SIZE_BYTES + seal.body_bytes
    if sealed_bytes != size_bytes:
        raise ArchiveError(f"the file has {size_bytes} bytes, but its seal says {sealed_bytes}")
    if with_digest:
        hasher = xxh3_128()
        for piece in _pieces(fd, HEADER_SIZE_BYTES):
            hasher.update(piece)
        if hasher.digest() != seal.digest:
            raise ArchiveError("the digest of the body is not the sealed one")


def check_plain(fd: int, size_bytes: int) -> None:
    """Check that an open file is one complete gzip member, by decompressing it.

    Raises:
        ArchiveError: it is not, or there are bytes behind the member.
        OSError: it cannot be read; it may be good.
    """
    stream = isal_zlib.decompressobj(_GZIP)
    read_bytes = 0
    try:
        for piece in _pieces(fd, 0):
            if stream.eof:
                raise ArchiveError("there are bytes behind the gzip member")
            read_bytes += len(piece)
            stream.decompress(piece, PIECE_SIZE_BYTES)
            while stream.unconsumed_tail and not stream.eof:
                stream.decompress(stream.unconsumed_tail, PIECE_SIZE_BYTES)
    except isal_zlib.error as error:  # type: ignore[misc]  # the stub says instance
        raise ArchiveError(f"the gzip stream is broken: {error}") from error
    if not stream.eof:
        raise ArchiveError(f"the gzip stream is cut after {read_bytes} bytes")
    if stream.unused_data or read_bytes != size_bytes:
        raise ArchiveError("there are bytes behind the gzip member")


def _pieces(fd: int, offset: int) -> Iterator[bytes]:
    while piece := os.pread(fd, PIECE_SIZE_BYTES, offset):
        yield piece
        offset += len(piece)
