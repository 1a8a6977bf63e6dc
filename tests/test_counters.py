"""Counters that nobody waits for: sums, labels, re-entrance, memory."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from helpers import run_threads
from prometheus_client import CollectorRegistry

from bbcache import counters
from bbcache.counters import Count, Counter

if TYPE_CHECKING:
    from types import FrameType


def test_a_count_is_the_sum_of_what_was_added() -> None:
    """Amounts of any size, read at any moment."""
    count = Count()
    assert count.value() == 0
    count.inc()
    count.inc(41)
    assert count.value() == count.value() == 42


def test_threads_lose_no_addition() -> None:
    """Eight threads, more additions than are put off."""
    count = Count()

    def add() -> None:
        for _ in range(5_000):
            count.inc(2)

    run_threads([add] * 8)
    assert count.value() == 80_000


def test_what_is_put_off_is_bounded() -> None:
    """A counter that nobody reads takes no memory for what it has counted."""
    count = Count()
    for _ in range(10_000):
        count.inc()
    assert len(count._late) < counters._MOST_LATE
    assert count.value() == 10_000


def test_additions_in_the_middle_of_others_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler adds, and reads, at every instruction of an addition and a reading."""
    monkeypatch.setattr(counters, "_MOST_LATE", 2)
    count = Count()
    calls = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal calls
        if frame.f_code.co_filename != counters.__file__:
            return None
        frame.f_trace_opcodes = True
        if event in {"opcode", "line"}:
            sys.settrace(None)
            calls += 1
            count.inc()
            count.value()
            sys.settrace(trace)
        return trace

    sys.settrace(trace)
    try:
        for _ in range(20):
            count.inc()
            count.value()
    finally:
        sys.settrace(None)
    assert calls > 200
    assert count.value() == 20 + calls


def test_every_value_of_the_label_is_there_at_zero() -> None:
    """Rates need a first sample."""
    registry = CollectorRegistry()
    counter = Counter("asked", "What was asked.", "result", ["yes", "no"])
    registry.register(counter)
    counter.count("yes").inc(3)
    assert registry.get_sample_value("asked_total", {"result": "yes"}) == 3
    assert registry.get_sample_value("asked_total", {"result": "no"}) == 0
    assert registry.get_sample_value("asked_created", {"result": "no"}) is not None


def test_a_registry_refuses_a_second_metric_of_the_name() -> None:
    """Also one that does not collect at registration."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Counter("asked", "What was asked."))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(Counter("asked", "What was asked."))
