"""The bytes of an archive: one sealed gzip member.

Layout, by RFC 1952: the ten fixed bytes of a gzip header with FLG.FEXTRA set, one extra
subfield ``BB`` with the seal, then the *body*: raw deflate, CRC-32 and ISIZE. Every gzip reader
skips the seal. By the seal bbcache finds out whether a file is complete and has its own name.
The header has a fixed size, so the seal can be patched in after the body is written.

Every function is thread-safe. An `ArchiveWriter` belongs to one build.
"""

from __future__ import annotations

import io
import os
import struct
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from isal import isal_zlib
from xxhash import xxh3_64_digest, xxh3_128

from bbcache.archive.deflate import PIECE_SIZE_BYTES, ZEROS, Deflate
from bbcache.archive.tar_head import BLOCK_SIZE_BYTES
from bbcache.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Buffer

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
_TRAILER: Final = struct.Struct("<II")
_NOT_PATCHED: Final = b"\0" * (_SEAL.size + _CHECK_SIZE_BYTES)

HEADER_SIZE_BYTES: Final = len(_HEAD) + len(_NOT_PATCHED)
# Sizes of writes that are compared with zeros one by one, before they fill a piece.
_LEAST_COMPARED_BYTES: Final = 1 << 12
_MOST_COMPARED_BYTES: Final = 1 << 16


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


