"""The one ledger of a cache: every byte and file that counts, and the limits.

Arithmetic only, without lock and without I/O. `bbcache.storage.index.Index` owns the ledger,
and the lock under which it changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bbcache.errors import CacheFullError, EntryTooBigError

if TYPE_CHECKING:
    from bbcache.config import BasebackupCacheConfig

_BUILD: Final = object()  # holds a reservation until its build ends


class Files:
    """Files of one kind, and the sum of their sizes. Not thread-safe.

    Attributes:
        sizes: size in bytes of each file, by path.
        size_bytes: sum of the sizes; one read of memory, safe without a lock.
    """

    __slots__ = ("size_bytes", "sizes")

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.size_bytes = 0

    def put(self, path: str, size_bytes: int) -> None:
        """Count the file at a path, instead of an earlier one there."""
        self.drop(path)
        self.sizes[path] = size_bytes
        self.size_bytes += size_bytes

    def drop(self, path: str) -> None:
        """Stop counting the file at a path, if it is counted."""
        self.size_bytes -= self.sizes.pop(path, 0)

    def replace(self, sizes: dict[str, int]) -> None:
        """Count these files and no others."""
        self.sizes = sizes
        self.size_bytes = sum(sizes.values())


class Reservation:
    """The room of one build, and of its archive if that is not published.

    An unpublished archive counts as long as the build or an open file holds it. `hold` and
    `let_go` are thread-safe and take no lock: the garbage collector may close a file at any
    point. Only `Accounting` and `Index` change the rest.

    Attributes:
        key: tenant and timeline ids, 32 bytes.
        credit_bytes: size of the entry that the archive will replace, kept up to date while
            the build runs; None if the timeline has no entry. Bytes beyond it are charged.
        size_bytes: bytes written or about to be written.
        is_unpublished: the archive will not be published, and counts against
            `max_unpublished_size_bytes` only.
        may_evict: whether entries may be evicted for it.
    """

    __slots__ = ("_holders", "credit_bytes", "is_unpublished", "key", "may_evict", "size_bytes")

    def __init__(self, key: bytes, credit_bytes: int | None = None) -> None:
        self.key = key
        self.credit_bytes = credit_bytes
        self.size_bytes = 0
        self.is_unpublished = False
        self.may_evict = False
        self._holders: set[object] = {_BUILD}  # changed by single atomic steps only

    @property
    def charged_bytes(self) -> int:
        """Bytes of this build that count against `max_total_size_bytes`."""
        if self.credit_bytes is None:
            return self.size_bytes
        return max(0, self.size_bytes - self.credit_bytes)

    def charge_of(self, size_bytes: int) -> int:
        """Bytes that `size_bytes` more would add to `charged_bytes`."""
        credit_bytes = self.credit_bytes or 0
        after_bytes = self.size_bytes + size_bytes
        return max(0, after_bytes - max(self.size_bytes, credit_bytes))

    @property
    def charged_slots(self) -> int:
        """1 for a new entry, 0 for the refresh of one."""
        return 1 if self.credit_bytes is None else 0

    @property
    def is_held(self) -> bool:
        """Whether the build or an open file keeps the bytes on disk; one read of memory."""
        return bool(self._holders)

    def hold(self, holder: object) -> None:
        """Count the bytes until `holder`, a hashable object, lets go of them."""
        self._holders.add(holder)

    def let_go(self, holder: object) -> None:
        """Undo `hold`; harmless twice."""
        self._holders.discard(holder)


class Accounting:
    """What the cache holds, and what it may still take. Not thread-safe.

    Totals are computed from the facts below each time they are read. Only the sums of entries
    and of `Files` are kept.

    Args:
        config: has the limits.

    Attributes:
        entry_count: published entries.
        entries_size_bytes: their bytes.
        foreign_files: files in the directory that the cache did not make, by name.
        doomed: entry and temporary files that the cache is removing, or could not remove.
        quarantine: bad archives kept for inspection; only their bytes count.
        reservations: of the builds that may be published, at most one per timeline.
        unpublished: of all other builds, and of their archives while they are open.
        habits_bytes: of the file of saved habits, also while it is written.
    """

    def __init__(self, config: BasebackupCacheConfig) -> None:
        self.entry_count = 0
        self.entries_size_bytes = 0
        self.foreign_files = Files()
        self.doomed = Files()
        self.quarantine = Files()
        self.reservations: dict[bytes, Reservation] = {}
        self.unpublished: set[Reservation] = set()
        self.habits_bytes = 0
        self.set_limits(config)

    def set_limits(self, config: BasebackupCacheConfig) -> None:
        """Keep to these limits from now on; clean-up removes what is beyond them."""
        self._max_entries = config.max_size_entries
        self._max_size_bytes = total = config.max_total_size_bytes
        self._max_entry_size_bytes = min(config.max_entry_size_bytes or total, total)
        self._max_unpublished_bytes = config.max_unpublished_size_bytes

    @property
    def total_count(self) -> int:
        """Files that count against `max_size_entries`."""
        building = sum([each.charged_slots for each in self.reservations.values()])
        nonentries = len(self.foreign_files.sizes) + len(self.doomed.sizes)
        return self.entry_count + nonentries + building

    @property
    def total_size_bytes(self) -> int:
        """Bytes that count against `max_total_size_bytes`."""
        total = self.entries_size_bytes + self.nonentry_bytes
        for each in self.reservations.values():
            total += each.charged_bytes
        return total

    @property
    def nonentry_bytes(self) -> int:
        """Bytes of all files that are no entries; safe without a lock."""
        files = self.foreign_files.size_bytes + self.doomed.size_bytes + self.quarantine.size_bytes
        return files + self.habits_bytes

    @property
    def unpublished_bytes(self) -> int:
        """Bytes that count against `max_unpublished_size_bytes`; safe without a lock."""
        return sum([each.size_bytes for each in list(self.unpublished) if each.is_held])

    def excess(self, files: int = 0, size_bytes: int = 0) -> tuple[int, int]:
        """By how many files and bytes the limits would be passed with so many more; 0 if not."""
        files += self.total_count - self._max_entries
        size_bytes += self.total_size_bytes - self._max_size_bytes
        return max(0, files), max(0, size_bytes)

    def check_slot(self) -> None:
        """Check that there is a slot, and at least one byte, for a new entry.

        Raises:
            CacheFullError: there is not.
        """
        if self.total_count >= self._max_entries:
            raise CacheFullError(
                f"the cache is full: {self.total_count} of max_size_entries {self._max_entries}"
            )
        self._check_total(1)

    def reserve(self, key: bytes, credit_bytes: int | None) -> Reservation:
        """Take the slot of an archive that is about to be built.

        Raises:
            CacheFullError: a new entry has no slot or no byte. A refresh always succeeds.
        """
        if credit_bytes is None:
            self.check_slot()
        self.reservations[key] = reservation = Reservation(key, credit_bytes)
        return reservation

    def grow(self, reservation: Reservation, size_bytes: int) -> None:
        """Take room for `size_bytes` more before they are written, all or nothing.

        Raises:
            EntryTooBigError: the archive passes the limit of one entry.
            CacheFullError: the archive passes the limit of all.
        """
        size_after = reservation.size_bytes + size_bytes
        if reservation.is_unpublished:
            self._check_unpublished(size_bytes)
        elif size_after > self._max_entry_size_bytes:
            raise EntryTooBigError(
                f"the archive has more than {self._max_entry_size_bytes} bytes, "
                "the limit of one entry"
            )
        else:
            self._check_total(reservation.charge_of(size_bytes))
        reservation.size_bytes = size_after

    def unpublish(self, reservation: Reservation) -> None:
        """Count the build as one that is not published.

        Raises:
            CacheFullError: there is no room for that; nothing has changed.
        """
        self._check_unpublished(reservation.size_bytes)
        held = {each for each in self.unpublished if each.is_held}  # forget closed archives
        self._close(reservation)
        reservation.is_unpublished = True
        self.unpublished = held | {reservation}

    def release(self, reservation: Reservation) -> None:
        """End the build; harmless twice. An unpublished archive counts while a file is open."""
        self._close(reservation)
        reservation.let_go(_BUILD)

    def _close(self, reservation: Reservation) -> None:
        if self.reservations.get(reservation.key) is reservation:
            del self.reservations[reservation.key]

    def _check_total(self, size_bytes: int) -> None:
        if size_bytes > 0 and self.total_size_bytes + size_bytes > self._max_size_bytes:
            raise CacheFullError(
                f"the cache is full: {self.total_size_bytes} + {size_bytes} bytes exceed "
                f"max_total_size_bytes {self._max_size_bytes}"
            )

    def _check_unpublished(self, size_bytes: int) -> None:
        if self.unpublished_bytes + size_bytes > self._max_unpublished_bytes:
            raise CacheFullError(
                "archives that are not published have no room: "
                f"{self.unpublished_bytes} + {size_bytes} bytes exceed "
                f"max_unpublished_size_bytes {self._max_unpublished_bytes}\n"
                "hint: Raise that limit, or close archives sooner."
            )
