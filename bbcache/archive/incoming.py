"""Checking an archive while its bytes arrive from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xxhash import xxh3_128

from bbcache.archive.format import HEADER_SIZE_BYTES, parse_header
from bbcache.errors import ArchiveError

if TYPE_CHECKING:
    from bbcache.archive.format import Seal


class IncomingArchive:
    """Compares the bytes of one archive with their seal. For one thread.

    Args:
        key: tenant and timeline ids that the seal must have, 32 bytes.
        lsn: the LSN that it must have.
    """

    def __init__(self, key: bytes, lsn: int) -> None:
        self._key = key
        self._lsn = lsn
        self._header = b""
        self._body_bytes = 0
        self._hasher = xxh3_128()

    def add(self, data: bytes) -> None:
        """Take the next bytes."""
        missing = HEADER_SIZE_BYTES - len(self._header)
        if missing:
            self._header += data[:missing]
            data = data[missing:]
        self._hasher.update(data)
        self._body_bytes += len(data)

    def finish(self) -> Seal:
        """The seal, once all bytes have arrived.

        Raises:
            ArchiveError: the archive has no seal, that of another timeline or LSN, or other bytes.
        """
        seal = parse_header(self._header, self._key, self._lsn)
        if seal is None:
            raise ArchiveError("the archive has no seal")
        if seal.body_bytes != self._body_bytes:
            raise ArchiveError(
                f"the body has {self._body_bytes} bytes, but its seal says {seal.body_bytes}"
            )
        if seal.digest != self._hasher.digest():
            raise ArchiveError("the digest of the body is not the sealed one")
        return seal
