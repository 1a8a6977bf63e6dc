"""Bytes of archives that are handed out without being published, and their limit.

No I/O. Giving room back takes no lock and is safe at any moment, since a file may be
closed by the garbage collector in the middle of whatever its thread is doing.
"""

from __future__ import annotations

import threading

from bbcache.errors import CacheFullError


class UnpublishedArchive:
    """The room of one such archive; accounted for until nobody holds it. Thread-safe.

    Attributes:
        size_bytes: bytes written, or about to be.
    """

    def __init__(self, unpublished: UnpublishedBytes) -> None:
        self.size_bytes = 0
        self._unpublished = unpublished
        self._holders: set[object] = set()

    @property
    def is_held(self) -> bool:
        """Whether anybody keeps the bytes on the disk; one read of memory."""
        return bool(self._holders)

    def hold(self, holder: object) -> None:
        """`holder`, which is hashed by identity, keeps the bytes on the disk."""
        self._holders.add(holder)

    def let_go(self, holder: object) -> None:
        """`holder` does so no longer; harmless twice."""
        self._holders.discard(holder)
        if not self._holders:
            self._unpublished.forget(self)


class UnpublishedBytes:
    """All archives of one cache that are not published. Thread-safe and re-entrant.

    Args:
        max_size_bytes: what they may take together, built and read ones alike.
    """

    def __init__(self, max_size_bytes: int) -> None:
        self._growing = threading.RLock()  # one at a time takes room; to give back needs no lock
        self._max_size_bytes = max_size_bytes
        self._held: set[UnpublishedArchive] = set()  # changed by single steps only

    @property
    def size_bytes(self) -> int:
        """What all of them take now."""
        return sum(
            archive_bytes.size_bytes for archive_bytes in list(self._held) if archive_bytes.is_held
        )

    def open(self, holder: object) -> UnpublishedArchive:
        """Room for one archive, of no bytes yet, kept by `holder`."""
        archive_bytes = UnpublishedArchive(self)
        archive_bytes.hold(holder)
        self._held.add(archive_bytes)
        return archive_bytes

    def grow(self, archive_bytes: UnpublishedArchive, size_bytes: int) -> None:
        """Take `size_bytes` more, before they are written.

        Raises:
            CacheFullError: that would pass the limit.
        """
        with self._growing:
            held_bytes = self.size_bytes
            if held_bytes + size_bytes > self._max_size_bytes:
                raise CacheFullError(
                    f"archives that are not published have no room: {held_bytes} + {size_bytes} "
                    f"bytes exceed max_unpublished_size_bytes {self._max_size_bytes}\n"
                    "hint: Raise that limit, or close archives sooner."
                )
            archive_bytes.size_bytes += size_bytes

    def forget(self, archive_bytes: UnpublishedArchive) -> None:
        """Nobody holds it any more."""
        self._held.discard(archive_bytes)
