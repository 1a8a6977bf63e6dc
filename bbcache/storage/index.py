"""The map from timeline to entry, guarded by one re-entrant lock; no I/O."""

from __future__ import annotations

import threading
from collections.abc import Collection
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
    """Entries, reservations and accounting of one cache. Thread-safe.

    The lock is held for a few changes of memory only. Where the catalog's file
    lock is held too, that one is taken first.
    """

    def __init__(self, accounting: Accounting) -> None:
        self._lock = threading.RLock()  # guards all that follows
        self._entries: dict[bytes, Entry] = {}
        self._reservations: dict[bytes, Reservation] = {}  # at most one a timeline
        self._accounting = accounting

    def find(self, key: bytes, lsn: int) -> Entry | None:
        """The timeline's entry, where it is at exactly `lsn`."""
        with self._lock:
            entry = self._entries.get(key)
        return entry if entry is not None and entry.packed >> LSN_SHIFT == lsn else None

    def newest(self, key: bytes) -> Entry | None:
        """The timeline's entry at whatever LSN."""
        with self._lock:
            return self._entries.get(key)

    def holds(self, entry: Entry) -> bool:
        """Whether this very entry is in the index."""
        with self._lock:
            return self._entries.get(entry.key) is entry

    def snapshot(self) -> list[Entry]:
        """All entries of this moment."""
        with self._lock:
            return list(self._entries.values())

    def by_key(self) -> dict[bytes, Entry]:
        """All entries of this moment, by their timelines' keys; the caller's own."""
        with self._lock:
            return self._entries.copy()

    def load(self, entries: dict[bytes, Entry]) -> None:
        """Take over what was found on disk, whatever the limits say; all else goes.

        Args:
            entries: by their timelines' keys; the index's own from now on.
        """
        size_bytes = sum([e.packed >> _SIZE_SHIFT & _SIZE_MASK for e in entries.values()])
        with self._lock:
            self._entries = entries
            self._accounting.entries.count, self._accounting.entries.size_bytes = (
                len(entries),
                size_bytes,
            )
            for key, reservation in self._reservations.items():
                held = self._entries.get(key)
                self._accounting.set_credit(reservation, None if held is None else held.size_bytes)

    def recount(self, entries: dict[bytes, Entry], doomed_sizes: Collection[int]) -> None:
        """Like `load`, after a step that was broken off: nothing that is counted is relied on.

        Args:
            entries: by their timelines' keys; the index's own from now on.
            doomed_sizes: the bytes of the files that are to be removed.
        """
        with self._lock:
            self._accounting.recount(doomed_sizes, self._reservations.values())
            self.load(entries)

    def check_room(self, key: bytes) -> None:
        """Check that `reserve` would find a slot now.

        Raises:
            CacheFullError: a new entry has no room.
        """
        with self._lock:
            if key not in self._entries:
                self._accounting.close_reservation(self._accounting.open_reservation(key, None))

    def reserve(self, key: bytes) -> Reservation:
        """Take the slot for a build; one build a timeline at a time.

        Raises:
            CacheFullError: a new entry has no room.
        """
        with self._lock:
            held = self._entries.get(key)
            credit_bytes = None if held is None else held.size_bytes
            reservation = self._accounting.open_reservation(key, credit_bytes)
            self._reservations[key] = reservation
            return reservation

    def grow(self, reservation: Reservation, size_bytes: int) -> None:
        """Take room for a piece before it is written.

        Raises:
            LimitError: there is none.
        """
        with self._lock:
            self._accounting.grow(reservation, size_bytes)

    def release(self, reservation: Reservation) -> None:
        """Give a reservation back; harmless once it is committed or released."""
        with self._lock:
            self._close_reservation_locked(reservation)

    def abandon(self, reservation: Reservation) -> None:
        """Like `release`, but the temporary file is still there and stays accounted for."""
        with self._lock:
            if reservation.is_open:
                self._close_reservation_locked(reservation)
                self._accounting.doomed.add(reservation.held_bytes)

    def commit(self, reservation: Reservation, entry: Entry) -> Entry | None:
        """Turn a reservation into a published entry.

        Returns:
            The entry that it replaces. Its file is no longer accounted for until
            `add_doomed` says that it could not be removed.
        """
        with self._lock:
            self._close_reservation_locked(reservation)
            return self._insert_locked(entry)

    def remove(self, entry: Entry) -> bool:
        """Drop this very entry, whose file is gone; False where it is not held."""
        with self._lock:
            if not self._drop_locked(entry):
                return False
            self._set_credit_locked(entry.key, None)
            return True

    def doom(self, entry: Entry) -> bool:
        """Drop this very entry, whose file is about to be unlinked.

        The file counts, and a refresh under way keeps its credit, until
        `settle_doomed` tells how the first attempt went.
        """
        with self._lock:
            if not self._drop_locked(entry):
                return False
            self._accounting.doomed.add(entry.size_bytes)
            return True

    def settle_doomed(self, entry: Entry, *, is_unlinked: bool) -> None:
        """The first attempt to unlink a doomed entry's file has been made."""
        with self._lock:
            if is_unlinked:
                self._accounting.doomed.subtract(entry.size_bytes)
            if entry.key not in self._entries:
                self._set_credit_locked(entry.key, None)

    def add_doomed(self, size_bytes: int) -> None:
        """A file of ours could not be removed: it counts until it is."""
        with self._lock:
            self._accounting.doomed.add(size_bytes)

    def remove_doomed(self, size_bytes: int) -> None:
        """A doomed file is gone."""
        with self._lock:
            self._accounting.doomed.subtract(size_bytes)

    def move_to_quarantine(self, entry: Entry) -> bool:
        """Drop this very entry, to move its file into the quarantine.

        It counts as doomed until `settle_quarantined`. A refresh under way loses its
        credit with the entry, so that the totals may rise past a limit: then nothing
        changes and False is returned, as where the entry is not held.
        """
        with self._lock:
            accounting, reservation = self._accounting, self._reservations.get(entry.key)
            if reservation is not None and not accounting.may_lose_credit(reservation):
                return False
            if not self.remove(entry):
                return False
            accounting.doomed.add(entry.size_bytes)
            return True

    def settle_quarantined(self, entry: Entry) -> None:
        """The file has been moved: its bytes count with the quarantine."""
        with self._lock:
            self._accounting.doomed.subtract(entry.size_bytes)
            self._accounting.quarantine.add(entry.size_bytes)

    def return_from_quarantine(self, entry: Entry) -> None:
        """Undo `move_to_quarantine`: the file could not be moved."""
        with self._lock:
            self._accounting.doomed.subtract(entry.size_bytes)
            self._insert_locked(entry)

    def set_quarantine(self, count: int, size_bytes: int) -> None:
        """What the quarantine holds now."""
        with self._lock:
            self._accounting.quarantine.count, self._accounting.quarantine.size_bytes = (
                count,
                size_bytes,
            )

    def set_foreign_files(self, count: int, size_bytes: int) -> None:
        """What others have put into the directory."""
        with self._lock:
            self._accounting.foreign_files.count, self._accounting.foreign_files.size_bytes = (
                count,
                size_bytes,
            )

    @property
    def entry_count(self) -> int:
        """Published entries; one read of memory, safe without the lock."""
        return self._accounting.entries.count

    @property
    def entries_size_bytes(self) -> int:
        """Their bytes; one read of memory, safe without the lock."""
        return self._accounting.entries.size_bytes

    @property
    def nonentry_bytes(self) -> int:
        """Bytes of foreign files, doomed files and quarantine; safe without the lock."""
        return self._accounting.nonentry_bytes

    @property
    def total_size_bytes(self) -> int:
        """All bytes that count against the limit, those being built included."""
        with self._lock:
            return self._accounting.total_size_bytes

    @property
    def total_count(self) -> int:
        """All files that count against the limit, those being built included."""
        with self._lock:
            return self._accounting.total_count

    def _drop_locked(self, entry: Entry) -> bool:
        if self._entries.get(entry.key) is not entry:
            return False
        del self._entries[entry.key]
        self._accounting.entries.subtract(entry.size_bytes)
        return True

    def _insert_locked(self, entry: Entry) -> Entry | None:
        old = self._entries.get(entry.key)
        if old is not None:
            self._accounting.entries.subtract(old.size_bytes)
        self._entries[entry.key] = entry
        self._accounting.entries.add(entry.size_bytes)
        self._set_credit_locked(entry.key, entry.size_bytes)
        return old

    def _set_credit_locked(self, key: bytes, credit_bytes: int | None) -> None:
        reservation = self._reservations.get(key)
        if reservation is not None:
            self._accounting.set_credit(reservation, credit_bytes)

    def _close_reservation_locked(self, reservation: Reservation) -> None:
        if reservation.is_open:
            self._accounting.close_reservation(reservation)
            del self._reservations[reservation.key]
