"""Threads of gets beside prepares, clean-ups and damage, for a while.

``BBCACHE_SOAK_S`` says for how many seconds at least: a few tenths in the normal run, 60 with
``HYPOTHESIS_PROFILE=nightly``. It goes on until everything has happened once. The counts are
printed, which ``-s`` shows.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest
from concurrency.scene import prepare_results
from support.cache_helpers import LSN_A, Harness, Worker, noise
from support.helpers import count_descriptors, wait_until
from support.ledger import total_bytes, total_count
from support.shares import IS_NIGHTLY

from bbcache.outcomes import FetchResult
from bbcache.testing import MemoryTier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bbcache import Lsn, TenantId, TimelineId
    from bbcache.host import TarballWriter
    from bbcache.second_tier import ArchiveSink
    from bbcache.testing import MemoryTimeline

DURATION_S: Final = float(os.environ.get("BBCACHE_SOAK_S", "60" if IS_NIGHTLY else "0.5"))
READERS: Final = 16 if DURATION_S < 1 else 64
TIMELINES: Final = 16
MAX_ENTRIES: Final = 12  # fewer than there are timelines: some prepares find the cache full
MAX_BYTES: Final = 70_000  # likewise
_TAR_BYTES: Final = 4000
_LSN_STEP: Final = 0x10
_REMEMBERED: Final = 4  # LSNs of a timeline that readers still ask for
_PAUSE_S: Final = 0.002


class Story:
    """One timeline: its prepares, and the bytes that it must give.

    Attributes:
        timeline: as the host has it.
        archives: by LSN, the newest last; replaced as a whole, never changed.
        damaged: LSNs whose file somebody has written to; set before that happens.
        is_built: set at the end of each build.
    """

    def __init__(self, harness: Harness, number: int) -> None:
        self._harness = harness
        self.timeline: MemoryTimeline = harness.timeline(LSN_A)
        self.timeline.on_send = self._send
        self.timeline.tarball = lambda at: noise(_TAR_BYTES, int(at) << 8 | number)
        self.archives: dict[Lsn, bytes] = {}
        self.damaged: set[Lsn] = set()
        self.is_built = threading.Event()

    def check_cancelled(self) -> Lsn:
        """Move the tip to an LSN whose archive is known."""
        lsn = self.timeline.get_last_record_lsn() + _LSN_STEP
        kept = list(self.archives.items())[1 - _REMEMBERED :]
        self.archives = {**dict(kept), lsn: self._harness.sealed(self.timeline, lsn)}
        self.is_built.clear()
        self.timeline.advance(lsn)
        return lsn

    def _send(self, writer: TarballWriter, lsn: Lsn) -> None:
        writer.write(self.timeline.tarball(lsn))
        self.is_built.set()


class LyingTier(MemoryTier):
    """A second tier that has most archives, and gives some of them with a flipped byte.

    Attributes:
        stories: all timelines, by their ids.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stories: dict[TimelineId, Story] = {}
        self._random = random.Random(1)

    def offer(self, *_: object) -> None:
        """Take nothing: what it has follows from the timelines."""

    def fetch(
        self,
        tenant_id: TenantId,  # noqa: ARG002 - there is one
        timeline_id: TimelineId,
        lsn: Lsn,
        writer: ArchiveSink,
        deadline_s: float,  # noqa: ARG002 - it takes no time
    ) -> FetchResult:
        """Write an archive, or a bad one, without a look at it."""
        data = self.stories[timeline_id].archives.get(lsn)
        chance = self._random.random()
        if data is None or chance < 0.2:
            return FetchResult.ABSENT
        if chance < 0.4:
            place = self._random.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        writer.write(data)
        return FetchResult.HIT


