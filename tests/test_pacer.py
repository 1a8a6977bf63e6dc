"""Long work rests slice by slice, longer where somebody reads, and ends all the same."""

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


class _Road:
    """A right of way whose time passes only in rests and where a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.rests_s: list[float] = []
        self.pacer = Pacer(lambda: self.now_s, self.sleep)

    def sleep(self, rest_s: float) -> None:
        self.rests_s.append(rest_s)
        self.now_s += rest_s

    def work(self, step_s: float, count: int, *, is_read: bool = False) -> Iterator[int]:
        """Steps of so many seconds each, with a read in each where wanted."""
        for number in range(count):
            self.now_s += step_s
            self.pacer.is_taken |= is_read
            yield number


def test_work_of_less_than_a_slice_does_not_rest() -> None:
    """A small clean-up pays nothing."""
    road = _Road()
    assert [*road.pacer.paced(road.work(SLICE_S / 10, 9))] == [*range(9)]
    assert road.rests_s == []


def test_a_nap_comes_with_the_end_of_each_slice() -> None:
    """All items come, in order, and between slices any other thread gets in."""
    road = _Road()
    assert [*road.pacer.paced(road.work(SLICE_S / 3.5, 41))] == [*range(41)]
    assert road.rests_s == [SHORT_PAUSE_S] * 10


def test_whoever_reads_gets_a_pause_and_only_one() -> None:
    """A read makes the next rest a pause; without another the one after is a nap again."""
    road = _Road()
    road.pacer.is_taken = True
    for _ in range(3):
        road.pacer.rest()
    assert road.rests_s == [LONG_PAUSE_S, SHORT_PAUSE_S, SHORT_PAUSE_S]


def test_a_read_in_a_pause_asks_for_the_next() -> None:
    """What comes while the work rests is not forgotten."""
    rests_s: list[float] = []

    def sleep(rest_s: float) -> None:
        pacer.is_taken = len(rests_s) == 0
        rests_s.append(rest_s)

    pacer = Pacer(lambda: 0.0, sleep)
    for _ in range(3):
        pacer.rest()
    assert rests_s == [SHORT_PAUSE_S, LONG_PAUSE_S, SHORT_PAUSE_S]


def test_reads_without_end_make_work_five_times_as_long() -> None:
    """However many read, the work gets its share and ends."""
    road = _Road()
    began_s, work_s = road.now_s, 1000 * SLICE_S / 8
    for _ in road.pacer.paced(road.work(SLICE_S / 8, 1000, is_read=True)):
        pass
    assert 4.5 * work_s < road.now_s - began_s <= 5 * work_s


def test_one_slow_step_is_one_rest() -> None:
    """What a host's callback takes is not made up for."""
    road = _Road()
    assert [*road.pacer.paced(road.work(100 * SLICE_S, 2))] == [0, 1]
    assert road.rests_s == [SHORT_PAUSE_S] * 2


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[Pacer]:
    """Each right of way that a cache is given, in the order of their making."""
    made: list[Pacer] = []

    def make() -> Pacer:
        made.append(Pacer())
        return made[-1]

    monkeypatch.setattr("bbcache.engine.Pacer", make)
    return made


def _rest_always(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[float], None]) -> None:
    """Let the next cache rest whenever it may, by this function."""
    always_due = itertools.count(0, 1).__next__
    monkeypatch.setattr("bbcache.engine.Pacer", lambda: Pacer(always_due, sleep))


def test_a_clean_up_rests_without_any_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its rests others can read and publish; what is published stays, what is outgrown goes."""
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

    _rest_always(monkeypatch, sleep)
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


@pytest.mark.parametrize("rest", range(4))
def test_a_ctrl_c_in_a_rest_ends_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: int
) -> None:
    """It passes through to the caller, with nothing removed half-way."""
    rests = itertools.count()
    is_cleaning = threading.Event()

    def sleep(_: float) -> None:
        if is_cleaning.is_set() and next(rests) == rest:
            raise KeyboardInterrupt

    _rest_always(monkeypatch, sleep)
    with Harness(tmp_path / "cache") as harness:
        timeline = harness.prepared()
        timeline.advance(LSN_B)
        is_cleaning.set()
        with pytest.raises(KeyboardInterrupt):
            harness.cache.run_cleanup()
        assert harness.holds(timeline)
        harness.cache.run_cleanup()
        assert not harness.holds(timeline)


def test_every_read_takes_the_way(tmp_path: Path, ways: list[Pacer]) -> None:
    """Hits, misses and fills alike; what only asks the index does not."""
    with Harness(tmp_path / "cache") as harness:
        timeline = harness.prepared()
        (pacer,) = ways  # one, for reads and for clean-ups
        pacer.is_taken = False
        assert harness.holds(timeline)
        assert not pacer.is_taken
        reads: list[Callable[[], object]] = [
            lambda: harness.get(timeline),
            lambda: harness.open_file(timeline, LSN_B),
            lambda: harness.cache.get_or_prepare(
                harness.tenant.tenant_shard_id, timeline.timeline_id, LSN_A
            ).close(),
        ]
        for read in reads:
            pacer.is_taken = False
            read()
            assert pacer.is_taken
