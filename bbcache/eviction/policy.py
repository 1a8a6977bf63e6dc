"""What every policy of eviction does, and the part that they share: a ranking of entries."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bbcache.eviction.habits import Habits


class Policy(Protocol):
    """Says what a full cache keeps. Not thread-safe; takes no lock, no I/O and no clock.

    Times are in seconds since the epoch, and never go back by much. A key is 32 bytes: the ids
    of tenant and timeline.
    """

    def stopped(self, key: bytes, now_s: float, size_bytes: int) -> None:
        """Note that an archive of the timeline could be made now.

        Args:
            key: the timeline.
            now_s: the time.
            size_bytes: of the archive; `planned_size_bytes` if it is not known yet.
        """
        ...

    def started(self, key: bytes, now_s: float) -> None:
        """Note the first `get` after a stop, also a miss; the archive is of no more use."""
        ...

    def held(self, key: bytes, size_bytes: int) -> None:
        """Note that the timeline's archive was published."""
        ...

    def grown(self, key: bytes, size_bytes: int) -> None:
        """Note that a timeline's archive, which is built, has more bytes than were planned."""
        ...

    def found(self, key: bytes, size_bytes: int, stopped_s: float, now_s: float) -> None:
        """Note an archive that was there before; harmless for one that is known.

        Args:
            key: the timeline.
            size_bytes: the size of the archive.
            stopped_s: when the timeline stopped, if the policy does not know better.
            now_s: the time.
        """
        ...

    def dropped(self, key: bytes) -> None:
        """Note that the timeline has no archive any more, for whatever reason."""
        ...

    def held_keys(self) -> list[bytes]:
        """The timelines that have an archive."""
        ...

    def spare(self, key: bytes) -> None:
        """Spare the timeline's archive from eviction."""
        ...

    def unspare(self, key: bytes) -> None:
        """Make it a candidate again."""
        ...

    def score(self, key: bytes, now_s: float) -> float:
        """The worth of the timeline's archive; archives with higher scores are kept."""
        ...

    def lowest_score(self, now_s: float) -> float | None:
        """The score of the archive that is evicted next; None without a candidate."""
        ...

    def rank(self, key: bytes, now_s: float) -> int:
        """How many archives are evicted before the timeline's."""
        ...

    def victims(self, newcomer: bytes, size_bytes: int, now_s: float) -> list[bytes] | None:
        """Choose the archives that make room for another one within the limits; see `cheaper`."""
        ...

    def cheaper(
        self, newcomer: bytes, files: int, size_bytes: int, now_s: float
    ) -> list[bytes] | None:
        """Choose the archives to drop for another one. Changes nothing.

        Args:
            newcomer: the timeline of the other one, which `stopped` was told of.
            files: how many must go at least.
            size_bytes: how many bytes must go at least.
            now_s: the time.

        Returns:
            As few as possible, all worth less than the newcomer; None if there are not enough.
        """
        ...

    def lowest(self, files: int, size_bytes: int, now_s: float) -> list[bytes]:
        """The archives that go next: enough for so many files and bytes, as far as they reach."""
        ...

    def habits(self, key: bytes, now_s: float) -> Habits | None:
        """The timeline's habits in numbers; None for an unknown timeline."""
        ...

    def planned_size_bytes(self, key: bytes) -> int:
        """The size to plan for: of the timeline's last archive, else the mean of all."""
        ...

    def set_limits(self, max_entries: int | None, max_size_bytes: int | None) -> None:
        """Keep to other limits from now on; None for no limit."""
        ...

    def save(self) -> bytes:
        """All that was learned, as bytes."""
        ...

    def load(self, data: bytes, now_s: float) -> bool:
        """Take what `save` has returned; False, and nothing is taken, if it is damaged."""
        ...


class Ranked:
    """An archive that is held, or may be.

    Attributes:
        key: the timeline.
        size_bytes: the size of the archive, or the size that is planned for.
        level: in the ranking; -1 if it is not a candidate.
    """

    __slots__ = ("key", "level", "size_bytes")

    def __init__(self, key: bytes, size_bytes: int) -> None:
        self.key = key
        self.size_bytes = size_bytes
        self.level = -1