class ArchiveWriter(io.BufferedIOBase):
    """The writer that a host's `send_basebackup_tarball` is given.

    It gathers small writes, and passes big ones through without a copy, so the compressor gets
    whole pieces. Of zeros at the start of a piece it keeps only the number. It has copied or
    compressed the data when `write` returns. The host's `flush` and `close` are ignored. Writes
    of several threads take turns. Any thread may call `cancel`; the rest is for one thread.

    Args:
        emit: takes the bytes of the file in order, header first. An error ends the build.
        level: ISA-L level, 0 to 3.
        check_head: called once with the first `BLOCK_SIZE_BYTES` of the tarball, or all of it
            if that is shorter, before anything is compressed. An error ends the build.

    Attributes:
        failure: the error of a write or of `finish`. The build has failed then, even if the
            host ignores the error.
    """

    def __init__(
        self,
        emit: Callable[[bytes], None],
        level: int,
        check_head: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.failure: BaseException | None = None
        self._emit = emit
        self._check_head = check_head
        self._deflate = Deflate(self._put, level)
        self._hasher = xxh3_128()
        self._body_bytes = 0
        # Held during output, too, since only the threads of one build take it.
        self._one_at_a_time = threading.Lock()  # guards all that follows
        self._has_ended = False
        self._piece = io.BytesIO()
        self._held_bytes = 0  # less than a piece; in _piece, unless they are zeros
        self._holds_zeros = True
        self._like_last = bytearray()  # as many zeros as the last write that was compared
        emit(_HEAD + _NOT_PATCHED)

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Take over a copy of the bytes; see `bbcache.host.TarballWriter`."""
        with self._one_at_a_time:
            if self._has_ended:
                raise ValueError("the archive has ended")
            if self.failure is not None:
                raise self.failure
            try:
                # In many basebackups most writes are zeros, as long as the last write. These
                # need no further call. `==` would accept any object that claims to be equal.
                like = self._like_last
                if self._holds_zeros and like.__eq__(data) is True:
                    held_bytes = self._held_bytes + len(like)
                    if held_bytes < PIECE_SIZE_BYTES:
                        self._held_bytes = held_bytes
                        return len(like)
                return self._take(data)
            except BaseException as error:
                self.failure = error
                raise

    def flush(self) -> None:
        """Do nothing: a piece is written when it is full or the archive ends."""

    def close(self) -> None:
        """Do nothing: a host cannot end an archive."""

    def cancel(self, failure: BaseException) -> None:
        """Make every further write raise `failure`; callable from any thread."""
        self.failure = failure

    def finish(self) -> Seal:
        """Write the rest and end the gzip member. Later writes raise ValueError.

        Returns:
            The seal, for `pack_header`.

        Raises:
            ArchiveError: nothing was written.
            ValueError: the archive has ended before.
            BaseException: an earlier write, or this one, has raised it.
        """
        with self._one_at_a_time:
            had_ended, self._has_ended = self._has_ended, True
            if self.failure is not None:
                raise self.failure
            try:
                if had_ended:
                    raise ValueError("the archive has ended")  # noqa: TRY301 - it fails the build
                return self._end()
            except BaseException as error:
                self.failure = error
                raise

    def abort(self) -> None:
        """Give up the archive: later writes raise ValueError. Harmless when finished.

        It waits for a write under way, because the bytes of that write belong to the build.
        """
        with self._one_at_a_time:
            self._has_ended = True

    def _take(self, data: Buffer) -> int:
        if type(data) is bytes:
            size_bytes = len(data)
        else:
            size_bytes = (data if type(data) is memoryview else memoryview(data)).nbytes
        if self._held_bytes + size_bytes < PIECE_SIZE_BYTES:
            self._hold(data, size_bytes)
        else:
            with _view_of(data) as view:
                self._take_across(view)
        return size_bytes

    def _hold(self, data: Buffer, size_bytes: int) -> None:
        """Keep data that does not fill the piece."""
        if self._holds_zeros and not self._are_zeros(data, size_bytes):
            self._holds_zeros = False
            self._piece.seek(0)
            self._piece.write(ZEROS[: self._held_bytes])
        if not self._holds_zeros:
            self._piece.write(data)
        self._held_bytes += size_bytes

    def _are_zeros(self, data: Buffer, size_bytes: int) -> bool:
        """Whether the data is zeros; False if its size makes the comparison not worth it."""
        if len(self._like_last) != size_bytes:
            if not _LEAST_COMPARED_BYTES <= size_bytes <= _MOST_COMPARED_BYTES:
                return False
            self._like_last = bytearray(size_bytes)
        return self._like_last == data

    def _take_across(self, view: memoryview) -> None:
        """Fill the piece with the data, add the whole pieces that follow, and hold the rest."""
        start = 0
        if self._held_bytes:
            start = PIECE_SIZE_BYTES - self._held_bytes
            self._hold(view[:start], start)
            self._add_held()
        while len(view) - start >= PIECE_SIZE_BYTES:
            self._add(view[start : start + PIECE_SIZE_BYTES])
            start += PIECE_SIZE_BYTES
        if start < len(view):
            self._hold(view[start:], len(view) - start)

    def _add_held(self) -> None:
        if not self._holds_zeros:
            with self._piece.getbuffer() as buffer, buffer[: self._held_bytes] as piece:
                self._add(piece)
        elif self._held_bytes == PIECE_SIZE_BYTES and self._deflate.size_bytes:
            self._deflate.add_zeros()  # without a comparison
        else:
            self._add(ZEROS[: self._held_bytes])
        self._held_bytes = 0
        self._holds_zeros = True

    def _add(self, piece: Buffer) -> None:
        if self._deflate.size_bytes == 0:
            self._check_head(bytes(memoryview(piece)[:BLOCK_SIZE_BYTES]))
        self._deflate.add(piece)

    def _end(self) -> Seal:
        if self._held_bytes:
            self._add_held()
        deflate = self._deflate
        if deflate.size_bytes == 0:
            raise ArchiveError("the host wrote an empty basebackup")
        rest = deflate.finish()
        self._put(rest + _TRAILER.pack(deflate.crc, deflate.size_bytes & 0xFFFFFFFF))
        return Seal(self._body_bytes, deflate.size_bytes, self._hasher.digest())

    def _put(self, output: bytes) -> None:
        if output:
            self._hasher.update(output)
            self._body_bytes += len(output)
            self._emit(output)


def _view_of(data: Buffer) -> memoryview:
    """The bytes of a buffer; copied only if its items have a format that Python lacks."""
    view = memoryview(data)
    return view.cast("B") if len(view.format) == 1 else memoryview(view.tobytes())
