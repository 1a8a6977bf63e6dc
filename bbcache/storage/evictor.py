"""Makes room in a full cache: evicts the entries that the policy chooses."""

from __future__ import annotations

import errno
import logging
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bbcache.errors import CacheFullError, DeclinedError, LimitError, LowDiskError
from bbcache.explanation import Standing
from bbcache.outcomes import RemovalReason
from bbcache.storage.disk_errors import disk_step, hint_for
from bbcache.storage.disk_space import missing_bytes
from bbcache.storage.files import try_unlink
from bbcache.storage.index import split_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bbcache.config import BasebackupCacheConfig
    from bbcache.history import History
    from bbcache.metrics import Metrics
    from bbcache.pacer import Pacer
    from bbcache.storage.accounting import Reservation
    from bbcache.storage.catalog import Catalog
    from bbcache.storage.files import Store
    from bbcache.storage.index import Entry, Index
    from bbcache.storage.locked_policy import LockedPolicy
    from bbcache.storage.pins import Pins

_MOST_PER_STEP: Final = 1000  # entries that one clean-up evicts, or a tenth of all
_MOST_PLANS: Final = 16  # for one piece of room, if other builds take what was freed for it

log = logging.getLogger(__name__)


class _RefusedError(CacheFullError):
    """An entry could not be removed.

    Attributes:
        failure: the cause.
    """

    def __init__(self, entry: Entry, failure: OSError) -> None:
        super().__init__(
            f"cannot evict {entry}: {failure.strerror}; nothing is evicted before the next clean-up"
        )
        self.failure = failure


