# ruff: noqa: ARG002 - the arguments are those of `Policy`
"""Two policies to compare with: ``oldest`` and ``none``. They learn nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bbcache.eviction.policy import Limits, Ranked, Ranking

if TYPE_CHECKING:
    from bbcache.eviction.habits import Habits

_FIRST_SIZE_BYTES: Final = 1  # planned for before any archive was published
_STARTED, _ASLEEP, _NEWCOMER = range(3)  # levels


class Oldest:
    """Evicts the archive that was published first. See `bbcache.eviction.policy.Policy`.

    Args:
        max_entries: entries to hold at most; None for no limit.
        max_size_bytes: bytes to hold at most; None for no limit.
    """

    def __init__(self, max_entries: int | None, max_size_bytes: int | None = None) -> None:
        self._limits = Limits(max_entries, max_size_bytes)
        self._items: dict[bytes, Ranked] = {}
        self._ranking = Ranking()

    def stopped(self, key: bytes, now_s: float, size_bytes: int) -> None:
        """See `Policy.stopped`."""

    def started(self, key: bytes, now_s: float) -> None:
        """See `Policy.started`."""
        item = self._items.get(key)
        if item is not None:
            self._ranking.put(item, _STARTED)

    def held(self, key: bytes, size_bytes: int) -> None:
        """See `Policy.held`."""
        self.dropped(key)
        self._items[key] = item = Ranked(key, size_bytes)
        self._ranking.count += 1
        self._ranking.size_bytes += size_bytes
        self._ranking.put(item, _ASLEEP)

    def grown(self, key: bytes, size_bytes: int) -> None:
        """See `Policy.grown`."""

    def found(self, key: bytes, size_bytes: int, stopped_s: float, now_s: float) -> None:
        """See `Policy.found`; tell of the oldest first."""
        if key not in self._items:
            self.held(key, size_bytes)

    def held_keys(self) -> list[bytes]:
        """See `Policy.held_keys`."""
        return list(self._items)

    def dropped(self, key: bytes) -> None:
        """See `Policy.dropped`."""
        item = self._items.pop(key, None)
        if item is not None:
            self._ranking.count -= 1
            self._ranking.size_bytes -= item.size_bytes
            self._ranking.drop(item)

    def spare(self, key: bytes) -> None:
        """See `Policy.spare`."""
        self._ranking.spare(self._items.get(key), key)

    def unspare(self, key: bytes) -> None:
        """See `Policy.unspare`."""
        item = self._items.get(key)
        if self._ranking.unspare(key) and item is not None:
            self._ranking.put(item, _ASLEEP)

    def score(self, key: bytes, now_s: float) -> float:
        """See `Policy.score`: 1, or 0 once started."""
        item = self._items.get(key)
        return float(_ASLEEP if item is None else item.level)

    def lowest_score(self, now_s: float) -> float | None:
        """See `Policy.lowest_score`."""
        first = self._ranking.first()
        return None if first is None else float(first.level)

    def rank(self, key: bytes, now_s: float) -> int:
        """See `Policy.rank`."""
        item = self._items.get(key)
        return 0 if item is None else self._ranking.rank(item)

    def victims(self, newcomer: bytes, size_bytes: int, now_s: float) -> list[bytes] | None:
        """See `Policy.victims`."""
        ranking = self._ranking
        files, bytes_over = self._limits.excess(ranking.count + 1, ranking.size_bytes + size_bytes)
        return self.cheaper(newcomer, files, bytes_over, now_s) if files or bytes_over else []

    def cheaper(
        self, newcomer: bytes, files: int, size_bytes: int, now_s: float
    ) -> list[bytes] | None:
        """See `Policy.cheaper`; every newcomer is worth more than what is there."""
        return self._ranking.below(_NEWCOMER, files, size_bytes)

    def lowest(self, files: int, size_bytes: int, now_s: float) -> list[bytes]:
        """See `Policy.lowest`."""
        return self._ranking.lowest(files, size_bytes)

    def habits(self, key: bytes, now_s: float) -> Habits | None:
        """See `Policy.habits`."""
        return None

    def planned_size_bytes(self, key: bytes) -> int:
        """See `Policy.planned_size_bytes`; the mean of all archives stands for a last size."""
        item, ranking = self._items.get(key), self._ranking
        if item is not None:
            return item.size_bytes
        return ranking.size_bytes // ranking.count if ranking.count else _FIRST_SIZE_BYTES

    def set_limits(self, max_entries: int | None, max_size_bytes: int | None) -> None:
        """See `Policy.set_limits`."""
        self._limits = Limits(max_entries, max_size_bytes)

    def save(self) -> bytes:
        """See `Policy.save`."""
        return b""

    def load(self, data: bytes, now_s: float) -> bool:
        """See `Policy.load`; takes nothing, so the habits of another policy are not damaged."""
        return True


class Never(Oldest):
    """Evicts nothing for a newcomer, as Neon's cache. See `bbcache.eviction.policy.Policy`."""

    def cheaper(
        self, newcomer: bytes, files: int, size_bytes: int, now_s: float
    ) -> list[bytes] | None:
        """See `Policy.cheaper`; no newcomer is worth anything."""
        return None
