"""The gzip compressors that are compared, each on a whole input in memory."""

from __future__ import annotations

import gzip
import io
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from isal import igzip, igzip_threaded, isal_zlib

from benchmarks.peers import require_package

if TYPE_CHECKING:
    from collections.abc import Callable

_GZIP: Final = 31  # window bits that ask for a gzip header and trailer
_THREADS: Final = 2
_BLOCK_SIZE_BYTES: Final = 1 << 20


class Codec(NamedTuple):
    """One compressor at one level.

    Attributes:
        library: its name in the tables.
        level: its level, in its own range.
        compressor: returns the function that compresses bytes to one whole gzip member,
            CRC-32 included; raises PeerMissingError where the library is missing.
    """

    library: str
    level: int
    compressor: Callable[[int], Callable[[bytes], bytes]]

    @property
    def name(self) -> str:
        """Library and level."""
        return f"{self.library} {self.level}"

    def load(self) -> Callable[[bytes], bytes]:
        """Return the function that compresses at this level."""
        return self.compressor(self.level)


def decompress(archive: bytes) -> bytes:
    """Return the content of one gzip member, by ISA-L as a restore does; check its CRC-32."""
    return isal_zlib.decompress(archive, _GZIP)


def _isal(level: int) -> Callable[[bytes], bytes]:
    return lambda data: igzip.compress(data, level, mtime=0)


def _isal_threaded(level: int) -> Callable[[bytes], bytes]:
    open_threaded: Callable[..., IO[bytes]] = igzip_threaded.open

    def compress(data: bytes) -> bytes:
        output = io.BytesIO()
        settings = {"compresslevel": level, "threads": _THREADS, "block_size": _BLOCK_SIZE_BYTES}
        with open_threaded(output, "wb", **settings) as file:
            file.write(data)
        return output.getvalue()

    return compress


def _zlib(level: int) -> Callable[[bytes], bytes]:
    return lambda data: gzip.compress(data, level, mtime=0)


def _zlib_ng(level: int) -> Callable[[bytes], bytes]:
    gzip_ng = require_package("zlib_ng.gzip_ng", "zlib-ng")
    return lambda data: bytes(gzip_ng.compress(data, level, mtime=0))


def _flate2(level: int) -> Callable[[bytes], bytes]:
    cramjam = require_package("cramjam", "cramjam")
    return lambda data: bytes(cramjam.gzip.compress(data, level))


def _libdeflate(level: int) -> Callable[[bytes], bytes]:
    deflate = require_package("deflate", "deflate")
    return lambda data: bytes(deflate.gzip_compress(data, level))


REFERENCE: Final = Codec("ISA-L", 2, _isal)

CODECS: Final = (
    *(Codec("ISA-L", level, _isal) for level in (0, 1)),
    REFERENCE,
    Codec("ISA-L", 3, _isal),
    *(Codec("ISA-L threaded", level, _isal_threaded) for level in (1, 3)),
    *(Codec("zlib", level, _zlib) for level in (1, 6, 9)),
    *(Codec("zlib-ng", level, _zlib_ng) for level in (1, 6, 9)),
    *(Codec("flate2", level, _flate2) for level in (1, 6, 9)),
    *(Codec("libdeflate", level, _libdeflate) for level in (1, 6, 12)),
)


def codec(name: str) -> Codec:
    """Return the codec of this name, such as ``zlib-ng 6``.

    Raises:
        LookupError: there is none.
    """
    for each in CODECS:
        if each.name == name:
            return each
    raise LookupError(f"no codec is called {name}")
