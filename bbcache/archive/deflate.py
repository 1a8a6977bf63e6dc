"""Raw deflate of a tarball, for which zeros cost little more than being read.

A basebackup without relations is nearly all one WAL segment, and that nearly all zeros.
A whole piece of them is told by one comparison, and stands in the stream as one block
that was compressed once a process. Its CRC-32 is combined, not computed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from isal import isal_zlib

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

PIECE_SIZE_BYTES: Final = 1 << 20  # what the compressor is fed: measured best for ISA-L
# A bytearray compares itself with any buffer by memcmp; a memoryview does so item by item.
ZEROS: Final = bytearray(PIECE_SIZE_BYTES)  # never written to

_RAW_DEFLATE: Final = -15
_LEVEL_OF_ZEROS: Final = 2  # the smallest of all levels for zeros
_MOST_ZERO_PIECES: Final = 64  # put at once, as some 64 KiB


class Deflate:
    """One raw deflate stream, given in whole pieces. For one thread at a time.

    Pieces of one size, whatever the sizes of a host's writes: the same tarball gives the
    same stream.

    Args:
        put: takes the stream in order.
        level: ISA-L level, 0 to 3.

    Attributes:
        crc: CRC-32 of what was added.
        size_bytes: its size.
    """

    def __init__(self, put: Callable[[bytes], None], level: int) -> None:
        self.crc = 0
        self.size_bytes = 0
        self._put = put
        self._deflate = isal_zlib.compressobj(level, isal_zlib.DEFLATED, _RAW_DEFLATE)
        self._is_at_start = True  # the compressor stands at a whole byte, and refers to nothing
        self._zero_pieces = 0  # added, but not put

    def add(self, piece: Buffer) -> None:
        """Add a piece of `PIECE_SIZE_BYTES`, or the last one, which may be smaller."""
        if ZEROS == piece:  # noqa: SIM300 - turned round it may be a memoryview's comparison
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
        self.crc = isal_zlib.crc32_combine(self.crc, _zeros().crc, PIECE_SIZE_BYTES)
        self.size_bytes += PIECE_SIZE_BYTES
        if self._zero_pieces == _MOST_ZERO_PIECES:
            self._put_zeros()

    def finish(self) -> bytes:
        """End the stream; returns what is left to be put."""
        self._put_zeros()
        return self._deflate.flush()

    def _put_zeros(self) -> None:
        if self._zero_pieces:
            count, self._zero_pieces = self._zero_pieces, 0
            self._put(_zeros().block * count)


class _Zeros:
    """A piece of zeros as deflate has it: whole bytes that refer to nothing before them."""

    def __init__(self) -> None:
        deflate = isal_zlib.compressobj(_LEVEL_OF_ZEROS, isal_zlib.DEFLATED, _RAW_DEFLATE)
        self.block = deflate.compress(ZEROS) + deflate.flush(isal_zlib.Z_FULL_FLUSH)
        self.crc = isal_zlib.crc32(ZEROS)


_zeros = functools.cache(_Zeros)
