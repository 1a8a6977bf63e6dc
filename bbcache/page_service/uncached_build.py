"""Building an archive for one client alone, beside the cache."""

from __future__ import annotations

import io
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bbcache.archive.format import pack_header
from bbcache.archive.tar_head import check_tar_head
from bbcache.archive.writer import ArchiveWriter
from bbcache.errors import CacheFullError
from bbcache.host import Buffer, Timeline
from bbcache.ids import Lsn, TenantId
from bbcache.storage.index import make_key

_LEVEL: Final = 2
_MOST: Final = 2  # archives at once; the next ones wait
_SLICE_S: Final = 0.2
SENDING_S: Final = 30.0  # of sending, before another tenant may take the place of an archive
FAIR_RATE: Final = 1 << 20  # bytes a second; below it a tenant's only archive may lose its place


@dataclass(eq=False, slots=True)
class Place:
    """A place of a builder, and the archive that has it.

    Attributes:
        tenant_id: the tenant that it counts for.
        size_bytes: the size of the archive.
        sent_bytes: how much the client was sent.
        built_at_s: when the archive was complete; infinite before.
    """

    tenant_id: TenantId
    size_bytes: int = 0
    sent_bytes: int = 0
    built_at_s: float = math.inf


class UncachedFile(io.FileIO):
    """An archive without a name, which has a place of its builder until it is closed.

    Attributes:
        place: its place.
    """

    def __init__(self, fd: int, builder: UncachedBuilder, place: Place) -> None:
        super().__init__(fd, "rb+")
        self.place = place
        self._builder = builder

    def must_close(self, sent_bytes: int) -> bool:
        """Whether another tenant needs the place, now that the client was sent so much."""
        self.place.sent_bytes = sent_bytes
        return self._builder.must_free(self.place)

    def append(self, data: bytes) -> None:
        """Write bytes; raises `CacheFullError` if they have no room."""
        self._builder.charge(self.place, len(data))
        left = memoryview(data)
        while left:
            left = left[self.write(left) :]

    def close(self) -> None:
        """Close the file, which frees its bytes and its place."""
        if not self.closed:
            super().close()
            self._builder.free(self.place)


