"""The published entries in memory: a map from timeline to entry, under one lock; no I/O."""

from __future__ import annotations

import threading
from collections import deque
from enum import IntEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.ids import ID_SIZE_BYTES, Lsn, TenantId, TenantTimelineId, TimelineId
from bbcache.storage.accounting import Accounting

if TYPE_CHECKING:
    from bbcache.config import BasebackupCacheConfig
    from bbcache.storage.accounting import Reservation


class EntryInfo(NamedTuple):
    """One published basebackup, as `BasebackupCache.entries` shows it."""

    tenant_id: TenantId
    timeline_id: TimelineId
    lsn: Lsn
    size_bytes: int


class Verification(IntEnum):
    """How the bytes of an entry were checked in this life of the cache."""

    NONE = 0
    SEALED = 1  # against the seal
    PLAIN = 2  # the file has no seal, and was decompressed in full


_VERIFICATION_MASK: Final = 0b11
_SIZE_SHIFT: Final = 2
_SIZE_MASK: Final = 2**64 - 1
LSN_SHIFT: Final = 66


class Entry:
    """One published archive. Compared by identity: a rebuild of the same archive differs.

    A cache may have hundreds of thousands of entries, so all but the key is in one int.

    Attributes:
        key: tenant and timeline ids, 32 bytes.
        packed: from the highest bit: LSN, size in bytes (64 bits), verification (2 bits).
    """

    __slots__ = ("key", "packed")

    def __init__(self, key: bytes, lsn: int, size_bytes: int) -> None:
        self.key = key
        self.packed = lsn << LSN_SHIFT | size_bytes << _SIZE_SHIFT

    @property
    def lsn(self) -> Lsn:
        """The position of the basebackup."""
        return Lsn.of_valid(self.packed >> LSN_SHIFT)

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        return self.packed >> _SIZE_SHIFT & _SIZE_MASK

    @property
    def is_verified(self) -> bool:
        """Whether the bytes were checked in this life of the cache."""
        return self.packed & _VERIFICATION_MASK != 0

    @property
    def verification(self) -> Verification:
        """How the bytes were checked. Any thread may set it without a lock."""
        return Verification(self.packed & _VERIFICATION_MASK)

    @verification.setter
    def verification(self, verification: Verification) -> None:
        self.packed = self.packed & ~_VERIFICATION_MASK | verification

    def info(self) -> EntryInfo:
        """The entry as the public API shows it."""
        return EntryInfo(*split_key(self.key), self.lsn, self.size_bytes)

    def __str__(self) -> str:
        return f"{split_key(self.key)} at {self.lsn}"


def make_key(tenant_id: TenantId, timeline_id: TimelineId) -> bytes:
    """The 32 bytes that stand for a timeline."""
    return tenant_id + timeline_id


def make_place(key: bytes, lsn: int) -> bytes:
    """The 40 bytes that stand for one LSN of a timeline."""
    return key + lsn.to_bytes(8, "big")


def split_key(key: bytes) -> TenantTimelineId:
    """The ids in a key."""
    return TenantTimelineId(TenantId(key[:ID_SIZE_BYTES]), TimelineId(key[ID_SIZE_BYTES:]))


def newest_of_each(found: list[Entry]) -> tuple[dict[bytes, Entry], list[Entry]]:
    """Split entries into the newest of each timeline, by key, and the superseded ones."""
    newest = {entry.key: entry for entry in found}
    if len(newest) == len(found):
        return newest, []
    newest = {entry.key: entry for entry in sorted(found, key=attrgetter("packed"))}
    return newest, [entry for entry in found if newest[entry.key] is not entry]


