"""Writing one archive: gather the writes of a host, compress them, and compute the seal.

The header is written without its seal, which `bbcache.archive.format.pack_header` makes when
the body is complete. An `ArchiveWriter` belongs to one build.
"""

from __future__ import annotations

import io
import struct
import threading
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_128

from bbcache.archive.deflate import PIECE_SIZE_BYTES, ZEROS, Deflate
from bbcache.archive.format import HEADER_WITHOUT_SEAL, Seal
from bbcache.archive.tar_head import BLOCK_SIZE_BYTES
from bbcache.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

_TRAILER: Final = struct.Struct("<II")
# Sizes of writes that are compared with zeros one by one, before they fill a piece.
_LEAST_COMPARED_BYTES: Final = 1 << 12
_MOST_COMPARED_BYTES: Final = 1 << 16


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
        emit(HEADER_WITHOUT_SEAL)

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
