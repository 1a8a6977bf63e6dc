"""The bytes of an archive: one sealed gzip member.

Layout, by RFC 1952: the ten fixed bytes of a gzip header with FLG.FEXTRA set,
one extra subfield ``BB`` that holds the seal, then the *body*: raw deflate, CRC-32
and ISIZE. Every gzip reader skips the seal; bbcache tells by it whether the file
is whole and belongs under its name. The header has a fixed size, so that the seal
can be patched in once the body is written.

Nothing here knows of files' names or of locks. Every function is thread-safe; an
`ArchiveWriter` belongs to one build.
"""

from __future__ import annotations

import io
import os
import struct
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from isal import isal_zlib
from xxhash import xxh3_64_digest, xxh3_128

from bbcache.archive.deflate import PIECE_SIZE_BYTES, ZEROS, Deflate
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
# The gzip header up to and including the subfield's own head, then the seal.
_HEAD: Final = struct.pack("<2sBBIBBH2sH", _MAGIC, 8, _FLG_FEXTRA, 0, 0, 255, 45, b"BB", 41)
_SEAL: Final = struct.Struct("<BQQ16s")
_CHECK_SIZE_BYTES: Final = 8
_TRAILER: Final = struct.Struct("<II")
_NOT_PATCHED: Final = b"\0" * (_SEAL.size + _CHECK_SIZE_BYTES)

HEAD_SIZE_BYTES: Final = 512  # of a tarball: a header of its first member
HEADER_SIZE_BYTES: Final = len(_HEAD) + len(_NOT_PATCHED)
_READ_SIZE_BYTES: Final = 1 << 18
# Writes that are compared with zeros one by one, and not only once they fill a piece.
_LEAST_COMPARED_BYTES: Final = 1 << 12
_MOST_COMPARED_BYTES: Final = 1 << 16
# Buffers of builds that have ended. Memory that a process has for the first time costs more
# than what is done with it here.
_SPARE_PIECES: Final[deque[io.BytesIO]] = deque(maxlen=4)


class Seal(NamedTuple):
    """What a header says of its archive.

    Attributes:
        body_bytes: size of all after the header.
        tar_bytes: size of the tarball.
        digest: xxh3-128 of the body.
    """

    body_bytes: int
    tar_bytes: int
    digest: bytes


def pack_header(seal: Seal, key: bytes, lsn: int) -> bytes:
    """The header of a finished archive, bound to its timeline and LSN."""
    head = _HEAD + _SEAL.pack(SEAL_VERSION, *seal)
    return head + _check(head, key, lsn)


