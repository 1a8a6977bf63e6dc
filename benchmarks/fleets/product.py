"""The policies of `bbcache.eviction` over the events of a fleet, as the cache drives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.fleets.fleets import START, STOP, events, keys_of
from benchmarks.fleets.kernel import LOG_BUILT, LOG_DECLINED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bbcache.eviction import Policy
    from benchmarks.fleets.fleets import Fleet


def run(fleet: Fleet, policy: Policy) -> tuple[int, int, NDArray[np.int32]]:
    """Run a policy over a fleet.

    Returns:
        The gets and hits after the first third, and the log of decisions as in
        `benchmarks.fleets.kernel.Run`.
    """
    keys = keys_of(fleet)
    numbers = {key: number for number, key in enumerate(keys)}
    sizes_bytes = fleet.sizes_bytes.astype(np.int64).tolist()
    held: set[bytes] = set()
    log: list[int] = []
    gets = hits = 0
    for now_s, kind, timeline in events(fleet):
        key = keys[timeline]
        if kind == STOP:
            if key in held:
                held.remove(key)
                policy.dropped(key)
            policy.stopped(key, now_s, sizes_bytes[timeline])
            victims = policy.victims(key, sizes_bytes[timeline], now_s)
            for victim in victims or ():
                held.remove(victim)
                policy.dropped(victim)
                log.append(numbers[victim])
            if victims is None:
                log.append(LOG_DECLINED)
                continue
            log.append(LOG_BUILT)
            policy.held(key, sizes_bytes[timeline])
            held.add(key)
        elif kind == START:
            if now_s >= fleet.warm_s:
                gets += 1
                hits += key in held
            policy.started(key, now_s)
            if key in held:
                held.remove(key)
                policy.dropped(key)
        else:
            held.discard(key)
            policy.dropped(key)
    return gets, hits, np.array(log, np.int32)
