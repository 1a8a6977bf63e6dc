"""LSNs that are not reached yet, or never: they hold no worker, slot or capacity."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import (
    DEADLINE_S,
    LSN_A,
    LSN_B,
    LSN_C,
    Gate,
    Harness,
    Worker,
    put,
    stop_while_sending,
    tar_of,
)
from support.fill_helpers import fill, filled, fillers, fills, waiting_callers
from support.helpers import wait_until

from bbcache import FillError, FillTimeoutError, Lsn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bbcache.host import TarballWriter
    from bbcache.testing import MemoryTimeline

BOGUS = Lsn(2**63)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A running cache with one worker and a very long `wait_lsn_timeout`."""
    with Harness(tmp_path / "cache", prepare_concurrency=1) as opened:
        yield opened


def wait_phases(harness: Harness) -> float:
    """How many waits for an LSN have ended."""
    return harness.value("bbcache_prepare_seconds_count{phase=wait_lsn}")


def until_looked_at(timeline: MemoryTimeline) -> Gate:
    """A gate that opens itself at the first wait for an LSN of a timeline."""
    gate, real_wait = Gate(), timeline.wait_lsn
    gate.open()

    def wait(lsn: Lsn, timeout_s: float) -> None:
        gate()
        real_wait(lsn, timeout_s)

    put(timeline, "wait_lsn", wait)
    return gate


@pytest.mark.parametrize("kind", ["prepare", "fill"])
def test_the_true_prepare_passes_one_that_waits(harness: Harness, kind: str) -> None:
    """A prepare at the tip passes, whichever call asked for the LSN that never comes."""
    timeline = harness.timeline()
    looked = until_looked_at(timeline)
    waiting = fillers(harness, timeline, 1, BOGUS) if kind == "fill" else []
    if kind == "prepare":
        harness.send(timeline, BOGUS)
    looked.wait_for()
    harness.send(timeline)
    wait_until(lambda: harness.holds(timeline))
    timeline.advance(LSN_B)
    assert filled(harness, timeline, LSN_B) == ("built", tar_of(timeline, LSN_B))
    harness.send(timeline, LSN_C)  # not reached yet, and true
    timeline.advance(LSN_C)
    wait_until(lambda: harness.counts() == {"ok": 3})
    assert harness.holds(timeline, LSN_C)
    assert not harness.cache.wait_idle(0)
    harness.cache.close(DEADLINE_S)
    for worker in waiting:
        with pytest.raises(Exception, match="closing"):
            worker.result()


@pytest.mark.parametrize("lsns", [(LSN_A, BOGUS), (BOGUS, LSN_A), (BOGUS, LSN_A, LSN_C)], ids=str)
def test_queued_together_the_true_one_is_published(tmp_path: Path, lsns: tuple[Lsn, ...]) -> None:
    """In any order; the other requests end as errors after their timeout, each counted once."""
    settings = {"prepare_concurrency": 1, "wait_lsn_timeout": 1.0}
    with Harness(tmp_path / "cache", **settings) as harness, Gate() as gate:
        busy, timeline = harness.timeline(), harness.timeline()
        stop_while_sending(busy, gate)
        harness.send(busy)
        gate.wait_for()
        for lsn in lsns:
            harness.send(timeline, lsn)
        gate.open()
        wait_until(lambda: harness.holds(timeline))
        harness.wait_idle()
        assert harness.counts() == {"ok": 2, "error": len(lsns) - 1}
        assert harness.get(timeline) == tar_of(timeline)