def parse_header(header: bytes, key: bytes, lsn: int) -> Seal | None:
    """The seal in the first `HEADER_SIZE_BYTES` of a file.

    Returns:
        None for a gzip header without extra field, as Neon writes it.

    Raises:
        ArchiveError: no gzip header, or one with a seal that is broken, unknown
            or made for another timeline or LSN.
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
    """The seal of an open archive; the file's offset is neither used nor moved.

    Returns:
        None for an archive without seal.

    Raises:
        ArchiveError: as `parse_header`.
        OSError: the file cannot be read, which proves nothing.
    """
    header = b""
    while len(header) < HEADER_SIZE_BYTES:
        part = os.pread(fd, HEADER_SIZE_BYTES - len(header), len(header))
        if not part:
            break  # the file is shorter; a read that was cut short proves nothing
        header += part
    return parse_header(header, key, lsn)


def check_sealed(fd: int, size_bytes: int, seal: Seal, *, with_digest: bool) -> None:
    """Check an open archive of `size_bytes` against its seal.

    Args:
        fd: the open file; its offset is neither used nor moved.
        size_bytes: its size.
        seal: what its header says.
        with_digest: whether the body is read and compared too.

    Raises:
        ArchiveError: the bytes are bad.
        OSError: they cannot be read, which proves nothing.
    """
    sealed_bytes = HEADER_SIZE_BYTES + seal.body_bytes
    if sealed_bytes != size_bytes:
        raise ArchiveError(f"the file has {size_bytes} bytes, but its seal says {sealed_bytes}")
    if with_digest:
        hasher = xxh3_128()
        for piece in _pieces(fd, HEADER_SIZE_BYTES, PIECE_SIZE_BYTES):
            hasher.update(piece)
        if hasher.digest() != seal.digest:
            raise ArchiveError("the digest of the body is not the sealed one")


def check_plain(fd: int, size_bytes: int) -> None:
    """Decompress an open file once: one whole gzip member, and nothing behind it.

    Raises:
        ArchiveError: the bytes are bad.
        OSError: they cannot be read, which proves nothing.
    """
    stream = isal_zlib.decompressobj(_GZIP)
    read_bytes = 0
    try:
        for piece in _pieces(fd, 0, _READ_SIZE_BYTES):
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


def _pieces(fd: int, offset: int, piece_size_bytes: int) -> Iterator[bytes]:
    while piece := os.pread(fd, piece_size_bytes, offset):
        yield piece
        offset += len(piece)


class ArchiveWriter(io.BufferedIOBase):
    """The writer that a host's `send_basebackup_tarball` is given.

    Gathers small writes and passes big ones through uncopied, so that the compressor always
    gets whole pieces. Of zeros at the start of a piece only the number is kept. What it is
    given is copied or compressed before `write` returns. `flush` and `close` of the host are
    ignored: only `finish` or `abort` end the archive. Writes of several threads go one by one;
    the rest belongs to one thread, but for `cancel`.

    Args:
        emit: takes the bytes of the file in order, header first; may raise to end
            the build.
        level: ISA-L level, 0 to 3.
        check_head: called once, with the first `HEAD_SIZE_BYTES` bytes, or all where they are
            fewer, before any of them is compressed; what it raises ends the archive.

    Attributes:
        failure: what a write, or the end, has raised. The build has failed then, even where the
            host swallows the error and returns.
    """

    def __init__(
        self,
        emit: Callable[[bytes], None],
        level: int,
        check_head: Callable[[bytes], None] | None = None,
    ) -> None:
        super().__init__()
        self.failure: BaseException | None = None
        self._emit = emit
        self._check_head = check_head
        self._deflate = Deflate(self._put, level)
        self._hasher = xxh3_128()
        self._body_bytes = 0
        self._has_ended = False
        # Held while output is written, too: it is wanted by one build only.
        self._one_at_a_time = threading.Lock()  # guards all that follows
        self._piece = _spare_piece()  # what is held, unless that is zeros
        self._held_bytes = 0  # less than a piece
        self._holds_zeros = True
        self._head = None if check_head is None else bytearray()  # None once it is checked
        self._like_last = bytearray()  # zeros, as many as were compared last
        emit(_HEAD + _NOT_PATCHED)

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Take over a copy of the bytes; see `bbcache.host.TarballWriter`."""
        with self._one_at_a_time:
            if self._has_ended:
                raise ValueError("the archive has ended")
            if self.failure is not None:
                raise self.failure
            try:
                # Most writes of many a basebackup are zeros, and as long as the last. They are
                # told here, without a call; == would also take an object that claims to be equal.
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
        """Do nothing: bytes go on when a piece is full or the archive is finished."""

    def close(self) -> None:
        """Do nothing: a host cannot end an archive early."""

    def cancel(self, failure: BaseException) -> None:
        """Make every further write raise `failure`; callable from any thread."""
        self.failure = failure

    def finish(self) -> Seal:
        """Write what is left and end the gzip member; writes raise ValueError then.

        Returns:
            The seal, for `pack_header` to patch in at offset 0.

        Raises:
            ArchiveError: nothing was written.
            BaseException: whatever an earlier write or this one has raised.
        """
        with self._one_at_a_time:  # after a write that is under way
            had_ended, self._has_ended = self._has_ended, True
        if self.failure is not None:
            raise self.failure
        try:
            if had_ended:
                raise ValueError("the archive has ended")  # noqa: TRY301 - kept like a failure of now
            return self._end()
        except BaseException as error:
            self.failure = error
            raise

    def abort(self) -> None:
        """Give up the archive: later writes raise ValueError. Harmless when finished.

        Returns when no write is under way: what that emits belongs to a build still.
        """
        with self._one_at_a_time:
            self._has_ended = True

    def _take(self, data: Buffer) -> int:
        if self._head is not None:
            self._look_at_head(data)
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

    def _look_at_head(self, data: Buffer) -> None:
        assert self._head is not None
        with _view_of(data) as view:
            self._head += view[: HEAD_SIZE_BYTES - len(self._head)]
        if len(self._head) == HEAD_SIZE_BYTES:
            self._end_head()

    def _end_head(self) -> None:
        if self._head and self._check_head is not None:
            self._check_head(bytes(self._head))
        self._head = None

    def _hold(self, data: Buffer, size_bytes: int) -> None:
        """Keep what does not fill the piece."""
        if self._holds_zeros and not self._are_zeros(data, size_bytes):
            self._holds_zeros = False
            self._piece.seek(0)
            self._piece.write(ZEROS[: self._held_bytes])
        if not self._holds_zeros:
            self._piece.write(data)
        self._held_bytes += size_bytes

    def _are_zeros(self, data: Buffer, size_bytes: int) -> bool:
        """Whether they are; what is not worth the question is none."""
        if len(self._like_last) != size_bytes:
            if not _LEAST_COMPARED_BYTES <= size_bytes <= _MOST_COMPARED_BYTES:
                return False
            self._like_last = bytearray(size_bytes)
        return self._like_last == data

    def _take_across(self, view: memoryview) -> None:
        """Fill the piece that is held, go on with those that need no copy, and hold the rest."""
        start = 0
        if self._held_bytes:
            start = PIECE_SIZE_BYTES - self._held_bytes
            self._hold(view[:start], start)
            self._add_held()
        while len(view) - start >= PIECE_SIZE_BYTES:
            self._deflate.add(view[start : start + PIECE_SIZE_BYTES])
            start += PIECE_SIZE_BYTES
        if start < len(view):
            self._hold(view[start:], len(view) - start)

    def _add_held(self) -> None:
        if self._holds_zeros and self._held_bytes == PIECE_SIZE_BYTES:
            self._deflate.add_zeros()
        elif self._holds_zeros:
            self._deflate.add(ZEROS[: self._held_bytes])
        else:
            with self._piece.getbuffer() as buffer, buffer[: self._held_bytes] as piece:
                self._deflate.add(piece)
        self._held_bytes = 0
        self._holds_zeros = True

    def _end(self) -> Seal:
        self._end_head()
        if self._held_bytes:
            self._add_held()
        deflate = self._deflate
        if deflate.size_bytes == 0:
            raise ArchiveError("the host wrote an empty basebackup")
        rest = deflate.finish()
        self._put(rest + _TRAILER.pack(deflate.crc, deflate.size_bytes & 0xFFFFFFFF))
        _SPARE_PIECES.append(self._piece)  # no write is under way, and none will be
        return Seal(self._body_bytes, deflate.size_bytes, self._hasher.digest())

    def _put(self, output: bytes) -> None:
        if output:
            self._hasher.update(output)
            self._body_bytes += len(output)
            self._emit(output)


def _view_of(data: Buffer) -> memoryview:
    """The bytes of a buffer, copied only where its items are none that Python has."""
    view = memoryview(data)
    return view.cast("B") if len(view.format) == 1 else memoryview(view.tobytes())


def _spare_piece() -> io.BytesIO:
    try:
        return _SPARE_PIECES.pop()
    except IndexError:
        return io.BytesIO()
