"""The policy return-rate: what it keeps, what it declines, and what it costs in memory."""

from __future__ import annotations

import gc
import random
import tracemalloc

import pytest
from eviction.fleet import DAY_S, SIZE_BYTES, hit_rate, key_of, make_fleet

from bbcache.eviction import Never, Oldest, Regularity, ReturnRate

HOUR_S = 3600.0
START_S = 1_800_000_000.0  # a whole hour
KEYS = [key_of(number) for number in range(20)]


def _live(policy: ReturnRate, key: bytes, sleeps_s: list[float], end_s: float) -> None:
    """Let a timeline sleep and start so often that its last start is at a time."""
    now_s = end_s - sum(sleeps_s) - 60 * len(sleeps_s)
    for sleep_s in sleeps_s:
        policy.stopped(key, now_s, SIZE_BYTES)
        policy.started(key, now_s + sleep_s)
        now_s += sleep_s + 60


def _hold(policy: ReturnRate, key: bytes, now_s: float, size_bytes: int = SIZE_BYTES) -> None:
    policy.stopped(key, now_s, size_bytes)
    policy.held(key, size_bytes)


def _inverse(rng: random.Random, slept_s: float) -> float:
    wanted_s = (3 * HOUR_S) ** 2 / slept_s * rng.lognormvariate(0, 0.1)
    return min(max(wanted_s, 300.0), 4 * DAY_S)


def test_inverse_habits() -> None:
    """The longer the last sleep, the shorter the next: rows without regularity fail on it."""
    events = make_fleet(300, 12, _inverse)
    rate = hit_rate(ReturnRate(30), events, 4 * DAY_S)
    assert rate > 0.18  # without regularity: 0.01
    assert rate > 1.5 * hit_rate(Never(30), events, 4 * DAY_S)
    assert rate > 3 * hit_rate(Oldest(30), events, 4 * DAY_S)


def test_steady_habits() -> None:
    """Where each timeline has a sleep of its own, it beats oldest-first by far."""
    medians_s: dict[int, float] = {}

    def steady(rng: random.Random, slept_s: float) -> float:
        return medians_s.setdefault(id(rng), slept_s) * rng.lognormvariate(0, 0.3)

    events = make_fleet(200, 8, steady)
    rate = hit_rate(ReturnRate(20), events, 3 * DAY_S)
    assert rate > 1.15 * hit_rate(Oldest(20), events, 3 * DAY_S)


def test_the_least_likely_goes() -> None:
    """Of two timelines the one with the longer sleeps is evicted, though it stopped later."""
    policy = ReturnRate(2)
    often, seldom, newcomer = KEYS[:3]
    _live(policy, often, [600.0] * 6, START_S)
    _live(policy, seldom, [40 * HOUR_S] * 6, START_S)
    _live(policy, newcomer, [1200.0] * 6, START_S)
    _hold(policy, often, START_S)
    _hold(policy, seldom, START_S + 1)
    policy.stopped(newcomer, START_S + 2, SIZE_BYTES)
    assert policy.victims(newcomer, SIZE_BYTES, START_S + 2) == [seldom]
    assert policy.score(often, START_S + 2) > policy.score(newcomer, START_S + 2)
    assert policy.rank(seldom, START_S + 2) == 0
    assert policy.rank(often, START_S + 2) == 1


def test_the_least_likely_newcomer_is_declined() -> None:
    """Nothing is evicted for a newcomer that is worth less than all that is there."""
    policy = ReturnRate(1)
    often, seldom = KEYS[:2]
    _live(policy, often, [600.0] * 6, START_S)
    _live(policy, seldom, [40 * HOUR_S] * 6, START_S)
    _hold(policy, often, START_S)
    policy.stopped(seldom, START_S, SIZE_BYTES)
    assert policy.victims(seldom, SIZE_BYTES, START_S) is None
    assert policy.lowest_score(START_S) == policy.score(often, START_S)