def test_the_error_names_what_was_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It names the tip as well; the caller gets the same error."""
    with Harness(tmp_path / "cache", wait_lsn_timeout=0.5) as harness:
        timeline = harness.timeline()
        with pytest.raises(FillError, match="was not reached in 0") as caught:
            fill(harness, timeline, BOGUS)
        for text in (str(caught.value), caplog.text):
            assert str(BOGUS) in text
            assert str(LSN_A) in text


def test_many_that_wait_take_no_place_of_others(tmp_path: Path) -> None:
    """Prepares find room beside any number of them, of one timeline or many."""
    settings = {"prepare_concurrency": 1, "prepare_channel_size": 2}
    with Harness(tmp_path / "cache", **settings) as harness:
        timelines = [harness.timeline() for _ in range(3)]
        for lsn in range(BOGUS, BOGUS + 3):
            for timeline in timelines:
                looked = until_looked_at(timeline)
                harness.send(timeline, Lsn(lsn))
                looked.wait_for()
                with pytest.raises(FillTimeoutError):
                    fill(harness, timeline, Lsn(lsn + 100), timeout_s=0)
        assert set(harness.skips) <= {"queue_full", "cancelled"}  # of those that never come
        for timeline in [*timelines, harness.timeline()]:
            harness.send(timeline)
            wait_until(lambda: harness.holds(timeline))  # noqa: B023 - it is called in this turn


@pytest.mark.parametrize(
    "kind", ["sent and asked", "sent and asked of others", "asked", "asked of others"]
)
def test_impatient_callers_starve_no_prepare(tmp_path: Path, kind: str) -> None:
    """Callers that come and go at ever new LSNs that are never reached."""
    settings = {"prepare_concurrency": 1, "prepare_channel_size": 16}
    with Harness(tmp_path / "cache", **settings) as harness:
        true = harness.timeline()
        is_same = kind in {"sent and asked", "asked"}
        bogus = [true if is_same else harness.timeline() for _ in range(8)]
        numbers, is_over = itertools.count(BOGUS), threading.Event()

        def flood(timeline: MemoryTimeline) -> None:
            while not is_over.is_set():
                lsn = Lsn(next(numbers))
                if kind.startswith("sent"):
                    harness.send(timeline, lsn)
                with suppress(FillTimeoutError):
                    fill(harness, timeline, lsn, timeout_s=0.005)

        workers = [Worker(flood, timeline) for timeline in bogus]
        try:
            wait_until(lambda: next(numbers) > BOGUS + 500)
            for lsn in (LSN_A, LSN_B, LSN_C):
                true.advance(lsn)
                harness.send(true, lsn)
                wait_until(lambda: harness.holds(true, lsn))  # noqa: B023 - it is called in this turn
        finally:
            is_over.set()
            for worker in workers:
                worker.result()


def test_many_timelines_wait_and_one_worker_builds(harness: Harness) -> None:
    """A worker looks at them in turn, and builds each that is reached."""
    waiting = [harness.timeline() for _ in range(50)]
    for timeline in waiting:
        harness.send(timeline, LSN_B)
    other = harness.timeline()
    assert filled(harness, other) == ("built", tar_of(other))
    for timeline in waiting[::7]:
        timeline.advance(LSN_B)
        wait_until(lambda: harness.holds(timeline, LSN_B))  # noqa: B023 - it is called in this turn
    assert harness.counts() == {"ok": 9}
    for timeline in waiting:
        timeline.advance(LSN_B)
    harness.wait_idle()
    assert harness.counts() == {"ok": 51}
    assert wait_phases(harness) == 51
    assert harness.value("bbcache_prepare_seconds_count{phase=queue}") == 51


@pytest.mark.parametrize("count", [1, 60])
def test_waiting_does_not_spin(tmp_path: Path, count: int) -> None:
    """Waits are paced, also with a host that gives up at once."""
    with Harness(tmp_path / "cache", prepare_concurrency=2) as harness:
        looks: list[float] = []

        def wait(_lsn: Lsn, timeout_s: float) -> None:
            looks.append(timeout_s)
            raise TimeoutError

        timelines = [harness.timeline() for _ in range(count)]
        for timeline in timelines:
            timeline.on_wait = wait
            harness.send(timeline, LSN_B)
        wait_until(lambda: harness.value("bbcache_prepare_seconds_count{phase=queue}") == count)
        began_s, before = time.monotonic(), len(looks)
        wait_until(lambda: len(looks) >= before + 5)
        made, passed_s = len(looks) - before, time.monotonic() - began_s
        assert made <= 2 * (passed_s / (0.2 if count == 1 else 0.005) + 1)


def test_the_wait_is_observed_once_and_whole(harness: Harness) -> None:
    """However often the worker has looked at the LSN."""
    timeline = harness.timeline()
    looked = until_looked_at(timeline)
    began_s = time.monotonic()
    harness.send(timeline, LSN_B)
    looked.wait_for(3)
    waited_s = time.monotonic() - began_s
    assert wait_phases(harness) == 0
    timeline.advance(LSN_B)
    harness.wait_idle()
    assert wait_phases(harness) == 1
    total_s = harness.value("bbcache_prepare_seconds_sum{phase=wait_lsn}")
    assert waited_s * 0.5 < total_s <= time.monotonic() - began_s


def test_a_wait_ends_with_its_last_caller(harness: Harness) -> None:
    """It is a skip, and no failure: a caller that asks again waits again."""
    timeline = harness.timeline()
    for count in (1, 2):
        with pytest.raises(FillTimeoutError, match="has not reached the LSN"):
            fill(harness, timeline, BOGUS, timeout_s=0.3)
        harness.wait_idle()
        assert harness.skips == {"cancelled": count}
    assert filled(harness, timeline) == ("built", tar_of(timeline))


def test_a_wait_that_the_host_asked_for_outlasts_callers(harness: Harness) -> None:
    """Joined before or after, it waits until its own time is up."""
    timeline = harness.timeline()
    harness.send(timeline, LSN_B)
    with pytest.raises(FillTimeoutError):
        fill(harness, timeline, LSN_B, timeout_s=0.3)
    (worker,) = fillers(harness, timeline, 1, LSN_C)
    harness.send(timeline, LSN_C)
    timeline.advance(LSN_C)
    assert worker.result() == ("built", tar_of(timeline, LSN_C))
    harness.wait_idle()
    assert harness.holds(timeline, LSN_C)
    assert harness.counts()["skip"] == 2  # at `LSN_B`, and the second one at `LSN_C`


def test_waits_of_one_timeline_end_in_order(harness: Harness) -> None:
    """Each caller gets its LSN when it is reached, beside one that never is."""
    timeline = harness.timeline()
    workers = [fillers(harness, timeline, 1, lsn)[0] for lsn in (BOGUS, LSN_C, LSN_B)]
    for worker, lsn in ((workers[2], LSN_B), (workers[1], LSN_C)):
        timeline.advance(lsn)
        assert worker.result() == ("built", tar_of(timeline, lsn))
    assert waiting_callers() == 1


def test_a_wait_notices_that_its_tenant_goes(harness: Harness) -> None:
    """The wait ends before its timeout."""
    timeline = harness.timeline()
    looked = until_looked_at(timeline)
    (worker,) = fillers(harness, timeline, 1, BOGUS)
    looked.wait_for()
    harness.host.tenants[harness.tenant.tenant_shard_id] = None
    with pytest.raises(FillError, match="not attached"):
        worker.result()


def test_a_close_ends_every_wait(harness: Harness) -> None:
    """They end at once, although one worker looks at all of them in turn."""
    timelines = [harness.timeline() for _ in range(30)]
    for timeline in timelines:
        harness.send(timeline, BOGUS)
    workers = fillers(harness, timelines[0], 2, LSN_B)
    harness.cache.close(DEADLINE_S)
    for worker in workers:
        with pytest.raises(Exception, match="closing"):
            worker.result()
    assert fills(harness) == {"closing": 2}
    assert harness.skips == {"closing": 31}
    assert not harness.living()


class TestOutgrown:
    """LSNs that a timeline is past, whose builds are for their callers alone."""

    @pytest.fixture
    def timeline(self, harness: Harness) -> MemoryTimeline:
        """One at `LSN_C`, which notes what is built."""
        made = harness.timeline(LSN_C)
        self.builds: list[Lsn] = []

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            self.builds.append(lsn)
            writer.write(made.tarball(lsn))

        made.on_send = send
        return made

    def test_they_go_behind_the_tip(self, harness: Harness, timeline: MemoryTimeline) -> None:
        """Although their callers came first."""
        busy = harness.timeline()
        with Gate() as gate:
            stop_while_sending(busy, gate)
            harness.send(busy)
            gate.wait_for()
            workers = [fillers(harness, timeline, 1, lsn)[0] for lsn in (LSN_A, LSN_B)]
            harness.send(timeline, LSN_C)
            gate.open()
            for worker, lsn in zip(workers, (LSN_A, LSN_B), strict=True):
                assert worker.result() == ("built", tar_of(timeline, lsn))
        harness.wait_idle()
        assert self.builds[0] == LSN_C
        assert sorted(self.builds) == [LSN_A, LSN_B, LSN_C]
        assert harness.holds(timeline, LSN_C)

    def test_one_that_runs_delays_the_tip_by_itself_alone(
        self, harness: Harness, timeline: MemoryTimeline
    ) -> None:
        """Requests at older LSNs come after the tip."""
        with Gate() as gate:
            send = timeline.on_send
            assert send is not None

            def stop(writer: TarballWriter, lsn: Lsn) -> None:
                if lsn == LSN_A:
                    gate()
                send(writer, lsn)

            timeline.on_send = stop
            workers = fillers(harness, timeline, 1, LSN_A)
            gate.wait_for()
            workers += fillers(harness, timeline, 1, LSN_B)
            harness.send(timeline, LSN_C)
            gate.open()
            for worker in workers:
                worker.result()
        assert self.builds == [LSN_A, LSN_C, LSN_B]

    def test_those_that_fail_cost_the_tip_nothing(
        self, harness: Harness, timeline: MemoryTimeline
    ) -> None:
        """A host that refuses LSNs below its horizon."""

        def send(writer: TarballWriter, lsn: Lsn) -> None:
            if lsn != LSN_C:
                raise ValueError("below the horizon")
            writer.write(timeline.tarball(lsn))

        timeline.on_send = send
        workers = [Worker(fill, harness, timeline, Lsn(LSN_A + n), None) for n in range(10)]
        harness.send(timeline, LSN_C)
        for worker in workers:
            with pytest.raises(FillError, match="below the horizon"):
                worker.result()
        wait_until(lambda: harness.holds(timeline, LSN_C))
