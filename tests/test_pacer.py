"""Long work pauses after each slice, longer while there are reads, and still ends."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import LSN_A, LSN_B, Harness, tar_of
from support.helpers import run_threads, wait_until

from bbcache.pacer import LONG_PAUSE_S, SHORT_PAUSE_S, SLICE_S, Pacer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bbcache.testing import MemoryTimeline


class _Clocked:
    """A pacer whose clock moves only in pauses and in the work of a test."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pauses_s: list[float] = []
        self.pacer = Pacer(lambda: self.now_s, self.sleep)

    def sleep(self, pause_s: float) -> None:
        self.pauses_s.append(pause_s)
        self.now_s += pause_s

    def work(self, step_s: float, count: int, *, is_read: bool = False) -> Iterator[int]:
        """Do steps of `step_s` seconds each, and read in each if `is_read`."""
        for number in range(count):
            self.now_s += step_s
            self.pacer.has_read |= is_read
            yield number


def test_work_of_less_than_a_slice_does_not_pause() -> None:
    """A small clean-up costs nothing more."""
    clocked = _Clocked()
    assert [*clocked.pacer.paced(clocked.work(SLICE_S / 10, 9))] == [*range(9)]
    assert clocked.pauses_s == []


def test_a_short_pause_ends_each_slice() -> None:
    """All items come in order, and other threads run between the slices."""
    clocked = _Clocked()
    assert [*clocked.pacer.paced(clocked.work(SLICE_S / 3.5, 41))] == [*range(41)]
    assert clocked.pauses_s == [SHORT_PAUSE_S] * 10


def test_a_read_makes_one_pause_long() -> None:
    """The next pause is long; without another read the one after it is short again."""
    clocked = _Clocked()
    clocked.pacer.has_read = True
    for _ in range(3):
        clocked.pacer.pause()
    assert clocked.pauses_s == [LONG_PAUSE_S, SHORT_PAUSE_S, SHORT_PAUSE_S]


def test_a_read_during_a_pause_makes_the_next_one_long() -> None:
    """The read is not forgotten."""
    pauses_s: list[float] = []

    def sleep(pause_s: float) -> None:
        pacer.has_read = len(pauses_s) == 0
        pauses_s.append(pause_s)

    pacer = Pacer(lambda: 0.0, sleep)
    for _ in range(3):
        pacer.pause()
    assert pauses_s == [SHORT_PAUSE_S, LONG_PAUSE_S, SHORT_PAUSE_S]


def test_endless_reads_make_work_five_times_as_long() -> None:
    """The work gets its share, and ends."""
    clocked = _Clocked()
    began_s, work_s = clocked.now_s, 1000 * SLICE_S / 8
    for _ in clocked.pacer.paced(clocked.work(SLICE_S / 8, 1000, is_read=True)):
        pass
    assert 4.5 * work_s < clocked.now_s - began_s <= 5 * work_s


def test_one_slow_step_causes_one_pause() -> None:
    """The time of a slow host callback is not made up for."""
    clocked = _Clocked()
    assert [*clocked.pacer.paced(clocked.work(100 * SLICE_S, 2))] == [0, 1]
    assert clocked.pauses_s == [SHORT_PAUSE_S] * 2


@pytest.fixture
def pacers(monkeypatch: pytest.MonkeyPatch) -> list[Pacer]:
    """The pacers of the caches that are started, in order."""
    made: list[Pacer] = []

    def make() -> Pacer:
        made.append(Pacer())
        return made[-1]

    monkeypatch.setattr("bbcache.engine.Pacer", make)
    return made


def _pause_always(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[float], None]) -> None:
    """Make the next cache pause wherever it may, by this function."""
    always_due = itertools.count(0, 1).__next__
    monkeypatch.setattr("bbcache.engine.Pacer", lambda: Pacer(always_due, sleep))


def test_a_clean_up_pauses_without_any_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other threads read and publish meanwhile; new entries stay, and outgrown ones go."""
    born: list[MemoryTimeline] = []
    is_cleaning = threading.Event()

    def use() -> None:
        assert harness.get(kept[0]) == tar_of(kept[0])
        born.append(harness.timeline())
        harness.send(born[-1])
        wait_until(lambda: harness.holds(born[-1]))

    def sleep(_: float) -> None:
        if is_cleaning.is_set():
            run_threads([use])

    _pause_always(monkeypatch, sleep)
    with Harness(tmp_path / "cache") as harness:
        gone, *kept = [harness.prepared() for _ in range(3)]
        gone.advance(LSN_B)
        is_cleaning.set()
        harness.cache.run_cleanup()
        is_cleaning.clear()
        assert len(born) >= 3  # the tenant, its timelines, what is left
        assert not harness.holds(gone)
        assert all(harness.holds(timeline) for timeline in [*kept, *born])
        harness.wait_idle()
        harness.check_accounting()


@pytest.mark.parametrize("pause", range(4))
def test_a_ctrl_c_in_a_pause_ends_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: int
) -> None:
    """It reaches the caller, and nothing is removed half-way."""
    pauses = itertools.count()
    is_cleaning = threading.Event()

    def sleep(_: float) -> None:
        if is_cleaning.is_set() and next(pauses) == pause:
            raise KeyboardInterrupt

    _pause_always(monkeypatch, sleep)
    with Harness(tmp_path / "cache") as harness:
        timeline = harness.prepared()
        timeline.advance(LSN_B)
        is_cleaning.set()
        with pytest.raises(KeyboardInterrupt):
            harness.cache.run_cleanup()
        assert harness.holds(timeline)
        harness.cache.run_cleanup()
        assert not harness.holds(timeline)


def test_every_read_sets_the_flag(tmp_path: Path, pacers: list[Pacer]) -> None:
    """Hits, misses and fills do; a call that only asks the index does not."""
    with Harness(tmp_path / "cache") as harness:
        timeline = harness.prepared()
        (pacer,) = pacers  # one, for reads and for clean-ups
        pacer.has_read = False
        assert harness.holds(timeline)
        assert not pacer.has_read
        reads: list[Callable[[], object]] = [
            lambda: harness.get(timeline),
            lambda: harness.open_file(timeline, LSN_B),
            lambda: harness.cache.get_or_prepare(
                harness.tenant.tenant_shard_id, timeline.timeline_id, LSN_A
            ).close(),
        ]
        for read in reads:
            pacer.has_read = False
            read()
            assert pacer.has_read
