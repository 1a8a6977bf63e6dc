"""The policies to compare with: oldest-first, and none."""

from __future__ import annotations

import time

from eviction.fleet import SIZE_BYTES, key_of

from bbcache.eviction import Never, Oldest

KEYS = [key_of(number) for number in range(6)]


def _filled(policy: Oldest) -> Oldest:
    for number, key in enumerate(KEYS[:3]):
        policy.stopped(key, float(number), SIZE_BYTES)
        policy.held(key, SIZE_BYTES)
    return policy


def test_the_oldest_goes() -> None:
    """The archive that was published first makes room, unless one has been used."""
    policy = _filled(Oldest(3))
    assert policy.victims(KEYS[3], SIZE_BYTES, 5.0) == [KEYS[0]]
    policy.started(KEYS[1], 6.0)
    assert policy.victims(KEYS[3], SIZE_BYTES, 7.0) == [KEYS[1]]
    assert policy.rank(KEYS[0], 7.0) == 1
    policy.dropped(KEYS[1])
    assert policy.victims(KEYS[3], SIZE_BYTES, 8.0) == []


def test_none_evicts_nothing() -> None:
    """A newcomer has no room, but what must shrink for other reasons goes by age."""
    policy = _filled(Never(3, 10 * SIZE_BYTES))
    assert policy.victims(KEYS[3], SIZE_BYTES, 5.0) is None
    assert policy.lowest(0, 2 * SIZE_BYTES, 5.0) == KEYS[:2]
    policy.set_limits(4, None)
    assert policy.victims(KEYS[3], SIZE_BYTES, 5.0) == []


def test_spared_archives_stay() -> None:
    """The next one goes in their place."""
    policy = _filled(Oldest(3))
    policy.spare(KEYS[0])
    assert policy.victims(KEYS[3], SIZE_BYTES, 5.0) == [KEYS[1]]
    policy.unspare(KEYS[0])
    assert KEYS[0] in policy.lowest(3, 0, 5.0)


def test_bytes_count() -> None:
    """As many go as the bytes of the newcomer need."""
    policy = _filled(Oldest(None, 3 * SIZE_BYTES))
    assert policy.victims(KEYS[3], SIZE_BYTES + 1, 5.0) == KEYS[:2]
    assert policy.victims(KEYS[3], 4 * SIZE_BYTES, 5.0) is None
    assert policy.planned_size_bytes(KEYS[3]) == SIZE_BYTES


def test_no_more_go_than_a_newcomer_needs() -> None:
    """A large archive that goes spares the small ones before it, but for the limit of entries."""
    for max_entries, victims in ((None, KEYS[1:2]), (2, KEYS[1:2]), (1, KEYS[:2])):
        policy = Oldest(max_entries, 120)
        for key, size_bytes in zip(KEYS, (10, 100), strict=False):
            policy.stopped(key, 0.0, size_bytes)
            policy.held(key, size_bytes)
        policy.stopped(KEYS[2], 1.0, 90)
        assert policy.victims(KEYS[2], 90, 1.0) == victims


def _seconds_for_the_next(policy: Oldest) -> float:
    """The processor time of finding what goes next, without what other threads take."""
    times_s = []
    for _ in range(10):
        begin_s = time.thread_time()
        for _ in range(20):
            policy.lowest(1, 0, 0.0)
            policy.victims(KEYS[0], SIZE_BYTES, 0.0)
        times_s.append(time.thread_time() - begin_s)
    return min(times_s)


def test_what_goes_next_is_found_at_once() -> None:
    """An eviction takes as long after 50,000 others as after none."""
    small, large = Oldest(1), Oldest(1)
    small.held(key_of(0), SIZE_BYTES)
    for number in range(50_000):
        large.held(number.to_bytes(32, "big"), SIZE_BYTES)
    for number in range(49_999):
        large.dropped(number.to_bytes(32, "big"))
    assert _seconds_for_the_next(large) < 5 * _seconds_for_the_next(small)
