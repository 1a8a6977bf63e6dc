"""The policy of eviction under its lock, told of starts and of changes of the index.

No hit and no miss takes the lock: a `get` appends to one queue, the index to another. Both are
taken out before the policy decides anything.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

from bbcache.eviction import Never, Oldest, ReturnRate
from bbcache.history import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bbcache.config import BasebackupCacheConfig
    from bbcache.eviction import Policy
    from bbcache.pacer import Pacer
    from bbcache.storage.files import Store
    from bbcache.storage.index import Entry, Index

# Time of a `get`, in seconds since the epoch, and key; the rest is not used.
Start: TypeAlias = tuple[float, bytes] | Record
_MOST_STARTS: Final = 100_000  # between two looks; the oldest of more are forgotten

log = logging.getLogger(__name__)


class LockedPolicy:
    """Knows what to keep. Thread-safe.

    Args:
        config: the limits and the name of the policy.
        index: has the entries, and the queue of their changes.
        store: has the files; the time of a file stands for a stop that was not seen.

    Attributes:
        note_start: appends the time and the key of a `get`, also of a miss; None if no policy
            wants to know. Takes no lock.
        is_ranking: whether the policy ranks entries: not before the cache is nearly full.
        has_news: whether something was learned since this was last set to False.
    """

    def __init__(self, config: BasebackupCacheConfig, index: Index, store: Store) -> None:
        self._config = config
        self._index = index
        self._store = store
        self._starts: deque[Start] = deque(maxlen=_MOST_STARTS)
        self.note_start = None if config.eviction == "none" else self._starts.append
        self._lock = threading.RLock()  # guards the next nine; memory only; before the index's
        self._policy = self._make()
        self._is_broken = False
        self._pinned: frozenset[bytes] = frozenset()
        self._refreshed: set[bytes] = set()
        self.is_ranking = False
        self._load_count = 1  # how often all entries of the index were replaced
        self._completed_count = 0  # the replacements that `complete` has told the policy of
        self._early_starts: dict[bytes, float] = {}  # of entries that the policy does not know
        self.has_news = False

    @property
    def evicts(self) -> bool:
        """Whether an entry may be evicted for a newcomer."""
        return self._config.eviction != "none"

    def pinned_count(self) -> int:
        """How many entries are pinned."""
        return sum([self._index.newest(key) is not None for key in self._pinned])

    @contextmanager
    def asked(self) -> Iterator[tuple[Policy, float]]:
        """Hold the lock for a few calls of the policy, which is up to date.

        If an interrupt breaks the calls off, the policy is made again from what it has learned.

        Returns:
            The policy, and the current time.
        """
        with self._lock:
            is_done = False
            if self._is_broken:
                self._make_again_locked()
            try:
                self._take_out_locked()
                yield self._policy, time.time()
                is_done = True
            finally:
                self._is_broken = not is_done

    def set_limits(self, config: BasebackupCacheConfig) -> None:
        """Keep to other limits from now on; the policy stays the same."""
        with self.asked() as (policy, _):
            policy.set_limits(config.max_size_entries, config.max_total_size_bytes)
            self._config = config

    def pin(self, keys: frozenset[bytes]) -> None:
        """Spare these entries, and no others, from eviction."""
        with self.asked() as (policy, _):
            for key in self._pinned.difference(keys, self._refreshed):
                policy.unspare(key)
            for key in keys:
                policy.spare(key)
            self._pinned = keys

    def begin_refresh(self, key: bytes) -> None:
        """Spare the entry of a timeline from eviction while its next one is built."""
        with self.asked() as (policy, _):
            self._refreshed.add(key)
            policy.spare(key)

    def end_refresh(self, key: bytes) -> None:
        """Undo `begin_refresh`; harmless without it."""
        if key in self._refreshed:  # one read of memory
            with self.asked() as (policy, _):
                self._refreshed.discard(key)
                if key not in self._pinned:
                    policy.unspare(key)

    def load(self, data: bytes) -> bool:
        """Take saved habits. Damaged ones are logged and ignored; returns False then."""
        with self._lock:
            is_taken = not data or self._policy.load(data, time.time())
        if not is_taken:
            log.warning(
                "the saved habits are damaged or of another version; nothing is lost but what "
                "was learned"
            )
        return is_taken

    def complete(self, pacer: Pacer) -> None:
        """Tell the policy of entries that it does not know, the oldest file first.

        The first call makes the policy rank entries, which takes half a kilobyte for each: a
        cache that never becomes full does without.

        Args:
            pacer: pauses for reads.
        """
        while True:
            with self.asked() as (policy, _):
                self.is_ranking = True
                load_count = self._load_count
                if self._completed_count == load_count:
                    return
                known = set(policy.held_keys())
            entries = self._index.by_key()
            with self.asked() as (policy, _):
                for key in known.difference(entries):
                    policy.dropped(key)
            found: list[tuple[float, Entry]] = []
            for key, entry in pacer.paced(entries.items()):
                written_s = None if key in known else self._store.written_s(key, entry.lsn)
                if written_s is not None:
                    found.append((written_s, entry))
            found.sort(key=lambda each: each[0])
            for written_s, entry in pacer.paced(found):
                with self.asked() as (policy, now_s):
                    if self._index.newest(entry.key) is entry:  # else its change is in the queue
                        self._tell_locked(entry, min(written_s, now_s), now_s)
            with self.asked():
                self._completed_count = max(self._completed_count, load_count)

    def _tell_locked(self, entry: Entry, written_s: float, now_s: float) -> None:
        """Tell the policy of an entry, and of its start if that came first."""
        started_s = self._early_starts.pop(entry.key, None)
        if started_s is not None and self._policy.habits(entry.key, now_s) is not None:
            started_s = None  # it has stopped since
        self._policy.found(entry.key, entry.size_bytes, written_s, now_s)
        if started_s is not None:
            self._policy.started(entry.key, started_s)

    def _make(self) -> Policy:
        limits = self._config.max_size_entries, self._config.max_total_size_bytes
        match self._config.eviction:
            case "return-rate":
                return ReturnRate(*limits)
            case "oldest":
                return Oldest(*limits)
        return Never(*limits)

    def _make_again_locked(self) -> None:
        data = self._policy.save()
        self._policy = self._make()
        self._policy.load(data, time.time())
        for key in self._pinned.union(self._refreshed):
            self._policy.spare(key)
        self._load_count += 1

    def _take_out_locked(self) -> None:
        policy, starts, changes = self._policy, self._starts, self._index.changes
        first_starts: dict[bytes, float] = {}
        for _ in range(len(starts)):  # not those that hits add meanwhile: that may never end
            now_s, key, *_ = starts.popleft()
            policy.started(key, now_s)
            first_starts.setdefault(key, now_s)
            self.has_news = True
        self._note_early_locked(first_starts)
        while changes:
            change = changes.popleft()
            if change is None:
                self._load_count += 1
                continue
            key, size_bytes = change
            self._early_starts.pop(key, None)
            if size_bytes is not None:
                policy.held(key, size_bytes)
                self.has_news = True
            if size_bytes is None or not self.is_ranking:
                policy.dropped(key)

    def _note_early_locked(self, first_starts: dict[bytes, float]) -> None:
        """Remember the starts of entries of which the policy may know nothing yet."""
        if self._completed_count == self._load_count:
            return
        for key, started_s in first_starts.items():
            if key not in self._early_starts and self._index.newest(key) is not None:
                self._early_starts[key] = started_s
