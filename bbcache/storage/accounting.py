"""The one ledger of every byte that counts, of every file that takes a slot, and of the limits.

It is arithmetic, without a lock and without I/O. `bbcache.storage.index.Index` has the one
ledger of a cache, and the lock under which every change is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bbcache.errors import CacheFullError, EntryTooBigError

if TYPE_CHECKING:
    from bbcache.config import BasebackupCacheConfig

_BUILD: Final = object()  # what holds a reservation until the build is over


class Files:
    """Files of one kind, and the sum of their sizes. Not thread-safe.

    Attributes:
        sizes: bytes of each file, by its path.
        size_bytes: bytes of all of them; one read of memory, safe without a lock.
    """

    __slots__ = ("size_bytes", "sizes")

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.size_bytes = 0

    def put(self, path: str, size_bytes: int) -> None:
        """Count a file, in the place of what is counted under its path."""
        self.drop(path)
        self.sizes[path] = size_bytes
        self.size_bytes += size_bytes

    def drop(self, path: str) -> None:
        """Count a file no longer; one that is not counted is fine."""
        self.size_bytes -= self.sizes.pop(path, 0)

    def replace(self, sizes: dict[str, int]) -> None:
        """Count these files and no others."""
        self.sizes = sizes
        self.size_bytes = sum(sizes.values())


class Reservation:
    """Bytes of one build, and then of its archive where that is not published.

    An archive that is not published counts while something holds it: the build, or an open
    file. `hold` and `let_go` are thread-safe and take no lock, so that a file may be closed
    by the garbage collector anywhere. All else is changed by `Accounting` only.

    Args:
        key: tenant and timeline ids, 32 bytes.
        credit_bytes: size of the entry that the archive will replace, None where the
            timeline has none. Only what exceeds it is charged.

    Attributes:
        key: the same.
        credit_bytes: the same, as of now.
        size_bytes: bytes written or about to be.
        is_unpublished: whether the archive will not be published, and so counts against
            `max_unpublished_size_bytes` alone.
    """

    __slots__ = ("_holders", "credit_bytes", "is_unpublished", "key", "size_bytes")

    def __init__(self, key: bytes, credit_bytes: int | None = None) -> None:
        self.key = key
        self.credit_bytes = credit_bytes
        self.size_bytes = 0
        self.is_unpublished = False
        self._holders: set[object] = {_BUILD}  # changed by single steps only

    @property
    def charged_bytes(self) -> int:
        """Bytes of this build that count against the limit of all entries."""
        return max(0, self.size_bytes - (self.credit_bytes or 0))

    @property
    def charged_slots(self) -> int:
        """1 where the archive will be one entry more, 0 where it replaces one."""
        return 1 if self.credit_bytes is None else 0

    @property
    def is_held(self) -> bool:
        """Whether anything keeps the bytes on the disk; one read of memory."""
        return bool(self._holders)

    def hold(self, holder: object) -> None:
        """Count the bytes until `holder`, which is hashed by identity, lets go of them."""
        self._holders.add(holder)

    def let_go(self, holder: object) -> None:
        """Undo `hold`; harmless twice."""
        self._holders.discard(holder)


@dataclass(slots=True)
class Accounting:
    """What the cache holds, and what it may still take. Not thread-safe.

    Sums are computed when they are read, from what is there: only those of entries and of
    `Files` are kept.

    Attributes:
        max_entries: files allowed.
        max_size_bytes: bytes allowed.
        max_entry_size_bytes: bytes allowed for one archive.
        max_unpublished_size_bytes: bytes allowed for all archives that are not published.
        entry_count: published entries.
        entries_size_bytes: their bytes.
        foreign_files: files of others in the directory, by name.
        doomed: files of ours that are to be removed, and temporary files that could not be.
        quarantine: bad archives kept for inspection; only their bytes count.
        reservations: of the builds under way that may be published, at most one a timeline.
        unpublished: reservations of the other builds, and of what became of them.
    """

    max_entries: int
    max_size_bytes: int
    max_entry_size_bytes: int
    max_unpublished_size_bytes: int
    entry_count: int = 0
    entries_size_bytes: int = 0
    foreign_files: Files = field(default_factory=Files)
    doomed: Files = field(default_factory=Files)
    quarantine: Files = field(default_factory=Files)
    reservations: dict[bytes, Reservation] = field(default_factory=dict)
    unpublished: set[Reservation] = field(default_factory=set)

    @classmethod
    def from_config(cls, config: BasebackupCacheConfig) -> Accounting:
        """Empty accounting with the limits of `config`."""
        total = config.max_total_size_bytes
        return cls(
            max_entries=config.max_size_entries,
            max_size_bytes=total,
            max_entry_size_bytes=min(config.max_entry_size_bytes or total, total),
            max_unpublished_size_bytes=config.max_unpublished_size_bytes,
        )

    @property
    def total_count(self) -> int:
        """Files that count against `max_entries`."""
        building = sum([each.charged_slots for each in self.reservations.values()])
        nonentries = len(self.foreign_files.sizes) + len(self.doomed.sizes)
        return self.entry_count + nonentries + building

    @property
    def total_size_bytes(self) -> int:
        """Bytes that count against `max_size_bytes`."""
        building = sum([each.charged_bytes for each in self.reservations.values()])
        return self.entries_size_bytes + self.nonentry_bytes + building

    @property
    def nonentry_bytes(self) -> int:
        """Bytes of foreign files, doomed files and quarantine; safe without a lock."""
        return self.foreign_files.size_bytes + self.doomed.size_bytes + self.quarantine.size_bytes

    @property
    def unpublished_bytes(self) -> int:
        """Bytes that count against `max_unpublished_size_bytes`; safe without a lock."""
        return sum([each.size_bytes for each in list(self.unpublished) if each.is_held])

    def check_slot(self) -> None:
        """Check that a new entry would find a slot, and a byte, now.

        Raises:
            CacheFullError: it would not.
        """
        if self.total_count >= self.max_entries:
            raise CacheFullError(
                f"the cache is full: {self.total_count} of max_size_entries {self.max_entries}"
            )
        if self.total_size_bytes >= self.max_size_bytes:
            raise self._no_bytes(1)

    def reserve(self, key: bytes, credit_bytes: int | None) -> Reservation:
        """Take the slot of an archive about to be built.

        Raises:
            CacheFullError: there is no slot, or not one byte, for a new entry. A
                refresh always gets its reservation.
        """
        if credit_bytes is None:
            self.check_slot()
        self.reservations[key] = reservation = Reservation(key, credit_bytes)
        return reservation

    def grow(self, reservation: Reservation, size_bytes: int) -> None:
        """Take room for `size_bytes` more before they are written, all or nothing.

        Raises:
            EntryTooBigError: the archive passes the limit of one entry.
            CacheFullError: the archive does not fit into the rest of the total.
        """
        if reservation.is_unpublished:
            self._check_unpublished(size_bytes)
        else:
            self._check_entry(reservation, size_bytes)
        reservation.size_bytes += size_bytes

    def unpublish(self, reservation: Reservation) -> None:
        """Count the build as one that is not published.

        Raises:
            CacheFullError: there is no room for that; nothing has changed.
        """
        self._check_unpublished(reservation.size_bytes)
        # What finalisers have let go of is settled here.
        held = {each for each in self.unpublished if each.is_held}
        self._close(reservation)
        reservation.is_unpublished = True
        self.unpublished = held | {reservation}

    def release(self, reservation: Reservation) -> None:
        """End the build; harmless twice. What is not published counts while a file is open."""
        self._close(reservation)
        reservation.let_go(_BUILD)

    def may_lose_credit(self, reservation: Reservation) -> bool:
        """Whether both limits have room for what the credit covers now."""
        if reservation.credit_bytes is None:
            return True
        covered_bytes = reservation.size_bytes - reservation.charged_bytes
        if covered_bytes and self.total_size_bytes + covered_bytes > self.max_size_bytes:
            return False
        return self.total_count < self.max_entries

    def _close(self, reservation: Reservation) -> None:
        if self.reservations.get(reservation.key) is reservation:
            del self.reservations[reservation.key]

    def _check_entry(self, reservation: Reservation, size_bytes: int) -> None:
        size_after = reservation.size_bytes + size_bytes
        if size_after > self.max_entry_size_bytes:
            raise EntryTooBigError(
                f"the archive has more than {self.max_entry_size_bytes} bytes, "
                "the limit of one entry"
            )
        charge = max(0, size_after - (reservation.credit_bytes or 0)) - reservation.charged_bytes
        if charge > 0 and self.total_size_bytes + charge > self.max_size_bytes:
            raise self._no_bytes(charge)

    def _check_unpublished(self, size_bytes: int) -> None:
        held_bytes = self.unpublished_bytes
        if held_bytes + size_bytes > self.max_unpublished_size_bytes:
            raise CacheFullError(
                f"archives that are not published have no room: {held_bytes} + {size_bytes} "
                f"bytes exceed max_unpublished_size_bytes {self.max_unpublished_size_bytes}\n"
                "hint: Raise that limit, or close archives sooner."
            )

    def _no_bytes(self, wanted_bytes: int) -> CacheFullError:
        return CacheFullError(
            f"the cache is full: {self.total_size_bytes} + {wanted_bytes} bytes exceed "
            f"max_total_size_bytes {self.max_size_bytes}"
        )