class Soak:
    """Threads that use one cache as hard as they can, until `stop` is set.

    Attributes:
        counts: events by kind; each thread has counts of its own until it ends.
    """

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.stories = [Story(harness, number) for number in range(TIMELINES)]
        self.stop = threading.Event()
        self.counts: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._lock = threading.Lock()  # guards counts

    def run(
        self, jobs: Sequence[Callable[[random.Random, Counter[str]], None]], wanted: set[str]
    ) -> None:
        """Run every job in a thread of its own, over and over, for `DURATION_S`.

        They go on until all that is `wanted`, by the names of the counts, has happened.
        """
        workers = [Worker(self._repeat, job, seed) for seed, job in enumerate(jobs)]
        try:
            self.stop.wait(DURATION_S)
            wait_until(lambda: self.stop.is_set() or wanted <= self._seen | self.results().keys())
        finally:
            self.stop.set()
        for worker in workers:
            worker.result()

    def _repeat(self, job: Callable[[random.Random, Counter[str]], None], seed: int) -> None:
        rng, counts = random.Random(seed), Counter[str]()
        try:
            while not self.stop.is_set():
                job(rng, counts)
                self._seen.update(counts)
        except BaseException:
            self.stop.set()  # the others need not go on
            raise
        with self._lock:
            self.counts += counts

    def read(self, rng: random.Random, counts: Counter[str]) -> None:
        """One get of an LSN that is or was prepared: the sealed bytes, or nothing."""
        story = rng.choice(self.stories)
        archives = story.archives
        if not archives:
            return
        newest = max(archives)
        lsn = rng.choice([*archives, newest, newest, newest])
        tenant_id = self.harness.tenant.tenant_id
        file = self.harness.cache.get(tenant_id, story.timeline.timeline_id, lsn)
        if file is None:
            counts["misses"] += 1
            self.stop.wait(_PAUSE_S)  # a miss is so cheap that nothing else would get its turn
            return
        with file:
            content = file.read()
        if lsn in story.damaged:
            counts["hits not compared"] += 1
        else:
            assert content == archives[lsn], "bytes that were never sealed"
            counts["hits"] += 1

    def prepare(self, rng: random.Random, counts: Counter[str]) -> None:
        """A timeline goes on; mostly it is prepared there."""
        story = rng.choice(self.stories)
        with self._lock:  # one thread moves a timeline at a time
            lsn = story.check_cancelled()
        if rng.random() < 0.8:
            self.harness.send(story.timeline, lsn)
            counts["prepares"] += 1
            story.is_built.wait(0.1)  # it may be skipped

    def warm(self, rng: random.Random, counts: Counter[str]) -> None:
        """A fetch of a timeline at its tip, or a build of what the tier does not give."""
        story = rng.choice(self.stories)
        self.harness.cache.send_warm(
            self.harness.shard_of(story.timeline),
            story.timeline.timeline_id,
            story.timeline.get_last_record_lsn(),
            build=rng.random() < 0.3,
        )
        counts["prepares"] += 1
        self.stop.wait(_PAUSE_S)

    def clean_up(self, _rng: random.Random, counts: Counter[str]) -> None:
        """One clean-up step."""
        self.harness.cache.run_cleanup()
        counts["clean-ups"] += 1
        self.stop.wait(_PAUSE_S)

    def watch_limits(self, _rng: random.Random, counts: Counter[str]) -> None:
        """The limits hold at any moment."""
        assert total_bytes(self.harness.engine.index) <= MAX_BYTES
        assert total_count(self.harness.engine.index) <= MAX_ENTRIES
        counts["looks at the limits"] += 1
        self.stop.wait(_PAUSE_S)

    def damage(self, rng: random.Random, counts: Counter[str]) -> None:
        """Flip a bit of an entry's file, cut it short, or remove it."""
        entries = self.harness.cache.entries()
        if entries:
            entry = rng.choice(entries)
            story = next(s for s in self.stories if s.timeline.timeline_id == entry.timeline_id)
            story.damaged.add(entry.lsn)
            try:
                self._damage_file(self.harness.path(story.timeline, entry.lsn), rng)
                counts["damages"] += 1
            except FileNotFoundError:
                pass  # removed or replaced meanwhile
        self.stop.wait(_PAUSE_S)

    def _damage_file(self, path: Path, rng: random.Random) -> None:
        kind = rng.randrange(4)
        if kind == 0:
            path.unlink()
            return
        with path.open("r+b") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            place = rng.randrange(max(1, size_bytes))
            if kind == 1:
                file.truncate(place)
            else:
                byte = os.pread(file.fileno(), 1, place)
                os.pwrite(file.fileno(), bytes([(byte or b"\0")[0] ^ 1]), place)

    def results(self) -> Counter[str]:
        """How many prepares ended how, and how many files are in quarantine, by the metrics."""
        ended = {
            f"prepares {name}": n for name, n in prepare_results(self.harness.registry).items()
        }
        return +Counter(
            {**ended, "quarantined": int(self.harness.value("bbcache_quarantined_total"))}
        )

    def check_end(self) -> None:
        """Find what damage is left; then accounting, directory and counts agree."""
        harness = self.harness
        harness.wait_idle()
        while self._find_damage():
            harness.wait_idle()
        harness.cache.run_cleanup()
        harness.check_accounting()
        ended = sum(prepare_results(harness.registry).values())
        assert ended == self.counts["prepares"] + harness.value("bbcache_quarantined_total")

    def _find_damage(self) -> bool:
        """Read every entry; whether one of them was bad."""
        by_id = {story.timeline.timeline_id: story for story in self.stories}
        is_bad = False
        for entry in self.harness.cache.entries():
            archive = self.harness.cache.get(entry.tenant_id, entry.timeline_id, entry.lsn)
            is_bad |= archive is None
            if archive is not None:
                with archive:
                    assert archive.read() == by_id[entry.timeline_id].archives[entry.lsn]
        return is_bad


