"""Small fleets whose timelines stop and start, and policies that run them."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bbcache.eviction import Policy

DAY_S = 86_400.0
SIZE_BYTES = 25_000
_RUN_S = 600.0


class Event(NamedTuple):
    """A stop or a start of a timeline."""

    now_s: float
    is_stop: bool
    key: bytes


def key_of(number: int) -> bytes:
    """The key of a timeline, which is random but for its number."""
    return random.Random(number).randbytes(32)


def make_fleet(
    count: int, days: float, next_sleep: Callable[[random.Random, float], float]
) -> list[Event]:
    """The events of timelines that sleep as a function of their last sleep says."""
    events = []
    for number in range(count):
        rng = random.Random(f"fleet {number}")
        key, now_s = key_of(number), rng.uniform(0, 3 * 3600)
        slept_s = rng.lognormvariate(math.log(3 * 3600), 1.5)
        while now_s < days * DAY_S:
            slept_s = next_sleep(rng, slept_s)
            events.append(Event(now_s, is_stop=True, key=key))
            events.append(Event(now_s + slept_s, is_stop=False, key=key))
            now_s += slept_s + _RUN_S
    return sorted(event for event in events if event.now_s < days * DAY_S)


def hit_rate(policy: Policy, events: Iterable[Event], warm_s: float) -> float:
    """The share of the starts after `warm_s` that find an archive."""
    held: set[bytes] = set()
    starts = hits = 0
    for now_s, is_stop, key in events:
        if is_stop:
            policy.stopped(key, now_s, SIZE_BYTES)
            victims = policy.victims(key, SIZE_BYTES, now_s)
            if victims is None:
                continue
            for victim in victims:
                policy.dropped(victim)
                held.remove(victim)
            policy.held(key, SIZE_BYTES)
            held.add(key)
        else:
            starts += now_s >= warm_s
            hits += now_s >= warm_s and key in held
            policy.started(key, now_s)
            policy.dropped(key)
            held.discard(key)
    return hits / starts