def test_nothing_goes_while_there_is_room() -> None:
    """A newcomer that fits evicts nothing, also one that is worth little."""
    policy = ReturnRate(2, 3 * SIZE_BYTES)
    _hold(policy, KEYS[0], START_S)
    policy.stopped(KEYS[1], START_S, SIZE_BYTES)
    assert policy.victims(KEYS[1], SIZE_BYTES, START_S) == []


def test_room_for_what_the_policy_does_not_know() -> None:
    """A caller that counts other files too says how much must go."""
    policy = ReturnRate(5)
    _hold(policy, KEYS[0], START_S)
    _hold(policy, KEYS[1], START_S + 1)
    now_s = START_S + 3 * HOUR_S
    policy.stopped(KEYS[2], now_s, SIZE_BYTES)
    assert policy.cheaper(KEYS[2], 1, 0, now_s) == [KEYS[0]]
    assert policy.cheaper(KEYS[2], 1, SIZE_BYTES + 1, now_s) == KEYS[:2]
    assert policy.cheaper(KEYS[2], 3, 0, now_s) is None
    assert policy.lowest(3, 0, now_s) == KEYS[:2]


def test_an_archive_without_history() -> None:
    """An archive that is found is as old as its file, and of no known kind."""
    policy = ReturnRate(5)
    for number, key in enumerate(KEYS[:3]):
        policy.found(key, SIZE_BYTES, START_S - number * HOUR_S, START_S)
    assert policy.lowest(3, 0, START_S) == [KEYS[2], KEYS[1], KEYS[0]]
    assert sorted(policy.held_keys()) == sorted(KEYS[:3])


def test_a_dead_branch_loses_its_place() -> None:
    """The longer a timeline has slept beyond its habit, the less its archive is worth."""
    policy = ReturnRate(10)
    _live(policy, KEYS[0], [600.0] * 8, START_S)
    _hold(policy, KEYS[0], START_S)
    scores = [policy.score(KEYS[0], START_S + hours * HOUR_S) for hours in (0, 1, 10, 100, 1000)]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < scores[0] / 500


def test_a_started_timeline_scores_0() -> None:
    """Its archive is outdated: it goes first, and again counts once it has stopped."""
    policy = ReturnRate(10)
    for number, key in enumerate(KEYS[:3]):
        _hold(policy, key, START_S + number)
    policy.started(KEYS[1], START_S + 10)
    assert policy.score(KEYS[1], START_S + 10) == 0
    assert policy.rank(KEYS[1], START_S + 10) == 0
    assert policy.lowest(1, 0, START_S + 10) == [KEYS[1]]
    policy.stopped(KEYS[1], START_S + 20, SIZE_BYTES)
    assert policy.score(KEYS[1], START_S + 20) > 0


def test_of_equal_archives_the_older_goes() -> None:
    """Ties go by the time of the stop."""
    policy = ReturnRate(10)
    for number, key in enumerate(KEYS[:4]):
        _hold(policy, key, START_S + number / 10)
    assert policy.lowest(2, 0, START_S + 1) == KEYS[:2]


def test_a_large_archive_is_worth_less() -> None:
    """Under a limit of bytes an archive is worth its chance per byte."""
    policy = ReturnRate(None, 10 * SIZE_BYTES)
    _hold(policy, KEYS[0], START_S, 5 * SIZE_BYTES)
    _hold(policy, KEYS[1], START_S, SIZE_BYTES)
    assert policy.score(KEYS[1], START_S) == pytest.approx(5 * policy.score(KEYS[0], START_S))
    policy.stopped(KEYS[2], START_S, SIZE_BYTES)
    assert policy.victims(KEYS[2], 5 * SIZE_BYTES, START_S) == [KEYS[0]]


