"""The map from timeline to entry, guarded by one re-entrant lock; no I/O."""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import Final, NamedTuple

from bbcache.ids import ID_SIZE_BYTES, Lsn, TenantId, TenantTimelineId, TimelineId
from bbcache.storage.accounting import Accounting, Reservation


class EntryInfo(NamedTuple):
    """One published basebackup, as `BasebackupCache.entries` shows it."""

    tenant_id: TenantId
    timeline_id: TimelineId
    lsn: Lsn
    size_bytes: int


class Verification(IntEnum):
    """What is known of an entry's bytes."""

    NONE = 0  # not checked
    SEALED = 1  # checked against its seal
    PLAIN = 2  # without seal, decompressed once in full


_VERIFICATIONS: Final = tuple(Verification)
_VERIFICATION_MASK: Final = 0b11
_SIZE_SHIFT: Final = 2
_SIZE_MASK: Final = 2**64 - 1
LSN_SHIFT: Final = 66


class Entry:
    """One published archive. Compared by identity: a re-publish is another entry.

    There may be hundreds of thousands, so all but the key is in one int.

    Args:
        key: tenant and timeline ids, 32 bytes.
        lsn: the position of the basebackup.
        size_bytes: the size of the file.

    Attributes:
        key: the same.
        packed: from the top: LSN, size in bytes (64 bits), proof (2 bits).
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
        """Whether the bytes have been checked in this life of the cache."""
        return self.packed & _VERIFICATION_MASK != 0

    @property
    def verification(self) -> Verification:
        """What is known of the bytes in this life of the cache.

        Set by any thread that has checked them, without a lock: two checks do no harm.
        """
        return _VERIFICATIONS[self.packed & _VERIFICATION_MASK]

    @verification.setter
    def verification(self, verification: Verification) -> None:
        self.packed = self.packed & ~_VERIFICATION_MASK | verification

    def info(self) -> EntryInfo:
        """The entry as the public API shows it."""
        return EntryInfo(*split_key(self.key), self.lsn, self.size_bytes)

    def __str__(self) -> str:
        return f"{split_key(self.key)} at {self.lsn}"


def make_key(tenant_id: TenantId, timeline_id: TimelineId) -> bytes:
    """The 32 bytes under which a timeline is indexed."""
    return tenant_id + timeline_id


def make_place(key: bytes, lsn: int) -> bytes:
    """The 40 bytes that stand for one LSN of a timeline."""
    return key + lsn.to_bytes(8, "big")


def split_key(key: bytes) -> TenantTimelineId:
    """The ids in a key."""
    return TenantTimelineId(TenantId(key[:ID_SIZE_BYTES]), TimelineId(key[ID_SIZE_BYTES:]))


def newest_of_each(found: list[Entry]) -> tuple[dict[bytes, Entry], list[Entry]]:
    """Split what a scan found into the newest of each timeline, by its key, and the others."""
    newest = {entry.key: entry for entry in found}
    if len(newest) == len(found):
        return newest, []
    newest.clear()
    superseded = []
    for entry in found:
        held = newest.setdefault(entry.key, entry)
        if held is entry:
            continue
        if held.lsn > entry.lsn:
            superseded.append(entry)
        else:
            newest[entry.key] = entry
            superseded.append(held)
    return newest, superseded


class Index:
    """The entries of one cache, and the ledger of all that counts. Thread-safe.

    Attributes:
        lock: guards entries and accounting. It is held for a few changes of memory only, and
            taken after the catalog's file lock where that is held, too.
        accounting: the ledger. Hold the lock to change it, or to read a total.
    """

    def __init__(self, accounting: Accounting) -> None:
        self.lock = threading.RLock()
        self.accounting = accounting
        self._entries: dict[bytes, Entry] = {}

    def find(self, key: bytes, lsn: int) -> Entry | None:
        """The timeline's entry, where it is at exactly `lsn`."""
        with self.lock:
            entry = self._entries.get(key)
        return entry if entry is not None and entry.packed >> LSN_SHIFT == lsn else None

    def newest(self, key: bytes) -> Entry | None:
        """The timeline's entry at whatever LSN."""
        with self.lock:
            return self._entries.get(key)

    def holds(self, entry: Entry) -> bool:
        """Whether this very entry is in the index."""
        with self.lock:
            return self._entries.get(entry.key) is entry

    def snapshot(self) -> list[Entry]:
        """All entries of this moment."""
        with self.lock:
            return list(self._entries.values())

    def by_key(self) -> dict[bytes, Entry]:
        """All entries of this moment, by their timelines' keys; the caller's own."""
        with self.lock:
            return self._entries.copy()

    def load(self, entries: dict[bytes, Entry]) -> None:
        """Take over what was found on disk, whatever the limits say; all other entries go.

        Args:
            entries: by their timelines' keys; the index's own from now on.
        """
        size_bytes = sum([e.packed >> _SIZE_SHIFT & _SIZE_MASK for e in entries.values()])
        with self.lock:
            self._entries, accounting = entries, self.accounting
            accounting.entry_count, accounting.entries_size_bytes = len(entries), size_bytes
            for key in accounting.reservations:
                self.settle_credit(key)

    def check_room(self, key: bytes) -> None:
        """Check that `reserve` would find a slot now.

        Raises:
            CacheFullError: a new entry has no room.
        """
        with self.lock:
            if key not in self._entries:
                self.accounting.check_slot()

    def reserve(self, key: bytes) -> Reservation:
        """Take the slot for a build; one build a timeline at a time.

        Raises:
            CacheFullError: a new entry has no room.
        """
        with self.lock:
            return self.accounting.reserve(key, self._size_bytes_locked(key))

    def commit(self, reservation: Reservation, entry: Entry) -> Entry | None:
        """Turn a reservation into a published entry.

        Returns:
            The entry that it replaces. Its file counts no longer, unless it is doomed
            because it could not be removed.
        """
        with self.lock:
            self.accounting.release(reservation)
            return self._insert_locked(entry)

    def remove(self, entry: Entry) -> bool:
        """Drop this very entry, whose file is gone; False where it is not held."""
        with self.lock:
            if not self._drop_locked(entry):
                return False
            self.settle_credit(entry.key)
            return True

    def doom(self, entry: Entry, path: str) -> bool:
        """Drop this very entry, whose file at `path` is about to be unlinked.

        The file counts as doomed, and a refresh under way keeps its credit until the first
        attempt is made and `settle_credit` called.

        Returns:
            False where the entry is not held.
        """
        with self.lock:
            if not self._drop_locked(entry):
                return False
            self.accounting.doomed.put(path, entry.size_bytes)
            return True

    def doom_for_move(self, entry: Entry, path: str) -> bool:
        """Drop this very entry, whose file is about to be moved into the quarantine.

        A refresh under way loses its credit with the entry, so that the totals may rise past
        a limit: then nothing changes and False is returned, as where the entry is not held.
        """
        with self.lock:
            reservation = self.accounting.reservations.get(entry.key)
            if reservation is not None and not self.accounting.may_lose_credit(reservation):
                return False
            if not self.doom(entry, path):
                return False
            self.settle_credit(entry.key)
            return True

    def restore(self, entry: Entry, path: str) -> None:
        """Undo `doom_for_move`: the file could not be moved."""
        with self.lock:
            self.accounting.doomed.drop(path)
            self._insert_locked(entry)

    def settle_credit(self, key: bytes) -> None:
        """Give the timeline's build credit for the entry that is there, and for no other."""
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
        self.accounting.entry_count -= 1
        self.accounting.entries_size_bytes -= entry.size_bytes
        return True

    def _insert_locked(self, entry: Entry) -> Entry | None:
        old = self._entries.get(entry.key)
        if old is not None:
            self._drop_locked(old)
        self._entries[entry.key] = entry
        self.accounting.entry_count += 1
        self.accounting.entries_size_bytes += entry.size_bytes
        self.settle_credit(entry.key)
        return old
