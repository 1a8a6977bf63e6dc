"""Eviction: what a policy costs a stop and a start, and what it costs `get`."""

from __future__ import annotations

import dataclasses
import random
import time
from functools import partial
from heapq import heapify, heappushpop
from typing import TYPE_CHECKING, Final

from bbcache.eviction import ReturnRate
from benchmarks.bars import Bar, Sense, case
from benchmarks.entries import (
    make_config,
    make_ids,
    make_unready_host,
    spawn_ready,
    write_entries,
)
from benchmarks.latency import P50, P99, Latencies, get_latencies

if TYPE_CHECKING:
    from contextlib import ExitStack

    from bbcache import BasebackupCacheConfig
    from benchmarks.rounds import Rounds
    from benchmarks.workspace import Workspace

ENTRIES: Final = 1_000
_TIMELINES_PER_ENTRY: Final = 5  # of the counts of a run: 1,000,000 in a full one
_SHARE: Final = 10  # a tenth of the timelines is held
_PAIRS: Final = 2_000  # in a round
_SIZE_BYTES: Final = 25_000
_CYCLE_S: Final = 3 * 3600.0  # in which each timeline stops and starts once on average

_PAIR: Final = "a start and a stop, with the plan for the archive"
_PEER: Final = "heappushpop + dict update"
_WITH: Final = "bbcache get + close, eviction return-rate"
_WITHOUT: Final = "bbcache get + close, eviction none"


class Fleet:
    """A policy that knows many timelines, a tenth of which it holds.

    Args:
        keys: the timelines.
    """

    def __init__(self, keys: list[bytes]) -> None:
        self._policy = ReturnRate(len(keys) // _SHARE, None, 2 * len(keys))
        self._step_s = _CYCLE_S / len(keys)
        self._now_s = 1_800_000_000.0
        self._random = random.Random(1)
        self._keys = keys
        for key in keys:
            self._stop(key)

    def run(self) -> float:
        """Let some timelines start and stop again; returns seconds of the processor for one."""
        keys = self._random.choices(self._keys, k=_PAIRS)
        begin_s = time.process_time()
        for key in keys:
            self._policy.started(key, self._now_s)
            self._policy.dropped(key)
            self._stop(key)
        return (time.process_time() - begin_s) / _PAIRS

    def _stop(self, key: bytes) -> None:
        self._now_s += self._step_s
        self._policy.stopped(key, self._now_s, _SIZE_BYTES)
        victims = self._policy.victims(key, _SIZE_BYTES, self._now_s)
        if victims is not None:
            for victim in victims:
                self._policy.dropped(victim)
            self._policy.held(key, _SIZE_BYTES)


class Queue:
    """What the simplest policy needs: a priority queue and a map, of as many timelines.

    Args:
        keys: the timelines.
    """

    def __init__(self, keys: list[bytes]) -> None:
        self._random = random.Random(1)
        self._heap = [(self._random.random(), key) for key in keys]
        heapify(self._heap)
        self._scores = dict.fromkeys(keys, 0.0)
        self._keys = keys

    def run(self) -> float:
        """Replace some rows; returns seconds of the processor for one."""
        rows = [(self._random.random(), key) for key in self._random.choices(self._keys, k=_PAIRS)]
        heap, scores = self._heap, self._scores
        begin_s = time.process_time()
        for row in rows:
            heappushpop(heap, row)
            scores[row[1]] = row[0]
        return (time.process_time() - begin_s) / _PAIRS


@case("eviction, a start and a stop", Bar("eviction-pair", _PAIR, _PEER, Sense.AT_MOST, 6.0))
def test_pair(workspace: Workspace, rounds: Rounds) -> None:
    """A start, a stop, and the plan for its archive, beside a heap and a dict."""
    count = _TIMELINES_PER_ENTRY * workspace.counts.entries
    keys = [random.Random(number).randbytes(32) for number in range(count)]
    rounds.add(_PAIR, lambda: Fleet(keys).run)
    rounds.add(_PEER, lambda: Queue(keys).run)
    rounds.run(workspace.counts.pace)


@case(
    "get, hit with and without eviction",
    Bar("get-eviction", _WITH, _WITHOUT, Sense.AT_MOST, 1.05),
)
def test_get(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """A hit in a full cache that evicts, beside one in a cache that never does; the median."""
    _add_hits(workspace, rounds, stack, P50)
    rounds.run(workspace.counts.pace)


@case(
    "get, p99 with and without eviction",
    Bar("get-eviction-p99", _WITH, _WITHOUT, Sense.AT_MOST, 1.3),
)
def test_get_p99(workspace: Workspace, rounds: Rounds, stack: ExitStack) -> None:
    """The same; the 99th percentile of the calls."""
    _add_hits(workspace, rounds, stack, P99)
    rounds.run(workspace.counts.pace)


def _add_hits(workspace: Workspace, rounds: Rounds, stack: ExitStack, share: float) -> None:
    full = dataclasses.replace(make_config(), max_size_entries=ENTRIES)
    configs: dict[str, BasebackupCacheConfig] = {
        _WITH: dataclasses.replace(full, eviction="return-rate"),
        _WITHOUT: dataclasses.replace(full, eviction="none"),
    }
    ids, calls = make_ids(ENTRIES), workspace.counts.calls

    def enter(name: str) -> Latencies:
        data_dir = stack.enter_context(workspace.scratch())
        write_entries(data_dir, ids, workspace.inputs.lean)
        cache = stack.enter_context(spawn_ready(data_dir, make_unready_host(), configs[name]))
        return Latencies(lambda: get_latencies(cache, ids, calls), share)

    for name in configs:
        rounds.add(name, partial(enter, name))