def test_never_more_than_needed() -> None:
    """If the last victim is large enough alone, the small ones before it stay."""
    policy = ReturnRate(None, 10 * SIZE_BYTES)
    old_s = START_S - 1000 * HOUR_S
    _hold(policy, KEYS[0], old_s, SIZE_BYTES)
    _hold(policy, KEYS[1], old_s + HOUR_S, 2 * SIZE_BYTES)
    _hold(policy, KEYS[2], old_s + 2 * HOUR_S, 7 * SIZE_BYTES)
    policy.stopped(KEYS[3], START_S, 7 * SIZE_BYTES)
    wanted = policy.victims(KEYS[3], 7 * SIZE_BYTES, START_S)
    assert wanted == [KEYS[2]]
    assert policy.victims(KEYS[3], 7 * SIZE_BYTES, START_S) == wanted  # it has changed nothing


def test_spared_archives_are_no_candidates() -> None:
    """A pin keeps an archive, also one that comes later, until it is taken back."""
    policy = ReturnRate(2)
    policy.spare(KEYS[0])
    for number, key in enumerate(KEYS[:2]):
        _hold(policy, key, START_S + number)
    policy.spare(KEYS[1])
    later_s = START_S + 100 * HOUR_S
    policy.stopped(KEYS[2], later_s, SIZE_BYTES)
    assert policy.victims(KEYS[2], SIZE_BYTES, later_s) is None
    assert policy.lowest(2, 0, later_s) == []
    assert policy.lowest_score(later_s) is None
    policy.unspare(KEYS[0])
    assert policy.victims(KEYS[2], SIZE_BYTES, later_s) == [KEYS[0]]


def test_smaller_limits() -> None:
    """New limits hold from then on."""
    policy = ReturnRate(10)
    for number, key in enumerate(KEYS[:3]):
        _hold(policy, key, START_S + number)
    policy.set_limits(3, None)
    later_s = START_S + 100 * HOUR_S
    policy.stopped(KEYS[3], later_s, SIZE_BYTES)
    assert policy.victims(KEYS[3], SIZE_BYTES, later_s) == [KEYS[0]]


def test_habits_in_numbers() -> None:
    """What an operator is told: how long, how regularly, how often, at which hours."""
    policy = ReturnRate(10)
    assert policy.habits(KEYS[0], START_S) is None
    _hold(policy, KEYS[0], START_S - 10 * HOUR_S)
    new = policy.habits(KEYS[0], START_S)
    assert new is not None
    assert (new.typical_sleep_s, new.sleeps_seen, new.asleep_s) == (None, 0, 10 * HOUR_S)
    _live(policy, KEYS[1], [1800.0] * 41, START_S)
    running = policy.habits(KEYS[1], START_S)
    assert running is not None
    assert running.asleep_s is running.horizon_s is running.return_share is None
    policy.stopped(KEYS[1], START_S, SIZE_BYTES)
    habits = policy.habits(KEYS[1], START_S + 600)
    assert habits is not None
    assert habits.typical_sleep_s == pytest.approx(1800, rel=0.01)
    assert habits.regularity is Regularity.CLOCKWORK
    assert (habits.sleeps_seen, habits.asleep_s) == (41, 600.0)
    assert sum(habits.starts_by_hour) == 41 * 8
    assert habits.return_share is not None
    assert habits.horizon_s is not None
    assert habits.return_share > 0.5
    assert 1000 < habits.horizon_s < 3000


def test_the_size_to_plan_for() -> None:
    """The last size of the timeline, rounded up by a tenth at most, else the mean of all."""
    policy = ReturnRate(10)
    assert policy.planned_size_bytes(KEYS[0]) == 1
    _hold(policy, KEYS[0], START_S, 100_000)
    _hold(policy, KEYS[1], START_S, 300_000)
    assert 100_000 <= policy.planned_size_bytes(KEYS[0]) <= 110_500
    assert policy.planned_size_bytes(KEYS[2]) == 200_000


def test_saved_habits() -> None:
    """A restart that has the saved state scores as before."""
    policy, events = ReturnRate(20), make_fleet(100, 4, _inverse)
    hit_rate(policy, events, DAY_S)
    after = ReturnRate(20)
    assert after.load(policy.save(), 4 * DAY_S)
    for number in range(100):
        before = policy.habits(key_of(number), 4 * DAY_S)
        loaded = after.habits(key_of(number), 4 * DAY_S)
        assert before is not None
        assert loaded is not None
        assert loaded.starts_by_hour == before.starts_by_hour
    for key in policy.held_keys():
        score = policy.score(key, 4 * DAY_S)
        assert after.score(key, 4 * DAY_S) == pytest.approx(score, rel=0.1)


