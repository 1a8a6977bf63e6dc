"""The policy ``return-rate``: keep what is most likely to be asked for next.

For each timeline it remembers how long it usually sleeps, how regularly, and at which hours it
starts. For each such kind it counts how many came back at each age. When the cache is full, it
drops the archive that is least likely to be used per unit of space and time.
"""

from __future__ import annotations

import math
import zlib
from collections import OrderedDict
from dataclasses import replace
from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_digest

from bbcache.eviction import habits
from bbcache.eviction.policy import Limits, Ranking
from bbcache.eviction.records import SAMPLE, Records
from bbcache.eviction.sleeper import Sleeper
from bbcache.eviction.table import EDGES, LAST_BIN, LEVELS, Table, bin_of
from bbcache.eviction.timers import Timers

if TYPE_CHECKING:
    from bbcache.eviction.habits import Habits

_MAGIC: Final = b"bbcache habits 1\n"
_HEADER: Final = Struct("<dqqI")  # when, archives published, their bytes, bytes of the records
_CHECK_SIZE_BYTES: Final = 8
_MOST_NEWCOMERS: Final = 1000
_SHARE_FORGOTTEN: Final = 100  # of the watched sleepers, a hundredth goes where they are too many
_MOST_IDLE_TIMERS: Final = 64  # beyond as many as there are sleepers
_UNHELD_STEP: Final = 4  # bins
_STARTED: Final = 0
_LEVEL_ONE: Final = 50 * LEVELS  # of a score of 1
ALL_COUNTED: Final = 2000  # timelines of which each return is counted; of more, a sample
_LEAST_KNOWN: Final = 100_000  # timelines
_MOST_KNOWN: Final = 10_000_000
_KNOWN_PER_ENTRY: Final = 20
_FIRST_SIZE_BYTES: Final = 1  # planned for before any archive was published


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
        wanted = _KNOWN_PER_ENTRY * (max_entries or 0)
        self._max_known = max_known or min(max(_LEAST_KNOWN, wanted), _MOST_KNOWN)
        self._records = Records(self._max_known)
        self._table = Table()
        self._held: dict[bytes, Sleeper] = {}
        self._watched: dict[bytes, Sleeper] = {}  # asleep and not held, but counted
        self._newcomers = OrderedDict[bytes, Sleeper]()  # the last that stopped, and are not held
        self._ranking = Ranking()
        self._timers = Timers[Sleeper]()
        self._published_count = 0
        self._published_bytes = 0
        self._now_s = 0.0

    def stopped(self, key: bytes, now_s: float, size_bytes: int) -> None:
        """See `Policy.stopped`."""
        self._advance(now_s)
        old = self._held.get(key) or self._watched.pop(key, None)
        if old is not None:
            self._leave(old, now_s)
        record, at = self._records.find_or_add(key, now_s)
        habits.note_stop(record, at, now_s)
        sleeper = self._sleeper(key, now_s, size_bytes, record, at)
        is_few = len(self._records) <= ALL_COUNTED
        sleeper.is_counted = is_few or Records.is_sampled_at(record, at)
        if old is not None and old.is_held:
            self._hold(sleeper, old.size_bytes, has_timer=False)
            return
        self._newcomers[key] = sleeper
        if len(self._newcomers) > _MOST_NEWCOMERS:
            self._newcomers.popitem(last=False)
        if sleeper.is_counted:
            self._watch(sleeper)

    def started(self, key: bytes, now_s: float) -> None:
        """See `Policy.started`."""
        self._advance(now_s)
        record, at = self._records.find(key)
        if at < 0 or not habits.note_start(record, at, now_s):
            return
        self._newcomers.pop(key, None)
        sleeper = self._held.get(key) or self._watched.pop(key, None)
        if sleeper is not None and sleeper.is_asleep:
            if sleeper.is_counted:
                age = (now_s - sleeper.stopped_s) / sleeper.scale_s
                self._table.returned(sleeper.row, sleeper.bin, age)
            sleeper.is_asleep = False
            if sleeper.is_held:
                self._rank(sleeper)

    def held(self, key: bytes, size_bytes: int) -> None:
        """See `Policy.held`."""
        record, at = self._records.find_or_add(key, self._now_s)
        habits.note_size(record, at, size_bytes)
        self._published_count += 1
        self._published_bytes += size_bytes
        newcomer, watched = self._newcomers.pop(key, None), self._watched.pop(key, None)
        old = self._held.get(key)
        sleeper = old or watched or newcomer
        if sleeper is None:
            stopped_s = habits.last_stop_s(record, at, self._now_s)
            sleeper = self._sleeper(key, stopped_s, size_bytes, record, at)
            sleeper.is_asleep = habits.asleep_s(record, at, self._now_s) is not None
        if old is None:
            self._ranking.count += 1
        else:
            self._ranking.size_bytes -= old.size_bytes
        self._ranking.size_bytes += size_bytes
        self._hold(sleeper, size_bytes, has_timer=sleeper is old or sleeper is watched)

    def grown(self, key: bytes, size_bytes: int) -> None:
        """See `Policy.grown`."""
        record, at = self._records.find(key)
        if at >= 0:
            habits.note_size(record, at, size_bytes)
        sleeper = self._newcomers.get(key)
        if sleeper is not None:
            sleeper.size_bytes = size_bytes
            sleeper.cost = self._cost(sleeper)

    def found(self, key: bytes, size_bytes: int, stopped_s: float, now_s: float) -> None:
        """See `Policy.found`."""
        if key in self._held:
            return
        self._advance(now_s)
        record, at = self._records.find(key)
        if at < 0:
            record, at = self._records.find_or_add(key, now_s)
            habits.note_stop(record, at, stopped_s)
        self.held(key, size_bytes)

    def held_keys(self) -> list[bytes]:
        """See `Policy.held_keys`."""
        return list(self._held)

    def dropped(self, key: bytes) -> None:
        """See `Policy.dropped`."""
        sleeper = self._held.pop(key, None)
        if sleeper is None:
            return
        sleeper.is_held = False
        self._ranking.count -= 1
        self._ranking.size_bytes -= sleeper.size_bytes
        self._ranking.drop(sleeper)
        if sleeper.is_counted and sleeper.is_asleep:
            self._watch(sleeper, has_timer=True)
        else:
            sleeper.is_asleep = False

    def spare(self, key: bytes) -> None:
        """See `Policy.spare`."""
        self._ranking.spare(self._held.get(key), key)

    def unspare(self, key: bytes) -> None:
        """See `Policy.unspare`."""
        sleeper = self._held.get(key)
        if self._ranking.unspare(key) and sleeper is not None:
            self._rank(sleeper)

    def score(self, key: bytes, now_s: float) -> float:
        """See `Policy.score`: returns per second and per share of the cache; 0 once started."""
        self._advance(now_s)
        sleeper = self._known(key)
        if sleeper is None or not sleeper.is_asleep:
            return 0.0
        # Its own bin is that of the last look at it.
        bin_ = bin_of(max(0.0, now_s - sleeper.stopped_s) / sleeper.scale_s)
        log = self._table.fresh(sleeper.row, now_s).log_gain[bin_] - sleeper.cost
        return float(2.0 ** (log / LEVELS))

    def lowest_score(self, now_s: float) -> float | None:
        """See `Policy.lowest_score`."""
        self._advance(now_s)
        first = self._ranking.first()
        return None if first is None else self.score(first.key, now_s)

    def rank(self, key: bytes, now_s: float) -> int:
        """See `Policy.rank`."""
        self._advance(now_s)
        sleeper = self._held.get(key)
        return 0 if sleeper is None else self._ranking.rank(sleeper)

    def victims(self, newcomer: bytes, size_bytes: int, now_s: float) -> list[bytes] | None:
        """See `Policy.victims`."""
        ranking = self._ranking
        files, bytes_over = self._limits.excess(ranking.count + 1, ranking.size_bytes + size_bytes)
        return self.cheaper(newcomer, files, bytes_over, now_s) if files or bytes_over else []

    def cheaper(
        self, newcomer: bytes, files: int, size_bytes: int, now_s: float
    ) -> list[bytes] | None:
        """See `Policy.cheaper`."""
        self._advance(now_s)
        sleeper = self._known(newcomer)
        if sleeper is None:
            return None
        return self._ranking.below(self._level(sleeper), files, size_bytes)

    def lowest(self, files: int, size_bytes: int, now_s: float) -> list[bytes]:
        """See `Policy.lowest`."""
        self._advance(now_s)
        return self._ranking.lowest(files, size_bytes)

    def habits(self, key: bytes, now_s: float) -> Habits | None:
        """See `Policy.habits`."""
        self._advance(now_s)
        record, at = self._records.find(key)
        if at < 0:
            return None
        known = habits.describe(record, at, now_s)
        if known.asleep_s is None:
            return known
        sleeper = self._sleeper(key, now_s - known.asleep_s, 0, record, at)
        row = self._table.fresh(sleeper.row, now_s)
        horizon_s = max(0.0, row.horizon[sleeper.bin] * sleeper.scale_s - known.asleep_s)
        return replace(known, horizon_s=horizon_s, return_share=row.share[sleeper.bin])

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
        for sleeper in self._held.values():
            sleeper.cost = self._cost(sleeper)
            self._rank(sleeper)

    def save(self) -> bytes:
        """See `Policy.save`."""
        records = self._records.save()
        header = _HEADER.pack(
            self._now_s, self._published_count, self._published_bytes, len(records)
        )
        body = header + zlib.compress(self._table.save()) + records
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
        self._table.load(zlib.decompress(body[_HEADER.size : table_end]), now_s, saved_s)
        self._records.load(body[table_end:])
        self._now_s = now_s
        return True

    def _known(self, key: bytes) -> Sleeper | None:
        sleeper = self._newcomers.get(key) or self._held.get(key)
        if sleeper is not None:
            return sleeper
        record, at = self._records.find(key)
        if at < 0 or habits.asleep_s(record, at, self._now_s) is None:
            return None
        stopped_s = habits.last_stop_s(record, at, self._now_s)
        return self._sleeper(key, stopped_s, self.planned_size_bytes(key), record, at)

    def _sleeper(
        self, key: bytes, stopped_s: float, size_bytes: int, record: bytearray, at: int
    ) -> Sleeper:
        """A timeline that stopped then, at its age of now."""
        scale_s, visits, regularity, clock = habits.kind_of(record, at, stopped_s)
        row = self._table.row_of(visits, regularity, clock, scale_s)
        cost = LEVELS * math.log2(scale_s * self._limits.footprint(size_bytes))
        sleeper = Sleeper(key, size_bytes, stopped_s, row, scale_s, cost)
        if stopped_s < self._now_s:
            sleeper.bin = bin_of((self._now_s - stopped_s) / scale_s)
        return sleeper

    def _hold(self, sleeper: Sleeper, size_bytes: int, *, has_timer: bool) -> None:
        """Rank a sleeper that has an archive."""
        self._held[sleeper.key] = sleeper
        sleeper.is_held = True
        if size_bytes != sleeper.size_bytes:
            sleeper.size_bytes = size_bytes
            sleeper.cost = self._cost(sleeper)
        self._rank(sleeper)
        if sleeper.is_asleep and not has_timer:
            self._set_timer(sleeper)

    def _watch(self, sleeper: Sleeper, *, has_timer: bool = False) -> None:
        """Count the return of a sleeper that has no archive."""
        self._watched[sleeper.key] = sleeper
        if not has_timer:
            self._set_timer(sleeper)
        most = self._max_known // SAMPLE
        if len(self._watched) > most:
            # Many at once: a search for the first item of a dict passes all that were removed.
            for key in list(islice(self._watched, 1 + most // _SHARE_FORGOTTEN)):
                self._leave(self._watched.pop(key), self._now_s)

    def _cost(self, sleeper: Sleeper) -> float:
        return LEVELS * math.log2(sleeper.scale_s * self._limits.footprint(sleeper.size_bytes))

    def _set_timer(self, sleeper: Sleeper) -> None:
        """Have a sleeper looked at again: each few bins, or when its score will have changed."""
        bin_ = sleeper.bin + _UNHELD_STEP
        if sleeper.is_held:
            bin_ = self._table.fresh(sleeper.row, self._now_s).next_look[sleeper.bin]
        if bin_ <= LAST_BIN:
            self._timers.add(sleeper.stopped_s + EDGES[bin_] * sleeper.scale_s, sleeper)

    def _advance(self, now_s: float) -> None:
        """Let every sleeper grow older, and score those again that enter another bin."""
        if now_s == self._now_s:
            return
        self._now_s = now_s
        if now_s >= self._table.next_weight_s:
            self._table.advance(now_s)
        timers = self._timers
        for sleeper in timers.due(now_s):
            if sleeper.is_asleep:
                self._age(sleeper, now_s)
        if timers.count > 2 * (len(self._held) + len(self._watched)) + _MOST_IDLE_TIMERS:
            timers.trim(lambda sleeper: sleeper.is_asleep)

    def _age(self, sleeper: Sleeper, now_s: float) -> None:
        """Count a sleeper up to its age, rank it, and have it looked at again."""
        age = (now_s - sleeper.stopped_s) / sleeper.scale_s
        if sleeper.is_counted:
            sleeper.bin = self._table.passed(sleeper.row, sleeper.bin, age)
        else:
            sleeper.bin = bin_of(age)
        if sleeper.is_held:
            self._rank(sleeper)
        self._set_timer(sleeper)

    def _leave(self, sleeper: Sleeper, now_s: float) -> None:
        """Count the sleep so far of a timeline that has not returned, and forget the timeline."""
        if sleeper.is_asleep and sleeper.is_counted:
            age = (now_s - sleeper.stopped_s) / sleeper.scale_s
            self._table.left(sleeper.row, sleeper.bin, age)
        self._ranking.drop(sleeper)
        sleeper.is_asleep = False

    def _level(self, sleeper: Sleeper) -> int:
        """The level of its score: 32 for each power of two, so 2 % apart; 0 once started."""
        if not sleeper.is_asleep:
            return _STARTED
        row = sleeper.row
        if self._now_s >= row.is_stale_at_s:
            self._table.fresh(row, self._now_s)
        return max(1, int(row.log_gain[sleeper.bin] - sleeper.cost) + _LEVEL_ONE)

    def _rank(self, sleeper: Sleeper) -> None:
        self._ranking.put(sleeper, self._level(sleeper))
