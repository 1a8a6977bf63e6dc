"""Raw deflate of a tarball, in which zeros cost little more than reading them.

A basebackup without relations is nearly all one WAL segment, most of it zeros. One comparison
finds a whole piece of zeros. Its compressed form is made once per process, and its CRC-32 is
combined, not computed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from isal import isal_zlib

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

PIECE_SIZE_BYTES: Final = 1 << 20  # input of the compressor: measured best for ISA-L
# A bytearray, since it compares itself with any buffer by memcmp; a memoryview compares items.
ZEROS: Final = bytearray(PIECE_SIZE_BYTES)  # never written to

_RAW_DEFLATE: Final = -15
_LEVEL_OF_ZEROS: Final = 2  # gives the smallest output for zeros
_MOST_ZERO_PIECES: Final = 64  # written at once, as some 64 KiB


class Deflate:
    """One raw deflate stream. For one thread at a time.

    The caller adds pieces of one size whatever the sizes of the host's writes, so the same
    tarball gives the same stream.

    Args:
        put: takes the stream in order.
        level: ISA-L level, 0 to 3.

    Attributes:
        crc: CRC-32 of the bytes added so far.
        size_bytes: their number.
    """

    def __init__(self, put: Callable[[bytes], None], level: int) -> None:
        self.crc = 0
        self.size_bytes = 0
        self._put = put
        self._deflate = isal_zlib.compressobj(level, isal_zlib.DEFLATED, _RAW_DEFLATE)
        self._is_at_start = True  # the output is at a whole byte, and refers to nothing before
        self._zero_pieces = 0  # added, but not yet put

    def add(self, piece: Buffer) -> None:
        """Add a piece of `PIECE_SIZE_BYTES`, or the last one, which may be smaller."""
        if ZEROS == piece:  # noqa: SIM300 - the other way round a memoryview would compare
            self.add_zeros()
            return
        self._put_zeros()
        self._is_at_start = False
        self._put(self._deflate.compress(piece))
        self.crc = isal_zlib.crc32(piece, self.crc)
        self.size_bytes += memoryview(piece).nbytes

    def add_zeros(self) -> None:
        """Add a whole piece of zeros."""
        if not self._is_at_start:
            self._put(self._deflate.flush(isal_zlib.Z_FULL_FLUSH))
            self._is_at_start = True
        self._zero_pieces += 1
        self.crc = isal_zlib.crc32_combine(self.crc, _zeros()[1], PIECE_SIZE_BYTES)
        self.size_bytes += PIECE_SIZE_BYTES
        if self._zero_pieces == _MOST_ZERO_PIECES:
            self._put_zeros()

    def finish(self) -> bytes:
        """End the stream; returns the rest of it."""
        self._put_zeros()
        return self._deflate.flush()

    def _put_zeros(self) -> None:
        if self._zero_pieces:
            count, self._zero_pieces = self._zero_pieces, 0
            self._put(_zeros()[0] * count)


@functools.cache
def _zeros() -> tuple[bytes, int]:
    """A compressed piece of zeros, as whole bytes that refer to nothing before; its CRC-32."""
    deflate = isal_zlib.compressobj(_LEVEL_OF_ZEROS, isal_zlib.DEFLATED, _RAW_DEFLATE)
    block = deflate.compress(ZEROS) + deflate.flush(isal_zlib.Z_FULL_FLUSH)
    return block, isal_zlib.crc32(ZEROS)