class Index:
    """The entries of one cache, and its ledger. Thread-safe.

    Args:
        config: has the limits.

    Attributes:
        lock: guards entries and ledger. Held for a few changes of memory only. A thread that
            needs the catalog's file lock as well takes that first.
        accounting: the ledger. Hold the lock to change it or to read a total.
        changes: key and size of each new entry, key and None of each that is gone, and None
            where all were replaced; in the order of the changes. The evictor takes them out.
    """

    def __init__(self, config: BasebackupCacheConfig) -> None:
        self.lock = threading.RLock()
        self.accounting = Accounting(config)
        self.changes: deque[tuple[bytes, int | None] | None] = deque()
        self._entries: dict[bytes, Entry] = {}

    def set_limits(self, config: BasebackupCacheConfig) -> None:
        """Keep to other limits from now on."""
        with self.lock:
            self.accounting.set_limits(config)

    def find(self, key: bytes, lsn: int) -> Entry | None:
        """The timeline's entry, if it is at exactly `lsn`."""
        with self.lock:
            entry = self._entries.get(key)
        return entry if entry is not None and entry.packed >> LSN_SHIFT == lsn else None

    def newest(self, key: bytes) -> Entry | None:
        """The timeline's entry, at any LSN."""
        with self.lock:
            return self._entries.get(key)

    def by_key(self) -> dict[bytes, Entry]:
        """A copy of all entries, by key."""
        with self.lock:
            return self._entries.copy()

    def load(self, entries: dict[bytes, Entry]) -> None:
        """Replace all entries by those found on disk, even beyond the limits.

        Args:
            entries: by key; they belong to the index from now on.
        """
        size_bytes = sum([e.packed >> _SIZE_SHIFT & _SIZE_MASK for e in entries.values()])
        with self.lock:
            self._entries, accounting = entries, self.accounting
            self.changes.append(None)
            accounting.entry_count, accounting.entries_size_bytes = len(entries), size_bytes
            for key in accounting.reservations:
                self.settle_credit(key)

    def check_room(self, key: bytes) -> None:
        """Check that `reserve` would succeed now.

        Raises:
            CacheFullError: there is no room for a new entry.
        """
        with self.lock:
            if key not in self._entries:
                self.accounting.check_slot()

    def excess(self, files: int = 0, size_bytes: int = 0) -> tuple[int, int]:
        """By how many files and bytes the limits would be passed with so many more."""
        with self.lock:
            return self.accounting.excess(files, size_bytes)

    def reserve(self, key: bytes) -> Reservation:
        """Take the slot for a build. A timeline has at most one build at a time.

        Raises:
            CacheFullError: there is no room for a new entry.
        """
        with self.lock:
            return self.accounting.reserve(key, self._size_bytes_locked(key))

    def commit(self, reservation: Reservation, entry: Entry) -> Entry | None:
        """Turn a reservation into a published entry.

        Returns:
            The entry that it replaces, which counts no more. The caller removes its file.
        """
        with self.lock:
            self.accounting.release(reservation)
            old = self._entries.get(entry.key)
            if old is not None:
                self._drop_locked(old)
            self._entries[entry.key] = entry
            self.changes.append((entry.key, entry.size_bytes))
            self.accounting.entry_count += 1
            self.accounting.entries_size_bytes += entry.size_bytes
            return old

    def remove(self, entry: Entry) -> bool:
        """Drop this very entry, whose file is gone; False if it is not in the index."""
        with self.lock:
            if not self._drop_locked(entry):
                return False
            self.settle_credit(entry.key)
            return True

    def doom(self, entry: Entry, path: str) -> bool:
        """Drop this very entry, and count its file at `path` as doomed.

        A refresh under way keeps its credit until the caller, after the first attempt to
        remove the file, calls `settle_credit`.

        Returns:
            False if the entry is not in the index.
        """
        with self.lock:
            if not self._drop_locked(entry):
                return False
            self.accounting.doomed.put(path, entry.size_bytes)
            return True

    def settle_credit(self, key: bytes) -> None:
        """Set the credit of the timeline's build to the size of the entry, or to none."""
        with self.lock:
            reservation = self.accounting.reservations.get(key)
            if reservation is not None:
                reservation.credit_bytes = self._size_bytes_locked(key)

    def _size_bytes_locked(self, key: bytes) -> int | None:
        entry = self._entries.get(key)
        return None if entry is None else entry.size_bytes

    def _drop_locked(self, entry: Entry) -> bool:
        if self._entries.get(entry.key) is not entry:
            return False
        del self._entries[entry.key]
        self.changes.append((entry.key, None))
        self.accounting.entry_count -= 1
        self.accounting.entries_size_bytes -= entry.size_bytes
        return True
