"""A cache beside its model: starting, ending, and comparing the two."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from concurrency.cache_model import NO_ROOM, OWN_NAMES
from concurrency.scripted_host import ScriptedHost, Slot
from concurrency.wait_model import WaitModel
from hypothesis.stateful import RuleBasedStateMachine, invariant
from prometheus_client import CollectorRegistry
from support.cache_helpers import DEADLINE_S, Worker, put
from support.helpers import count_descriptors, samples, wait_until
from support.ledger import total_bytes, total_count
from support.shares import IS_NIGHTLY
from support.threads import is_waiting

from bbcache import BasebackupCache, BasebackupCacheConfig
from bbcache.outcomes import FetchResult
from bbcache.testing import MemoryTier

if TYPE_CHECKING:
    from collections.abc import Collection

    from bbcache import BasebackupFile, Lsn, TimelineId
    from bbcache.testing import MemoryTenant

_SHM_DIR: Final = "/dev/shm"  # noqa: S108 - mkdtemp is safe there
_PREPARES: Final = "pageserver_basebackup_cache_prepare_total{result="
_SKIPS: Final = "bbcache_prepare_skips_total{reason="
_READS: Final = "pageserver_basebackup_cache_read_total{result="
_REMOVALS: Final = "bbcache_removals_total{reason="
_NO_ROOM: Final = ("full", "too_big", "declined", "low_disk")
_METRICS: Final = (
    *(metric.partition("{")[0] for metric in (_PREPARES, _SKIPS, _READS, _REMOVALS)),
    *("pageserver_basebackup_cache_entries_total", "pageserver_basebackup_cache_size_bytes"),
    *("bbcache_nonentry_bytes", "bbcache_quarantined_total"),
)


class ComparedCache(RuleBasedStateMachine):
    """A cache on a real directory, and what holds after each step.

    Attributes:
        model: what it must be like.
        slots: the host's timelines.
        pending: the prepares that were left running, as LSNs by timeline.
        open_files: files from `get` that are kept open, with what they must give.
        totals: directories, steps, and how prepares and reads ended, of all machines.
    """

    totals: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        base = _SHM_DIR if os.access(_SHM_DIR, os.W_OK) else None
        self.parent = Path(tempfile.mkdtemp(prefix="bbcache-", dir=base))
        self.dir = self.parent / "cache"
        self.host = ScriptedHost()
        tenants = [self.host.add_tenant() for _ in range(2)]
        self.slots = [Slot(number, tenants[number % 2]) for number in range(4)]
        for tenant in tenants:
            put(tenant, "pinned_timelines", partial(self._pinned, tenant))
        self.model = WaitModel(str(self.dir), self.slots, self.host, {})
        self.pending: dict[int, set[Lsn]] = {}  # by timeline: prepares that are left running
        self.outgrown: set[int] = set()  # timelines whose entry clean-up saw as such meanwhile
        self.open_files: list[tuple[BasebackupFile, bytes]] = []
        self.bytes_before = 0  # that counted when the first of them was asked for
        self._cache: BasebackupCache | None = None
        self._descriptors = count_descriptors()
        self.totals["directories"] += 1

    def _pinned(self, tenant: MemoryTenant) -> list[TimelineId]:
        own = [slot for slot in self.slots if slot.tenant is tenant]
        return [slot.timeline.timeline_id for slot in own if slot.number in self.host.pinned]

    @property
    def cache(self) -> BasebackupCache:
        """The cache of this life."""
        assert self._cache is not None
        return self._cache

    # Starting, settling, ending.

    def start(self, options: dict[str, Any]) -> None:
        """Start a cache on the directory as it is."""
        options = {"min_free_disk_bytes": 0, **options}
        config = BasebackupCacheConfig(cleanup_period=3600.0, prepare_concurrency=3, **options)
        self.registry = CollectorRegistry()
        self.sent = 0
        self.reads: Counter[str] = Counter()
        self.prepares: Counter[str] = Counter()
        self.pending.clear()
        self.evicted_count = 0
        self.model.start(config)
        before = set(threading.enumerate())
        # On every second directory of a nightly run there is a second tier, which has nothing:
        # all must be as without one.
        has_tier = IS_NIGHTLY and self.totals["directories"] % 2
        tier = MemoryTier() if has_tier else None
        if tier is not None:
            tier.on_fetch = lambda *_: FetchResult.ABSENT
        self._cache = BasebackupCache.spawn(self.dir, config, self.host, self.registry, tier=tier)
        new = set(threading.enumerate()) - before
        self._threads = {thread for thread in new if thread.name.startswith("bbcache-")}
        assert self.cache.wait_initialized(DEADLINE_S)
        self.engine: Any = self.cache._engine
        self.check()

    def wait_until_quiet(self) -> None:
        """Wait until nothing goes on but what has been stopped."""
        stopped = self.model.in_flight_count

        def is_quiet() -> bool:
            values = self.values()
            asked = self.sent + values["bbcache_quarantined_total"]
            ended = counted(values, _PREPARES).total()
            # Once a prepare is counted, its worker looks for the next, and waits for that.
            return ended == asked - stopped and all(is_waiting(t, "run") for t in self._threads)

        wait_until(is_quiet)

    def settle(self) -> None:
        """Wait for what was left running, and take over how it ended."""
        self.wait_until_quiet()
        archives = {}
        for slot, lsn, archive in self.model.undecided:
            self.pending.setdefault(slot.number, set()).add(lsn)
            archives[slot.number, lsn] = archive
        self.model.undecided.clear()
        entries = {entry.timeline_id: entry for entry in self.cache.entries()}
        if self.pending:
            self.take_over_evictions(entries)
        for number, lsns in self.pending.items():
            slot, before = self.slots[number], self.model.held.get(number)
            entry = entries.get(slot.timeline.timeline_id)
            if entry is None:
                if before is not None:
                    assert number in self.outgrown, "an entry was lost"
                    self.model.remove(slot)
            elif before is None or entry.lsn != before.lsn:
                assert entry.lsn in lsns
                archive = archives.get((number, entry.lsn)) or slot.archive(entry.lsn)
                self.model.publish(slot, entry.lsn, archive)
                self.model.held[number].is_verified = True  # it may be: then damage is not found
        if self.pending:
            # Last: the old file of a refresh may be one that cannot be unlinked yet.
            self.take_over_quarantine()
            self.prepares = self.counted_prepares(self.values())
            self.model.outcomes.clear()
        self.pending.clear()

    def take_over_evictions(self, entries: Collection[TimelineId]) -> None:
        """Take over what was evicted, and check that it could be.

        Args:
            entries: timelines that have an entry.
        """
        values = self.values()
        removals = counted(values, _REMOVALS)
        count = removals.total() - removals["outgrown"]
        gone = [n for n in self.model.held if self.slots[n].timeline.timeline_id not in entries]
        evicted = [n for n in gone if n not in self.outgrown]
        assert len(evicted) <= count - self.evicted_count, "an entry was lost"
        self.evicted_count = count
        for number in evicted:
            assert number not in self.model.builds, "the entry of a refresh was evicted"
            assert number not in self.model.pinned, "a pinned entry was evicted"
            self.model.remove(self.slots[number])
        self.totals["evicted"] += len(evicted)

    def take_over_quarantine(self) -> None:
        """Take over how much of the quarantine was removed to make room."""
        self.model.take_over_quarantine(int(self.values()["bbcache_nonentry_bytes"]))

    def end(self, *, is_dropped: bool = False) -> None:
        """Close the cache, or drop it, whatever is running; then check its last counts."""
        cache, self._cache = self.cache, None
        closing: Worker | None = None
        if is_dropped:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del cache
            texts = [str(each.message) for each in caught]
            assert sum("basebackup cache" in text for text in texts) == 1, texts
        else:
            closing = Worker(cache.close, DEADLINE_S)
        wait_until(lambda: not self.engine.is_serving)
        self.open_gates()
        if closing is not None:
            closing.result()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), "a thread is left over"
        values = self.values()
        ended = sum(self.counted_prepares(values).values())
        assert ended == self.sent + values["bbcache_quarantined_total"]
        self.totals.update(self.counted_prepares(values) + counted(values, _READS))
        self.totals["quarantined"] += int(values["bbcache_quarantined_total"])
        self.model.undecided.clear()
        self.model.builds.clear()
        self.model.waiting.clear()
        self.model.ahead.clear()

    def open_gates(self) -> None:
        """Let every stopped build go on."""
        for build in self.model.builds.values():
            build.may_go_on.set()

    def teardown(self) -> None:
        """Close, read what was kept open, and leave nothing behind."""
        try:
            if self._cache is not None:
                self.end()
            while self.open_files:
                self.read_kept(0)
            assert count_descriptors() <= self._descriptors, "a descriptor is left over"
        finally:
            self.open_gates()
            for file, _ in self.open_files:
                file.close()
            if self._cache is not None:
                self.cache.close(DEADLINE_S)
            shutil.rmtree(self.parent)

    def read_kept(self, place: int) -> None:
        """A file that was kept open has the same bytes, whatever has happened since."""
        file, content = self.open_files.pop(place)
        with file:
            assert file.read() == content

    # What holds after each step.

    @invariant()
    def holds(self) -> None:
        """What the cache says and what is on disk are what the model says."""
        if self._cache is None:
            return
        self.totals["steps"] += 1
        if self.model.undecided:
            self.settle()
        if self.pending:
            limit_bytes = max(self.model.config.max_total_size_bytes, self.bytes_before)
            assert total_bytes(self.engine.index) <= limit_bytes
        else:
            self.model.look_ahead()
            self.wait_until_quiet()
            self.check()

    def check(self) -> None:
        """Compare everything with the model."""
        model, index, values = self.model, self.engine.index, self.values()
        expected = {
            (self.slots[number].timeline.timeline_id, held.lsn, held.size_bytes)
            for number, held in model.held.items()
        }
        assert {entry[1:] for entry in self.cache.entries()} == expected
        assert values["pageserver_basebackup_cache_entries_total"] == len(expected)
        assert values["pageserver_basebackup_cache_size_bytes"] == model.entries_bytes
        assert values["bbcache_nonentry_bytes"] == model.nonentry_bytes
        assert (total_count(index), total_bytes(index)) == (model.total_count, model.total_bytes)
        self.check_directory()
        self.prepares.update(model.outcomes)
        model.outcomes.clear()
        assert self.counted_prepares(values) == self.prepares
        assert counted(values, _READS) == self.reads
        in_flight = model.in_flight_count
        ended = self.sent + values["bbcache_quarantined_total"] - in_flight
        assert sum(self.prepares.values()) == ended

    def check_directory(self) -> None:
        """There is in the directory what the model knows, and no file is changed or left over."""
        names = set(os.listdir(self.dir)) if self.dir.is_dir() else set()
        assert names - OWN_NAMES == self.model.names
        for number, held in self.model.held.items():
            name = self.slots[number].name(held.lsn)
            if name not in self.model.damage:
                assert (self.dir / name).read_bytes() == held.content
        temps = os.listdir(self.dir / "tmp") if "tmp" in names else []
        assert len(temps) == sum(not build.is_lost for build in self.model.builds.values())

    def values(self) -> dict[str, float]:
        """The metrics of this life that are compared."""
        registry: Any = self.registry.restricted_registry(_METRICS)
        return samples(registry)

    def counted_prepares(self, values: dict[str, float]) -> Counter[str]:
        """How prepares ended; the skips by reason."""
        ended = counted(values, _SKIPS)
        no_room = sum(ended.pop(reason, 0) for reason in _NO_ROOM)
        results = counted(values, _PREPARES)
        assert results.pop("skip", 0) == sum(ended.values()) + no_room
        return ended + results + Counter({NO_ROOM: no_room})


def counted(values: dict[str, float], prefix: str) -> Counter[str]:
    """The samples of one metric that are not 0, by label."""
    return Counter(
        {
            name.removeprefix(prefix).rstrip("}"): int(value)
            for name, value in values.items()
            if name.startswith(prefix) and value
        }
    )
