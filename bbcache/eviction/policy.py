"""What every policy of eviction does, and the part that they share: a ranking of entries."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection

    from bbcache.eviction.habits import Habits

_SLACK: Final = 64  # outdated rows of a heap beyond as many as there are live ones


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
        """Note that the timeline's archive was published, or found at the start."""
        ...

    def dropped(self, key: bytes) -> None:
        """Note that the timeline has no archive any more, for whatever reason."""
        ...

    def forget(self, key: bytes) -> None:
        """Forget a timeline that was deleted."""
        ...

    def spare(self, key: bytes) -> None:
        """Make the timeline's archive no candidate for eviction."""
        ...

    def unspare(self, key: bytes) -> None:
        """Make it a candidate again."""
        ...

    def score(self, key: bytes, now_s: float) -> float:
        """What the timeline's archive is worth; a higher one is kept rather."""
        ...

    def lowest_score(self, now_s: float) -> float | None:
        """The score of the archive that goes next; None if there is no candidate."""
        ...

    def rank(self, key: bytes, now_s: float) -> int:
        """How many archives go before the timeline's."""
        ...

    def victims(
        self, newcomer: bytes, size_bytes: int, now_s: float, others: tuple[int, int] = (0, 0)
    ) -> list[bytes] | None:
        """Choose the archives that make room for another one. Changes nothing.

        Args:
            newcomer: the timeline of the other one, which `stopped` was told of.
            size_bytes: its size.
            now_s: the time.
            others: what else counts against the limits: files and bytes.

        Returns:
            As few as possible, all worth less than the newcomer; None if there are not enough.
        """
        ...

    def lowest(self, files: int, size_bytes: int, now_s: float) -> list[bytes]:
        """The archives that go next: enough for so many files and bytes, as far as they reach."""
        ...

    def habits(self, key: bytes, now_s: float) -> Habits | None:
        """What is known of the timeline; None if nothing is."""
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
    """An archive in a ranking.

    Attributes:
        key: the timeline.
        size_bytes: the size of the archive, or the size that is planned for.
        stopped_s: when the timeline stopped; of two equal scores the older one goes first.
        score: its worth, as of the last change.
        version: of its row in the heap; 0 if it is no candidate.
    """

    __slots__ = ("key", "score", "size_bytes", "stopped_s", "version")

    def __init__(self, key: bytes, size_bytes: int, stopped_s: float) -> None:
        self.key = key
        self.size_bytes = size_bytes
        self.stopped_s = stopped_s
        self.score = 0.0
        self.version = 0


class Ranking:
    """The candidates for eviction, the least worth first, with the count and bytes of all held.

    A heap whose outdated rows stay until they come up, or until they are more than the others.
    """

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0
        self._heap: list[tuple[float, float, int, Ranked]] = []
        self._live_count = 0
        self._version = 0
        self._spared: set[bytes] = set()

    def spare(self, item: Ranked | None, key: bytes) -> None:
        """Make a timeline's archive no candidate, now or when it comes."""
        self._spared.add(key)
        if item is not None:
            self.drop(item)

    def unspare(self, item: Ranked | None, key: bytes) -> None:
        """Undo `spare`."""
        self._spared.discard(key)
        if item is not None:
            self.put(item)

    def put(self, item: Ranked) -> None:
        """Add a candidate, or take note of its new score."""
        if item.key in self._spared:
            return
        self._live_count += item.version == 0
        self._version = item.version = self._version + 1
        heappush(self._heap, (item.score, item.stopped_s, item.version, item))
        if len(self._heap) > 2 * self._live_count + _SLACK:
            self._heap = [row for row in self._heap if row[3].version == row[2]]
            heapify(self._heap)

    def drop(self, item: Ranked) -> None:
        """Take out a candidate, if it is one."""
        self._live_count -= item.version != 0
        item.version = 0

    def first(self) -> Ranked | None:
        """The candidate that goes next."""
        heap = self._heap
        while heap:
            _, _, version, item = heap[0]
            if item.version == version:
                return item
            heappop(heap)
        return None

    def below(self, score: float, files: int, size_bytes: int) -> list[bytes] | None:
        """The fewest candidates below a score that free so many files and bytes.

        Returns:
            None if all of them are not enough.
        """
        found, is_enough = self._take(score, files, size_bytes)
        if not is_enough:
            return None
        # A large one that came last may make smaller ones before it superfluous.
        needed = list(found)
        for item in found:
            files_left = len(needed) - 1
            bytes_left = sum([each.size_bytes for each in needed]) - item.size_bytes
            if files_left >= files and bytes_left >= size_bytes:
                needed.remove(item)
        return [item.key for item in needed]

    def lowest(self, files: int, size_bytes: int) -> list[bytes]:
        """The candidates that go next, for so many files and bytes, as far as they reach."""
        return [item.key for item in self._take(float("inf"), files, size_bytes)[0]]

    def rank(self, item: Ranked, all_items: Collection[Ranked]) -> int:
        """How many candidates go before one."""
        own = (item.score, item.stopped_s)
        return sum([each.version != 0 and (each.score, each.stopped_s) < own for each in all_items])

    def _take(self, score: float, files: int, size_bytes: int) -> tuple[list[Ranked], bool]:
        found: list[Ranked] = []
        rows: list[tuple[float, float, int, Ranked]] = []
        while len(found) < files or size_bytes > 0:
            item = self.first()
            if item is None or item.score >= score:
                break
            rows.append(heappop(self._heap))
            found.append(item)
            size_bytes -= item.size_bytes
        is_enough = len(found) >= files and size_bytes <= 0
        for row in rows:
            heappush(self._heap, row)
        return found, is_enough


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