def test_an_archive_that_is_found_at_a_restart() -> None:
    """It is as old as its timeline's last stop in the saved state, or as the stop it is told."""
    policy = ReturnRate(20)
    _live(policy, KEYS[0], [HOUR_S] * 5, START_S)
    policy.stopped(KEYS[0], START_S, SIZE_BYTES)
    saved, later_s = policy.save(), START_S + 5 * HOUR_S
    after = ReturnRate(20)
    assert after.load(saved, later_s)
    after.held(KEYS[0], SIZE_BYTES)
    _hold(policy, KEYS[1], later_s)
    assert after.score(KEYS[0], later_s) == pytest.approx(policy.score(KEYS[0], later_s), rel=0.05)


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "older"])
def test_damaged_state_is_refused(damage: str) -> None:
    """Nothing of it is taken."""
    policy = ReturnRate(20)
    _live(policy, KEYS[0], [HOUR_S] * 5, START_S)
    saved = bytearray(policy.save())
    if damage == "bit":
        saved[-7] ^= 16
    data = {"empty": b"", "cut": saved[:-1], "older": b"bbcache habits 0\n" + saved[17:]}
    after = ReturnRate(20)
    assert not after.load(bytes(data.get(damage, saved)), START_S)
    assert after.habits(KEYS[0], START_S) is None


def test_a_clock_that_goes_back() -> None:
    """A time before the last one does no harm."""
    policy = ReturnRate(2)
    for key in KEYS[:2]:
        _hold(policy, key, START_S)
    before_s = START_S - 40 * DAY_S
    policy.started(KEYS[0], before_s)
    policy.stopped(KEYS[2], before_s, SIZE_BYTES)
    habits = policy.habits(KEYS[0], before_s)
    assert habits is not None
    assert habits.typical_sleep_s == pytest.approx(1.0)
    assert policy.victims(KEYS[2], SIZE_BYTES, before_s) == [KEYS[0]]


def test_the_oldest_of_too_many_is_forgotten() -> None:
    """A timeline that is seen now displaces the oldest ones."""
    policy = ReturnRate(5, max_known=320)
    keys = [key_of(number) for number in range(1000)]
    for number, key in enumerate(keys):
        policy.stopped(key, START_S + number, SIZE_BYTES)
    known = [number for number, key in enumerate(keys) if policy.habits(key, START_S + 1000)]
    assert 320 <= len(known) <= 350
    assert sum(known) / len(known) > 700


def test_the_score_of_a_timeline_without_an_archive_is_that_of_now() -> None:
    """It falls while the timeline sleeps on, as it would with an archive."""
    policy, held = ReturnRate(5), ReturnRate(5)
    for each in (policy, held):
        _live(each, KEYS[0], [HOUR_S] * 6, START_S)
        each.stopped(KEYS[0], START_S, SIZE_BYTES)
    held.held(KEYS[0], SIZE_BYTES)
    scores = []
    for later_s in (START_S, START_S + HOUR_S, START_S + 20 * HOUR_S):
        scores.append(policy.score(KEYS[0], later_s))
        assert scores[-1] == pytest.approx(held.score(KEYS[0], later_s))
    assert scores[-1] < scores[0] / 2


def test_memory_of_many_timelines() -> None:
    """At most 132 bytes a timeline: 32 of state, 100 for its key, the index and its timers."""
    count = 60_000
    gc.collect()
    tracemalloc.start()
    try:
        policy = ReturnRate(1, max_known=2 * count)
        empty_bytes = tracemalloc.get_traced_memory()[0]
        rng = random.Random(1)
        for number in range(count):
            policy.stopped(rng.randbytes(32), START_S + number / 100, SIZE_BYTES)
        gc.collect()
        size_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert (size_bytes - empty_bytes) / count <= 132