@pytest.fixture(autouse=True)
def _switches_often() -> Iterator[None]:
    """Let threads take turns ten times as often as usual."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(usual_s / 10)
    yield
    sys.setswitchinterval(usual_s)


@pytest.mark.slow
@pytest.mark.timeout(DURATION_S + 120)
@pytest.mark.parametrize(
    ("is_damaged", "has_tier"),
    [(False, False), (True, False), *[(True, True)] * IS_NIGHTLY],
    ids=["good disk", "bad disk", *["bad disk and tier"] * IS_NIGHTLY],
)
def test_soak(data_dir: Path, *, is_damaged: bool, has_tier: bool) -> None:
    """No wrong byte, no exception, nothing left over, and counters equal to the directory."""
    gc.collect()  # what tests before this one have left
    descriptors = count_descriptors()
    harness = Harness(
        data_dir,
        prepare_concurrency=4,
        max_size_entries=MAX_ENTRIES,
        max_total_size_bytes=MAX_BYTES,
        verify_reads="always" if is_damaged else "first",
    )
    harness.tier = tier = LyingTier() if has_tier else None
    with harness:
        soak = Soak(harness)
        if tier is not None:
            tier.stories = {story.timeline.timeline_id: story for story in soak.stories}
        jobs = [soak.prepare] * 4 + [soak.clean_up] * 2 + [soak.watch_limits]
        jobs += [soak.warm] * 2 * has_tier
        wanted = {"hits", "misses", "clean-ups", "looks at the limits"}
        wanted |= {"prepares ok", "prepares skip", *["damages", "quarantined"] * is_damaged}
        soak.run([soak.read] * READERS + jobs + [soak.damage] * is_damaged, wanted)
        soak.check_end()
        soak.counts.update(soak.results())
        soak.counts["fetched"] = harness.counts("bbcache_prepare_skips_total").get("fetched", 0)
    assert count_descriptors() <= descriptors
    print(f"\n{dict(sorted(soak.counts.items()))}")  # noqa: T201 - they are part of the result
    assert wanted <= soak.counts.keys()
    assert bool(soak.counts["fetched"]) == has_tier
    assert soak.counts["prepares error"] == 0
    assert bool(soak.counts["quarantined"]) == bool(soak.counts["damages"]) == is_damaged
