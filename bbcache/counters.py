"""Prometheus counters that can be added to at any moment, at the price of a list append.

A signal handler may stop a thread in the middle of an addition and make one itself.
The locks of `prometheus_client.Counter` are not re-entrant: the thread would wait for
itself. Here nothing that adds ever waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_LATE: Final = 512


class Count:
    """A number that grows. Thread-safe, and safe in signal handlers."""

    __slots__ = ("_late", "_lock", "_total")

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _total; never waited for
        self._total = 0
        self._late: deque[int] = deque()  # what is not yet in the total

    def inc(self, amount: int = 1) -> None:
        """Add `amount`."""
        self._late.append(amount)
        if len(self._late) >= _MOST_LATE:
            self._settle()

    def value(self) -> int:
        """The sum so far; an addition at this very moment may be missing."""
        self._settle()
        return self._total

    def _settle(self) -> None:
        if self._lock.acquire(blocking=False):  # else the one who has it does it
            try:
                for _ in range(len(self._late)):  # not what is added meanwhile
                    self._total += self._late.popleft()
            finally:
                self._lock.release()


class Counter(Collector):
    """A counter metric with one label at most, whose values are all known.

    Args:
        name: of the metric, without ``_total``.
        text: what it counts.
        label: the label's name; None for a metric without.
        values: the label's values, all of which exist at zero from the start.
    """

    def __init__(
        self, name: str, text: str, label: str | None = None, values: Iterable[str] = ("",)
    ) -> None:
        self._name, self._text = name, text
        self._labels = [] if label is None else [label]
        self._counts = {str(value): Count() for value in values}
        self._created_s = time.time()

    def count(self, value: str = "") -> Count:
        """The number under one value of the label."""
        return self._counts[value]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """The metric as Prometheus wants it."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for value, count in self._counts.items():
            family.add_metric([value] if self._labels else [], count.value(), self._created_s)
        return [family]

    def describe(self) -> Iterable[CounterMetricFamily]:
        """The names, by which a registry refuses a second metric of one name."""
        return self.collect()