class UncachedBuilder:
    """Builds archives for one client each, two at a time. Thread-safe.

    An archive holds its place until it is closed. When one is free, it goes to the tenant that
    holds the fewest of those that wait. For a tenant that holds fewer, an archive has to go some
    time after it was built: the oldest of a tenant that holds both places, or one that is sent
    slowly.

    Args:
        most_bytes: their size together; None where only the disk limits it.
        build_dir: where the files are, without names; None for the system's temporary
            directory.
    """

    def __init__(self, most_bytes: int | None, build_dir: str | None) -> None:
        self._most_bytes = most_bytes
        self._build_dir = build_dir
        self._changed = threading.Condition(threading.Lock())  # guards all that follows
        self._held: list[Place] = []  # oldest first
        self._waiting: list[Place] = []  # likewise

    @property
    def size_bytes(self) -> int:
        """Bytes of all archives that are open; reads memory only."""
        return sum(each.size_bytes for each in list(self._held))

    def build(
        self,
        tenant_id: TenantId,
        timeline: Timeline,
        lsn: Lsn,
        check_cancelled: Callable[[], None],
    ) -> UncachedFile:
        """Build one.

        Args:
            tenant_id: the tenant whose share of the places it takes.
            timeline: its timeline.
            lsn: its position.
            check_cancelled: called about five times a second; what it raises ends the build.

        Returns:
            A file of one gzip member, open at its start. The caller closes it.

        Raises:
            ArchiveError: the host wrote no tar.
            CacheFullError: `most_bytes` has no room.
            OSError: it cannot be written.
            Exception: the host has raised it.
        """
        place = Place(tenant_id)
        self._wait_for(place, check_cancelled)
        try:
            file = UncachedFile(_unnamed_file(self._build_dir), self, place)
        except BaseException:
            self.free(place)
            raise
        try:
            _fill(file, make_key(tenant_id, timeline.timeline_id), timeline, lsn, check_cancelled)
        except BaseException:
            file.close()
            raise
        place.built_at_s = time.monotonic()
        return file

    def charge(self, place: Place, added_bytes: int) -> None:
        """Count bytes before they are written.

        Raises:
            CacheFullError: they have no room.
        """
        with self._changed:
            size_bytes = self.size_bytes + added_bytes
            if self._most_bytes is not None and size_bytes > self._most_bytes:
                raise CacheFullError(
                    f"fullbackups have no room: {size_bytes} bytes exceed "
                    f"max_fullbackup_size_bytes {self._most_bytes}\n"
                    "hint: Raise that limit, or ask again later."
                )
            place.size_bytes += added_bytes

    def free(self, place: Place) -> None:
        """Free a place, with the bytes of its archive."""
        with self._changed:
            self._held.remove(place)
            self._changed.notify_all()

    def must_free(self, place: Place) -> bool:
        """Whether the archive with this place has to be closed, because another tenant waits."""
        with self._changed:
            if len(self._held) < _MOST or not self._waiting:
                return False
            fewest = min(map(self._count_locked, self._waiting))
            late = (each for each in self._held if self._is_late_locked(each, fewest))
            return next(late, None) is place

    def _wait_for(self, place: Place, check_cancelled: Callable[[], None]) -> None:
        with self._changed:
            self._waiting.append(place)
        try:
            while not self._take(place):
                check_cancelled()
        finally:
            with self._changed:
                self._waiting.remove(place)
                self._changed.notify_all()

    def _take(self, place: Place) -> bool:
        """Take a place if it is this one's turn soon."""
        with self._changed:
            is_next = self._changed.wait_for(lambda: self._is_next_locked(place), _SLICE_S)
            if is_next:
                self._held.append(place)
            return is_next

    def _is_next_locked(self, place: Place) -> bool:
        return len(self._held) < _MOST and min(self._waiting, key=self._count_locked) is place

    def _count_locked(self, place: Place) -> int:
        """Return how many places the tenant has."""
        return sum(each.tenant_id == place.tenant_id for each in self._held)

    def _is_late_locked(self, place: Place, fewest: int) -> bool:
        """Whether a tenant that holds the fewest places may take the place of an archive."""
        spare = self._count_locked(place) - fewest
        fair_s = 0.0 if spare > 1 else place.sent_bytes / FAIR_RATE
        return spare > 0 and time.monotonic() >= place.built_at_s + SENDING_S + fair_s


def _unnamed_file(directory: str | None) -> int:
    with tempfile.TemporaryFile(buffering=0, dir=directory) as file:
        return os.dup(file.fileno())


class _Writer(ArchiveWriter):
    """Looks at each write whether the client still waits: a piece may take the host long."""

    def __init__(self, file: UncachedFile, check_cancelled: Callable[[], None]) -> None:
        super().__init__(file.append, _LEVEL, check_tar_head)
        self._check_cancelled = check_cancelled

    def write(self, data: Buffer, /) -> int:
        try:
            self._check_cancelled()
        except BaseException as error:  # noqa: BLE001 - which the write of ArchiveWriter raises
            self.cancel(error)
        return super().write(data)


def _fill(
    file: UncachedFile,
    key: bytes,
    timeline: Timeline,
    lsn: Lsn,
    check_cancelled: Callable[[], None],
) -> None:
    writer = _Writer(file, check_cancelled)
    try:
        timeline.send_basebackup_tarball(writer, lsn)
        seal = writer.finish()
    except BaseException:
        if writer.failure is not None:  # this is the cause, whatever the host has made of it
            raise writer.failure from None
        raise
    finally:
        writer.abort()
    file.seek(0)
    os.pwrite(file.fileno(), pack_header(seal, key, lsn), 0)
