"""Building an archive for one client alone, beside the cache."""

from __future__ import annotations

import io
import math
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from bbcache.archive.format import ArchiveWriter, pack_header
from bbcache.archive.tar_head import check_tar_head
from bbcache.errors import CacheFullError
from bbcache.host import Buffer, Timeline
from bbcache.ids import Lsn, TenantId
from bbcache.storage.index import make_key

_LEVEL: Final = 2
_MOST: Final = 2  # archives at once; the next ones wait
_SLICE_S: Final = 0.2
SENDING_S: Final = 30.0  # that an archive is sent before it may have to end


class UncachedFile(io.FileIO):
    """An archive without a name, which holds a place of its builder until it is closed.

    Attributes:
        size_bytes: its size.
        tenant_id: the tenant whose place it holds.
        built_at_s: when it was complete; infinite before.
        is_revoked: whether it has to be closed, because another tenant waits.
    """

    def __init__(self, fd: int, builder: UncachedBuilder, tenant_id: TenantId) -> None:
        super().__init__(fd, "rb+")
        self.size_bytes = 0
        self.tenant_id = tenant_id
        self.built_at_s = math.inf
        self.is_revoked = False
        self._builder = builder

    def append(self, data: bytes) -> None:
        """Write bytes; raises `CacheFullError` if they have no room."""
        self._builder.charge(self, len(data))
        left = memoryview(data)
        while left:
            left = left[self.write(left) :]

    def close(self) -> None:
        """Close the file, which frees its bytes and its place."""
        if not self.closed:
            super().close()
            self._builder.release(self)


class UncachedBuilder:
    """Builds archives for one client each, two at a time. Thread-safe.

    An archive holds its place until it is closed. When one is free, it goes to the tenant that
    holds the fewest of those that wait. A tenant that holds too many for that has to close the
    one that is sent for longest.

    Args:
        most_bytes: their size together; None where only the disk limits it.
        build_dir: where the files are, without names; None for the system's temporary
            directory.
    """

    def __init__(self, most_bytes: int | None, build_dir: str | None) -> None:
        self._most_bytes = most_bytes
        self._build_dir = build_dir
        self._changed = threading.Condition(threading.Lock())  # guards all that follows
        self._held: Counter[TenantId] = Counter()
        self._files: dict[UncachedFile, None] = {}  # oldest first
        self._waiting: dict[object, TenantId] = {}  # in the order of arrival
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all archives that are open; reads memory only."""
        return self._size_bytes

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
        self._wait_for_place(tenant_id, check_cancelled)
        try:
            file = UncachedFile(_unnamed_file(self._build_dir), self, tenant_id)
        except BaseException:
            self._free_place(tenant_id)
            raise
        with self._changed:
            self._files[file] = None
        try:
            _fill(file, make_key(tenant_id, timeline.timeline_id), timeline, lsn, check_cancelled)
        except BaseException:
            file.close()
            raise
        file.built_at_s = time.monotonic()
        return file

    def charge(self, file: UncachedFile, added_bytes: int) -> None:
        """Count bytes before they are written.

        Raises:
            CacheFullError: they have no room.
        """
        with self._changed:
            size_bytes = self._size_bytes + added_bytes
            if self._most_bytes is not None and size_bytes > self._most_bytes:
                raise CacheFullError(
                    f"fullbackups have no room: {size_bytes} bytes exceed "
                    f"max_fullbackup_size_bytes {self._most_bytes}\n"
                    "hint: Raise that limit, or ask again later."
                )
            self._size_bytes = size_bytes
            file.size_bytes += added_bytes

    def release(self, file: UncachedFile) -> None:
        """Count a file no longer."""
        with self._changed:
            self._files.pop(file, None)
            self._size_bytes -= file.size_bytes
        self._free_place(file.tenant_id)

    def _wait_for_place(self, tenant_id: TenantId, check_cancelled: Callable[[], None]) -> None:
        ticket = object()
        with self._changed:
            self._waiting[ticket] = tenant_id
        try:
            while not self._take_place(ticket, tenant_id):
                check_cancelled()
        finally:
            with self._changed:
                del self._waiting[ticket]
                self._changed.notify_all()

    def _take_place(self, ticket: object, tenant_id: TenantId) -> bool:
        with self._changed:
            if not self._is_next_locked(ticket):
                self._revoke_locked(self._held[tenant_id] + 1)
                self._changed.wait(_SLICE_S)
            is_next = self._is_next_locked(ticket)
            if is_next:
                self._held[tenant_id] += 1
            return is_next

    def _is_next_locked(self, ticket: object) -> bool:
        if self._held.total() >= _MOST:
            return False
        return min(self._waiting, key=lambda each: self._held[self._waiting[each]]) is ticket

    def _revoke_locked(self, share: int) -> None:
        """Have a file closed of a tenant that holds more than this share."""
        latest_s = time.monotonic() - SENDING_S
        for file in self._files:
            if self._held[file.tenant_id] > share and file.built_at_s <= latest_s:
                file.is_revoked = True
                return

    def _free_place(self, tenant_id: TenantId) -> None:
        with self._changed:
            self._held[tenant_id] -= 1
            if not self._held[tenant_id]:
                del self._held[tenant_id]
            self._changed.notify_all()


def _unnamed_file(directory: str | None) -> int:
    with tempfile.TemporaryFile(buffering=0, dir=directory) as file:
        return os.dup(file.fileno())


class _Writer(ArchiveWriter):
    """Looks at each write whether the client still waits."""

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
