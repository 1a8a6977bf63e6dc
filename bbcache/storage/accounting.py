"""Counts, bytes, limits and reservations: pure arithmetic.

No lock and no I/O: `bbcache.storage.index.Index` guards the one instance of a cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bbcache.errors import CacheFullError, EntryTooBigError

if TYPE_CHECKING:
    from collections.abc import Collection

    from bbcache.config import BasebackupCacheConfig


@dataclass(slots=True)
class Tally:
    """How many files of one kind there are, and how many bytes they have."""

    count: int = 0
    size_bytes: int = 0

    def add(self, size_bytes: int) -> None:
        """Count one file more."""
        self.count += 1
        self.size_bytes += size_bytes

    def subtract(self, size_bytes: int) -> None:
        """Count one file less."""
        self.count -= 1
        self.size_bytes -= size_bytes


@dataclass(slots=True)
class Reservation:
    """Room taken by one archive while it is built.

    Attributes:
        key: tenant and timeline ids, 32 bytes.
        held_bytes: bytes written or about to be.
        credit_bytes: size of the entry that the archive will replace, None where
            the timeline has none. Only what exceeds it is charged.
        is_open: False once committed or released; both happen at most once.
    """

    key: bytes
    held_bytes: int = 0
    credit_bytes: int | None = None
    is_open: bool = True

    @property
    def charged_bytes(self) -> int:
        """Bytes of this reservation that count against the limit."""
        return max(0, self.held_bytes - (self.credit_bytes or 0))

    @property
    def charged_slots(self) -> int:
        """1 where the archive will be one entry more, 0 where it replaces one."""
        return 1 if self.credit_bytes is None else 0


@dataclass(slots=True)
class Accounting:
    """What the cache holds, and what it may still take. Not thread-safe.

    Attributes:
        max_entries: files allowed.
        max_size_bytes: bytes allowed.
        max_entry_size_bytes: bytes allowed for one archive.
        entries: published archives.
        foreign_files: files of others in the directory.
        doomed: files of ours that are to be removed, and temporary files that
            could not be.
        quarantine: bad archives kept for inspection; only their bytes count.
        building_slots: entries that the builds under way will add.
        building_bytes: bytes charged for the builds under way.
    """

    max_entries: int
    max_size_bytes: int
    max_entry_size_bytes: int
    entries: Tally = field(default_factory=Tally)
    foreign_files: Tally = field(default_factory=Tally)
    doomed: Tally = field(default_factory=Tally)
    quarantine: Tally = field(default_factory=Tally)
    building_slots: int = 0
    building_bytes: int = 0

    @classmethod
    def from_config(cls, config: BasebackupCacheConfig) -> Accounting:
        """Empty accounting with the limits of `config`."""
        total = config.max_total_size_bytes
        return cls(
            max_entries=config.max_size_entries,
            max_size_bytes=total,
            max_entry_size_bytes=min(config.max_entry_size_bytes or total, total),
        )

    @property
    def total_count(self) -> int:
        """Files that count against `max_entries`."""
        return (
            self.entries.count + self.foreign_files.count + self.doomed.count + self.building_slots
        )

    @property
    def total_size_bytes(self) -> int:
        """Bytes that count against `max_size_bytes`."""
        return self.entries.size_bytes + self.nonentry_bytes + self.building_bytes

    @property
    def nonentry_bytes(self) -> int:
        """Bytes of foreign files, doomed files and quarantine."""
        return self.foreign_files.size_bytes + self.doomed.size_bytes + self.quarantine.size_bytes

    def recount(self, doomed_sizes: Collection[int], open_ones: Collection[Reservation]) -> None:
        """Count again what no scan of the directory tells.

        Args:
            doomed_sizes: the bytes of the files that are to be removed.
            open_ones: the reservations of the builds under way.
        """
        self.doomed = Tally(len(doomed_sizes), sum(doomed_sizes))
        self.building_slots = sum(each.charged_slots for each in open_ones)
        self.building_bytes = sum(each.charged_bytes for each in open_ones)

    def open_reservation(self, key: bytes, credit_bytes: int | None) -> Reservation:
        """Take the slot of an archive about to be built.

        Raises:
            CacheFullError: there is no slot, or not one byte, for a new entry. A
                refresh always gets its reservation.
        """
        if credit_bytes is None:
            if self.total_count >= self.max_entries:
                raise CacheFullError(
                    f"the cache is full: {self.total_count} of max_size_entries {self.max_entries}"
                )
            if self.total_size_bytes >= self.max_size_bytes:
                raise self._no_bytes(1)
        reservation = Reservation(key, credit_bytes=credit_bytes)
        self.building_slots += reservation.charged_slots
        return reservation

    def grow(self, reservation: Reservation, size_bytes: int) -> None:
        """Take room for `size_bytes` more, all or nothing.

        Raises:
            EntryTooBigError: the archive passes the limit of one entry.
            CacheFullError: the archive passes what is left of the total.
        """
        held_bytes = reservation.held_bytes + size_bytes
        if held_bytes > self.max_entry_size_bytes:
            raise EntryTooBigError(
                f"the archive has more than {self.max_entry_size_bytes} bytes, "
                "the limit of one entry"
            )
        charged_before = reservation.charged_bytes
        charge = max(0, held_bytes - (reservation.credit_bytes or 0)) - charged_before
        if charge > 0 and self.total_size_bytes + charge > self.max_size_bytes:
            raise self._no_bytes(charge)
        reservation.held_bytes = held_bytes
        self.building_bytes += charge

    def set_credit(self, reservation: Reservation, credit_bytes: int | None) -> None:
        """The entry to be replaced has come, gone or changed its size."""
        self.building_slots -= reservation.charged_slots
        self.building_bytes -= reservation.charged_bytes
        reservation.credit_bytes = credit_bytes
        self.building_slots += reservation.charged_slots
        self.building_bytes += reservation.charged_bytes

    def may_lose_credit(self, reservation: Reservation) -> bool:
        """Whether both limits have room for what the credit now covers."""
        bytes_rise = reservation.held_bytes - reservation.charged_bytes
        slots_rise = 1 - reservation.charged_slots
        has_bytes = bytes_rise == 0 or self.total_size_bytes + bytes_rise <= self.max_size_bytes
        has_slots = slots_rise == 0 or self.total_count + slots_rise <= self.max_entries
        return has_bytes and has_slots

    def close_reservation(self, reservation: Reservation) -> None:
        """Give back all of a reservation; a second call changes nothing."""
        if reservation.is_open:
            reservation.is_open = False
            self.building_slots -= reservation.charged_slots
            self.building_bytes -= reservation.charged_bytes

    def _no_bytes(self, wanted_bytes: int) -> CacheFullError:
        return CacheFullError(
            f"the cache is full: {self.total_size_bytes} + {wanted_bytes} bytes exceed "
            f"max_total_size_bytes {self.max_size_bytes}"
        )
