"""The policy ``return-rate``: keep what is most likely to be asked for next.

For each timeline it remembers how long it usually sleeps, how regularly, and at which hours it
starts. For each such kind it counts how many came back at each age. When the cache is full, it
drops the archive that is least likely to be used per unit of space and time.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from heapq import heapify, heappop, heappush
from struct import Struct
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_digest

from bbcache.eviction import habits
from bbcache.eviction.policy import Limits, Ranked, Ranking
from bbcache.eviction.records import Records
from bbcache.eviction.table import EDGES, LAST_BIN, Table

if TYPE_CHECKING:
    from bbcache.eviction.habits import Habits

_MAGIC: Final = b"bbcache habits 1\n"
_HEADER: Final = Struct("<dqqI")  # when, archives published, their bytes, bytes of the records
_CHECK_SIZE_BYTES: Final = 8
_SLACK: Final = 64
_LEAST_KNOWN: Final = 100_000  # timelines
_KNOWN_PER_ENTRY: Final = 20
_FIRST_SIZE_BYTES: Final = 25_000  # planned for before any archive was published


class _Sleeper(Ranked):
    """A timeline that sleeps or has an archive.

    Attributes:
        row: the number of its kind in the table.
        scale_s: its typical sleep.
        bin: of its age in the table.
        is_asleep: whether it has not started since.
        is_held: whether it has an archive.
        is_counted: whether its return is counted.
    """

    __slots__ = ("bin", "is_asleep", "is_counted", "is_held", "row", "scale_s")
    row: int
    scale_s: float
    bin: int
    is_asleep: bool
    is_held: bool
    is_counted: bool


class ReturnRate:
    """Keeps what is most likely to be asked for next. See `bbcache.eviction.policy.Policy`.

    Args:
        max_entries: entries to hold at most; None for no limit.
        max_size_bytes: bytes to hold at most; None for no limit.
        max_known: timelines to remember; the oldest is forgotten.
    """

    def __init__(
        self,
        max_entries: int | None,
        max_size_bytes: int | None = None,
        max_known: int | None = None,
    ) -> None:
        self._limits = Limits(max_entries, max_size_bytes)
        self._records = Records(
            max_known or max(_LEAST_KNOWN, _KNOWN_PER_ENTRY * (max_entries or 0))
        )
        self._table = Table()
        self._sleepers: dict[bytes, _Sleeper] = {}
        self._ranking = Ranking()
        self._timers: list[tuple[float, int, _Sleeper]] = []  # by the next crossing of a bin
        self._timer_number = 0
        self._published_count = 0
        self._published_bytes = 0
        self._now_s = 0.0

    def stopped(self, key: bytes, now_s: float, size_bytes: int) -> None:
        """See `Policy.stopped`."""
        self._advance(now_s)
        sleeper = self._sleepers.get(key)
        is_held = sleeper is not None and sleeper.is_held
        if sleeper is not None:
            self._leave(sleeper, now_s)
            self._ranking.drop(sleeper)
        record, at = self._records.find_or_add(key, now_s)
        habits.note_stop(record, at, now_s)
        self._add_sleeper(key, now_s, size_bytes, (record, at), is_held=is_held)

    def started(self, key: bytes, now_s: float) -> None:
        """See `Policy.started`."""
        self._advance(now_s)
        sleeper = self._sleepers.get(key)
        if sleeper is not None and sleeper.is_asleep:
            if sleeper.is_counted:
                age = (now_s - sleeper.stopped_s) / sleeper.scale_s
                self._table.returned(sleeper.row, sleeper.bin, age)
            sleeper.is_asleep, sleeper.score = False, 0.0
            if sleeper.is_held:
                self._ranking.put(sleeper)
            else:
                del self._sleepers[key]
        record, at = self._records.find(key)
        if at >= 0:
            habits.note_start(record, at, now_s)

    def held(self, key: bytes, size_bytes: int) -> None:
        """See `Policy.held`."""
        record = self._records.find_or_add(key, self._now_s)
        habits.note_size(*record, size_bytes)
        sleeper = self._sleepers.get(key)
        if sleeper is None:
            stopped_s = habits.last_stop_s(*record, self._now_s)
            sleeper = self._add_sleeper(key, stopped_s, size_bytes, record, is_held=False)
            sleeper.is_asleep = habits.asleep_s(*record, self._now_s) is not None
            sleeper.is_counted = False  # a part of its sleep was not seen
        if sleeper.is_held:
            self._count_held(-1, -sleeper.size_bytes)
        sleeper.is_held, sleeper.size_bytes = True, size_bytes
        self._count_held(1, size_bytes)
        self._published_count += 1
        self._published_bytes += size_bytes
        self._rank(sleeper, self._now_s)

    def dropped(self, key: bytes) -> None:
        """See `Policy.dropped`."""
        sleeper = self._sleepers.get(key)
        if sleeper is None or not sleeper.is_held:
            return
        sleeper.is_held = False
        self._count_held(-1, -sleeper.size_bytes)
        self._ranking.drop(sleeper)
        if not (sleeper.is_counted and sleeper.is_asleep):
            del self._sleepers[key]

    def forget(self, key: bytes) -> None:
        """See `Policy.forget`."""
        self.dropped(key)
        sleeper = self._sleepers.pop(key, None)
        if sleeper is not None:
            self._leave(sleeper, self._now_s)
        self._records.remove(key)

    def spare(self, key: bytes) -> None:
        """See `Policy.spare`."""
        self._ranking.spare(self._held_sleeper(key), key)

    def unspare(self, key: bytes) -> None:
        """See `Policy.unspare`."""
        self._ranking.unspare(self._held_sleeper(key), key)

    def score(self, key: bytes, now_s: float) -> float:
        """See `Policy.score`: returns per second and per share of the cache; 0 once started."""
        self._advance(now_s)
        sleeper = self._sleepers.get(key)
        if sleeper is not None:
            return self._score(sleeper, now_s)
        record, at = self._records.find(key)
        if at < 0 or habits.asleep_s(record, at, now_s) is None:
            return 0.0
        row, scale_s, bin_ = self._kind(record, at, habits.last_stop_s(record, at, now_s), now_s)
        size_bytes = self.planned_size_bytes(key)
        return self._table.gain(row, bin_, now_s) / scale_s / self._limits.footprint(size_bytes)

    def lowest_score(self, now_s: float) -> float | None:
        """See `Policy.lowest_score`."""
        self._advance(now_s)
        first = self._ranking.first()
        return None if first is None else first.score

    def rank(self, key: bytes, now_s: float) -> int:
        """See `Policy.rank`."""
        self._advance(now_s)
        sleeper = self._held_sleeper(key)
        return 0 if sleeper is None else self._ranking.rank(sleeper, self._sleepers.values())

    def victims(
        self, newcomer: bytes, size_bytes: int, now_s: float, others: tuple[int, int] = (0, 0)
    ) -> list[bytes] | None:
        """See `Policy.victims`."""
        self._advance(now_s)
        sleeper = self._sleepers.get(newcomer)
        files, bytes_over = self._limits.excess(
            self._ranking.count + others[0] + 1, self._ranking.size_bytes + others[1] + size_bytes
        )
        if not (files or bytes_over):
            return []
        score = self.score(newcomer, now_s) if sleeper is None else self._score(sleeper, now_s)
        return self._ranking.below(score, files, bytes_over)

    def lowest(self, files: int, size_bytes: int, now_s: float) -> list[bytes]:
        """See `Policy.lowest`."""
        self._advance(now_s)
        return self._ranking.lowest(files, size_bytes)

    def habits(self, key: bytes, now_s: float) -> Habits | None:
        """See `Policy.habits`."""
        record, at = self._records.find(key)
        if at < 0:
            return None
        known = habits.describe(record, at, now_s)
        if known.asleep_s is None:
            return known
        row, scale_s, bin_ = self._kind(record, at, now_s - known.asleep_s, now_s)
        kind = self._table.fresh(row, now_s)
        horizon_s = max(0.0, kind.horizon[bin_] * scale_s - known.asleep_s)
        return replace(known, horizon_s=horizon_s, return_share=kind.share[bin_])

    def planned_size_bytes(self, key: bytes) -> int:
        """See `Policy.planned_size_bytes`."""
        record, at = self._records.find(key)
        last_bytes = habits.last_size_bytes(record, at) if at >= 0 else None
        if last_bytes is not None:
            return last_bytes
        if self._published_count:
            return self._published_bytes // self._published_count
        return _FIRST_SIZE_BYTES

    def set_limits(self, max_entries: int | None, max_size_bytes: int | None) -> None:
        """See `Policy.set_limits`."""
        self._limits = Limits(max_entries, max_size_bytes)
        for sleeper in self._sleepers.values():
            if sleeper.version:
                self._rank(sleeper, self._now_s)

    def save(self) -> bytes:
        """See `Policy.save`."""
        records = self._records.save()
        header = _HEADER.pack(
            self._now_s, self._published_count, self._published_bytes, len(records)
        )
        body = header + self._table.save() + records
        return _MAGIC + xxh3_64_digest(body) + body

    def load(self, data: bytes, now_s: float) -> bool:
        """See `Policy.load`; call it before anything else."""
        begin = len(_MAGIC) + _CHECK_SIZE_BYTES
        body = data[begin:]
        if data[:begin] != _MAGIC + xxh3_64_digest(body):
            return False
        saved_s, self._published_count, self._published_bytes, records_bytes = _HEADER.unpack_from(
            body
        )
        table_end = len(body) - records_bytes
        self._table.load(body[_HEADER.size : table_end], now_s, saved_s)
        self._records.load(body[table_end:])
        self._now_s = now_s
        return True

    def _held_sleeper(self, key: bytes) -> _Sleeper | None:
        sleeper = self._sleepers.get(key)
        return sleeper if sleeper is not None and sleeper.is_held else None

    def _count_held(self, files: int, size_bytes: int) -> None:
        self._ranking.count += files
        self._ranking.size_bytes += size_bytes

    def _kind(
        self, record: bytes | bytearray, at: int, stopped_s: float, now_s: float
    ) -> tuple[int, float, int]:
        """Row, typical sleep, and bin of a timeline that stopped then."""
        scale_s, *levels = habits.kind_of(record, at, stopped_s)
        bin_ = bisect_right(EDGES, max(0.0, now_s - stopped_s) / scale_s, hi=LAST_BIN + 1) - 1
        return self._table.row_of(*levels), scale_s, bin_

    def _add_sleeper(
        self,
        key: bytes,
        stopped_s: float,
        size_bytes: int,
        record: tuple[bytearray, int],
        *,
        is_held: bool,
    ) -> _Sleeper:
        self._sleepers[key] = sleeper = _Sleeper(key, size_bytes, stopped_s)
        sleeper.row, sleeper.scale_s, sleeper.bin = self._kind(*record, stopped_s, self._now_s)
        sleeper.is_asleep, sleeper.is_held = True, is_held
        sleeper.is_counted = Records.is_sampled(key)
        self._set_timer(sleeper)
        if is_held:
            self._rank(sleeper, self._now_s)
        return sleeper

    def _set_timer(self, sleeper: _Sleeper) -> None:
        if sleeper.bin >= LAST_BIN:
            return
        due_s = sleeper.stopped_s + EDGES[sleeper.bin + 1] * sleeper.scale_s
        self._timer_number += 1
        heappush(self._timers, (due_s, self._timer_number, sleeper))
        if len(self._timers) > 2 * len(self._sleepers) + _SLACK:
            self._timers = [row for row in self._timers if self._is_due(row[2])]
            heapify(self._timers)

    def _is_due(self, sleeper: _Sleeper) -> bool:
        return sleeper.is_asleep and self._sleepers.get(sleeper.key) is sleeper

    def _advance(self, now_s: float) -> None:
        """Let every sleeper grow older, and score those again that enter another bin."""
        self._now_s = now_s
        self._table.advance(now_s)
        timers = self._timers
        while timers and timers[0][0] <= now_s:
            sleeper = heappop(timers)[2]
            if not self._is_due(sleeper):
                continue
            if sleeper.is_counted:
                self._table.passed(sleeper.row, sleeper.bin)
            elif not sleeper.is_held:
                del self._sleepers[sleeper.key]
                continue
            sleeper.bin += 1
            self._set_timer(sleeper)
            timers = self._timers  # it may have been rebuilt
            if sleeper.is_held:
                self._rank(sleeper, now_s)

    def _leave(self, sleeper: _Sleeper, now_s: float) -> None:
        """Count the sleep so far of a timeline whose return was not seen."""
        if sleeper.is_asleep and sleeper.is_counted:
            age = (now_s - sleeper.stopped_s) / sleeper.scale_s
            self._table.left(sleeper.row, sleeper.bin, age)

    def _score(self, sleeper: _Sleeper, now_s: float) -> float:
        if not sleeper.is_asleep:
            return 0.0
        gain = self._table.gain(sleeper.row, sleeper.bin, now_s)
        return gain / sleeper.scale_s / self._limits.footprint(sleeper.size_bytes)

    def _rank(self, sleeper: _Sleeper, now_s: float) -> None:
        score = self._score(sleeper, now_s)
        if score != sleeper.score or not sleeper.version:
            sleeper.score = score
            self._ranking.put(sleeper)