@dataclass(eq=False)
class Evictor:
    """Takes room for builds, and evicts entries for it. Thread-safe.

    Attributes:
        config: the limits.
        index: the entries and the ledger.
        store: the files.
        catalog: has the file lock.
        policy: chooses the entries to evict.
        pins: the entries that are never evicted.
        metrics: counts evictions.
        history: records evictions.
        pacer: pauses clean-up for reads.
    """

    config: BasebackupCacheConfig
    index: Index
    store: Store
    catalog: Catalog
    policy: LockedPolicy
    pins: Pins
    metrics: Metrics
    history: History
    pacer: Pacer

    def __post_init__(self) -> None:
        # One plan at a time; taken first, and held while files are removed.
        self._making_room = threading.RLock()
        self._is_blocked = False  # an entry could not be removed; set by any thread

    def set_limits(self, config: BasebackupCacheConfig) -> None:
        """Keep to other limits from now on; the next clean-ups shrink the cache to them.

        Args:
            config: has the limits; its other settings are ignored.
        """
        self.config = config = self.config.with_limits_of(config)
        self.index.set_limits(config)
        self.policy.set_limits(config)
        self.pins.set_limits(config)

    def check_possible(self, key: bytes) -> None:
        """Check, before a build waits for its LSN, that it may find room.

        Raises:
            CacheFullError: it does not.
        """
        if not self.policy.evicts:
            self.index.check_room(key)

    def check_free(self, key: bytes) -> None:
        """Check that an archive finds room without an eviction.

        Raises:
            DeclinedError: it does not.
            LowDiskError: the disk has too little free space.
            StoreError: the file system does not say how much is free.
        """
        if self.index.newest(key) is not None:
            return
        self._check_disk()
        with self.policy.asked() as (policy, _):
            planned_bytes = policy.planned_size_bytes(key)
        if any(self.index.excess(1, planned_bytes)):
            raise DeclinedError(
                f"the cache has no room for some {planned_bytes} bytes, and a warm-up alone evicts "
                "nothing"
            )

    def reserve(self, key: bytes, *, is_stop: bool, may_evict: bool) -> Reservation:
        """Take the slot for a build, and evict entries for the size that it will have.

        Args:
            key: the timeline.
            is_stop: whether the timeline has just stopped.
            may_evict: whether entries may be evicted for it.

        Raises:
            CacheFullError: there is no room for a new entry. A refresh always succeeds.
            StoreError: the file system does not say how much is free.
        """
        with self.policy.asked() as (policy, now_s):
            planned_bytes = policy.planned_size_bytes(key)
            if is_stop:
                policy.stopped(key, now_s, planned_bytes)
        if planned_bytes > self._most_bytes():  # it was too big, and would evict in vain
            planned_bytes, may_evict = 1, False
        reservation = self._reserve(key, planned_bytes, may_evict=may_evict)
        reservation.may_evict = may_evict
        return reservation

    def _reserve(self, key: bytes, planned_bytes: int, *, may_evict: bool) -> Reservation:
        if self.index.newest(key) is not None:
            self.policy.begin_refresh(key)
            with suppress(CacheFullError):  # the entry is gone since
                return self.index.reserve(key)
            self.policy.end_refresh(key)
        self._check_disk()
        if not self.policy.evicts:
            return self.index.reserve(key)
        for _ in range(_MOST_PLANS):
            if self.index.excess(1, planned_bytes) == (0, 0):
                with suppress(CacheFullError):  # another build was faster
                    return self.index.reserve(key)
            self._make_room(key, 1, planned_bytes, may_evict=may_evict, is_refresh=False)
        raise CacheFullError("the cache is full: other builds take the room that is made")

    def grow(self, reservation: Reservation, size_bytes: int) -> None:
        """Take room for more bytes before they are written, and evict entries for it.

        Raises:
            EntryTooBigError: the archive passes the limit of one entry.
            CacheFullError: there is no room.
        """
        for _ in range(_MOST_PLANS):
            try:
                with self.index.lock:
                    self.index.accounting.grow(reservation, size_bytes)
            except LimitError as error:
                is_full = isinstance(error, CacheFullError)
                if reservation.is_unpublished or (is_full and not self.policy.evicts):
                    raise
                with self.policy.asked() as (policy, _):
                    policy.grown(reservation.key, reservation.size_bytes + size_bytes)
                if not is_full:
                    raise
            else:
                return
            with self.index.lock:
                charge_bytes = reservation.charge_of(size_bytes)
            is_refresh, may_evict = reservation.credit_bytes is not None, reservation.may_evict
            self._make_room(
                reservation.key, 0, charge_bytes, may_evict=may_evict, is_refresh=is_refresh
            )
        raise CacheFullError("the cache is full: other builds take the room that is made")

    def release(self, reservation: Reservation) -> None:
        """End a build. An unpublished archive counts until its last file is closed."""
        with self.index.lock:
            self.index.accounting.release(reservation)
        self.policy.end_refresh(reservation.key)

    def step(self) -> None:
        """Shrink the cache to its limits, and to the space that the disk has: a bounded part.

        Nothing is evicted before the host has said once what is pinned.

        Raises:
            OSError: the file system does not say how much is free.
        """
        self._is_blocked = False
        if not self.pins.are_known:
            return
        is_over = any(self.index.excess()) or self._missing_bytes() > 0
        if is_over or (self.policy.evicts and self._is_nearly_full()):
            self.policy.complete(self.pacer)  # before the first newcomer has to wait for it
        if not is_over:
            return
        most = max(_MOST_PER_STEP, self.index.accounting.entry_count // 10)
        most -= self._shrink(self.index.excess, RemovalReason.OVER_LIMIT, most)
        self._shrink(self._disk_deficit, RemovalReason.LOW_DISK, most)
        self._missing_bytes()

    def standing(self, key: bytes) -> Standing:
        """The score and rank that the policy gives a timeline."""
        with self.policy.asked() as (policy, now_s):
            is_pinned, is_held = key in self.pins.keys, self.index.newest(key) is not None
            is_ranked = self.policy.is_ranking and is_held and not is_pinned
            return Standing(
                score=policy.score(key, now_s) if self.policy.is_ranking else None,
                lowest_score=policy.lowest_score(now_s) if self.policy.is_ranking else None,
                rank=policy.rank(key, now_s) if is_ranked else None,
                is_pinned=is_pinned,
                is_pin_refused=key in self.pins.refused,
                habits=policy.habits(key, now_s),
            )

    def _is_nearly_full(self) -> bool:
        limits = self.config.max_size_entries, self.config.max_total_size_bytes
        return any(self.index.excess(*[max(1, limit // 10) for limit in limits]))

    def _most_bytes(self) -> int:
        total = self.config.max_total_size_bytes
        return min(self.config.max_entry_size_bytes or total, total)

    def _missing_bytes(self) -> int:
        missing = missing_bytes(self.store.data_dir, self.config.min_free_disk_bytes)
        self.metrics.free_disk_deficit_bytes.set(missing)
        return missing

    def _check_disk(self) -> None:
        with disk_step("examine the file system of", self.store.data_dir):
            missing = self._missing_bytes()
        if missing:
            raise LowDiskError(
                f"the file system of {self.store.data_dir} has {missing} bytes less free space "
                "than min_free_disk_bytes\nhint: Free space, or lower min_free_disk_bytes."
            )

    def _make_room(
        self, key: bytes, files: int, size_bytes: int, *, may_evict: bool, is_refresh: bool
    ) -> None:
        """Remove quarantined archives, then entries, until so much more fits.

        Raises:
            CacheFullError: it cannot fit; `DeclinedError` if each entry is worth more.
        """
        if may_evict and not self.pins.are_known:
            raise CacheFullError("the cache is full, and the host does not say yet what is pinned")
        with self._reporting(RemovalReason.NEWCOMER, key) as evicted, self._making_room:
            self.policy.complete(self.pacer)
            if self._is_blocked:
                raise CacheFullError(
                    "the cache is full: an entry could not be removed, so nothing is evicted "
                    "before the next clean-up"
                )
            if any(self.index.excess()):
                raise CacheFullError("the cache is over its limits until clean-up has shrunk it")
            while self.index.excess(0, size_bytes)[1]:
                if not self.catalog.drop_oldest_quarantined():
                    break
            needed = self.index.excess(files, size_bytes)
            for victim in self._plan(key, *needed, may_evict=may_evict, is_refresh=is_refresh):
                self._evict(victim, evicted)

    def _plan(
        self, key: bytes, files: int, size_bytes: int, *, may_evict: bool, is_refresh: bool
    ) -> list[bytes]:
        if not (files or size_bytes):
            return []
        with self.policy.asked() as (policy, now_s):
            victims = policy.cheaper(key, files, size_bytes, now_s) if may_evict else None
            lowest = policy.lowest(files, size_bytes, now_s) if victims is None else []
        if victims is not None:
            return victims
        freed_bytes = sum([self._size_bytes(each) for each in lowest])
        if len(lowest) < files or freed_bytes < size_bytes:
            raise CacheFullError(
                f"the cache is full: {files} files and {size_bytes} bytes must go, but nothing "
                "more can be evicted"
            )
        if is_refresh and may_evict:
            return lowest
        raise DeclinedError("the cache is full of entries that are more likely to be asked for")

    def _size_bytes(self, key: bytes) -> int:
        entry = self.index.newest(key)
        return 0 if entry is None else entry.size_bytes

    @contextmanager
    def _reporting(self, reason: RemovalReason, newcomer: bytes | None) -> Iterator[list[Entry]]:
        """Give a list for evicted entries, and count and log them after the locks of the block."""
        evicted: list[Entry] = []
        try:
            yield evicted
        except _RefusedError as refusal:
            self.metrics.eviction_failures.inc()
            log.warning("%s%s", refusal, hint_for(refusal.failure))
            raise
        finally:
            what = "" if newcomer is None else f"the basebackup of {split_key(newcomer)}"
            for entry in evicted:
                self.metrics.removals[reason].inc()
                self.history.add(entry.key, entry.lsn, reason, what)
                log.info("%s: %s", entry, reason.text)

    def _evict(self, key: bytes, evicted: list[Entry]) -> None:
        """Remove the file of an entry, then the entry; if that fails, the entry stays.

        Raises:
            CacheFullError: the file could not be removed.
        """
        entry = self.index.newest(key)
        if entry is None:
            return
        path = self.store.path_of(key, entry.lsn)
        with self.catalog.changing() as may_change:
            if self.index.newest(key) is not entry:
                return
            failure = try_unlink(path) if may_change else OSError(errno.EROFS, "read-only", path)
            if failure is None:
                self.index.remove(entry)
                evicted.append(entry)
                return
        self._is_blocked = True
        raise _RefusedError(entry, failure)

    def _disk_deficit(self) -> tuple[int, int]:
        return 0, self._missing_bytes()

    def _shrink(
        self, excess: Callable[[], tuple[int, int]], reason: RemovalReason, most: int
    ) -> int:
        """Remove quarantined archives, then the least of the entries, for an excess.

        Returns:
            How many entries were evicted, at most `most`.
        """
        while excess()[1] and self.catalog.drop_oldest_quarantined():
            pass
        files, size_bytes = excess()
        if not (files or size_bytes):
            return 0
        with self.policy.asked() as (policy, now_s):
            victims = policy.lowest(files, size_bytes, now_s)[:most]
        if self._is_blocked:
            return 0
        with suppress(_RefusedError), self._reporting(reason, None) as evicted:
            for victim in self.pacer.paced(victims):
                self._evict(victim, evicted)
        return len(evicted)