class Ranking:
    """The candidates for eviction by level, the least worth first. Every change takes O(1).

    In a level the archive that entered first is evicted first. A level is an ordered dict: a
    search for the first item of a dict passes all that were removed before it.

    Attributes:
        count: archives that are held, candidates or not.
        size_bytes: their bytes.
    """

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0
        self._levels: dict[int, OrderedDict[bytes, Ranked]] = {}
        self._used = 0  # bit n is set if level n is not empty
        self._spared: set[bytes] = set()

    def spare(self, item: Ranked | None, key: bytes) -> None:
        """Spare a timeline's archive from eviction, also one that is published later."""
        self._spared.add(key)
        if item is not None:
            self.drop(item)

    def unspare(self, key: bytes) -> bool:
        """Undo `spare`, but do not rank the archive again; False if it was not spared."""
        is_spared = key in self._spared
        self._spared.discard(key)
        return is_spared

    def put(self, item: Ranked, level: int) -> None:
        """Add a candidate, or move it to another level."""
        if item.level == level or item.key in self._spared:
            return
        if item.level >= 0:
            self.drop(item)
        item.level = level
        items = self._levels.get(level)
        if items is None:
            self._levels[level] = items = OrderedDict()
            self._used |= 1 << level
        items[item.key] = item

    def drop(self, item: Ranked) -> None:
        """Take out a candidate, if it is one."""
        level, item.level = item.level, -1
        if level >= 0:
            items = self._levels[level]
            del items[item.key]
            if not items:
                del self._levels[level]
                self._used ^= 1 << level

    def first(self) -> Ranked | None:
        """The candidate that goes next."""
        used = self._used
        if not used:
            return None
        return next(iter(self._levels[(used & -used).bit_length() - 1].values()))

    def below(self, level: int, files: int, size_bytes: int) -> list[bytes] | None:
        """The fewest candidates below a level that free so many files and bytes.

        Returns:
            None if all of them are not enough.
        """
        if files <= 1 and size_bytes <= 0:  # nearly always
            first = self.first()
            return None if first is None or first.level >= level else [first.key]
        found, is_enough = self._take(level, files, size_bytes)
        if not is_enough:
            return None
        # A large one that came last may make smaller ones before it superfluous.
        needed, freed_bytes = found, sum([item.size_bytes for item in found])
        for item in found if len(found) > files else ():
            if len(needed) > files and freed_bytes - item.size_bytes >= size_bytes:
                needed = [each for each in needed if each is not item]
                freed_bytes -= item.size_bytes
        return [item.key for item in needed]

    def lowest(self, files: int, size_bytes: int) -> list[bytes]:
        """The candidates that go next, for so many files and bytes, as far as they reach."""
        return [item.key for item in self._take(None, files, size_bytes)[0]]

    def rank(self, item: Ranked) -> int:
        """How many candidates go before one."""
        before = sum([len(items) for level, items in self._levels.items() if level < item.level])
        own = list(self._levels.get(item.level, ()))
        return before + (own.index(item.key) if own else 0)

    def _in_order(self) -> Iterator[Ranked]:
        used = self._used
        while used:
            lowest = used & -used
            yield from self._levels[lowest.bit_length() - 1].values()
            used ^= lowest

    def _take(self, level: int | None, files: int, size_bytes: int) -> tuple[list[Ranked], bool]:
        found: list[Ranked] = []
        for item in self._in_order():
            if (len(found) >= files and size_bytes <= 0) or (
                level is not None and item.level >= level
            ):
                break
            found.append(item)
            size_bytes -= item.size_bytes
        return found, len(found) >= files and size_bytes <= 0


class Limits:
    """The limits of entries and bytes; None for no limit."""

    def __init__(self, max_entries: int | None, max_size_bytes: int | None) -> None:
        self.max_entries = max_entries
        self.max_size_bytes = max_size_bytes
        self._per_entry = 0.0 if max_entries is None else 1 / max_entries
        self._per_byte = 0.0 if max_size_bytes is None else 1 / max_size_bytes

    def footprint(self, size_bytes: int) -> float:
        """The share of the cache that an archive takes: of entries or bytes, whichever is more."""
        return max(self._per_entry, size_bytes * self._per_byte) or 1.0

    def excess(self, files: int, size_bytes: int) -> tuple[int, int]:
        """By how many files and bytes these pass the limits."""
        over = 0 if self.max_entries is None else max(0, files - self.max_entries)
        most_bytes = self.max_size_bytes
        return over, 0 if most_bytes is None else max(0, size_bytes - most_bytes)
