"""The seconds at which items are due."""

from __future__ import annotations

import math
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")


class _Seconds(dict[int, list[_T]]):
    """Items by second; a heap of the seconds that have some."""

    def __init__(self) -> None:
        super().__init__()
        self.heap: list[int] = []

    def __missing__(self, second: int) -> list[_T]:
        heappush(self.heap, second)
        items: list[_T] = []
        self[second] = items
        return items


class Timers(Generic[_T]):
    """Items by the second in which they are due. Not thread-safe.

    A heap of seconds, each with a list, costs a large fleet far less than a heap of items.

    Attributes:
        count: the number of items.
    """

    def __init__(self) -> None:
        self.count = 0
        self._seconds = _Seconds[_T]()

    def add(self, due_s: float, item: _T) -> None:
        """Add an item; it is due at the next whole second."""
        self._seconds[math.ceil(due_s)].append(item)
        self.count += 1

    def due(self, now_s: float) -> list[_T]:
        """Take out the items that are due."""
        found: list[_T] = []
        heap = self._seconds.heap
        while heap and heap[0] <= now_s:
            found += self._seconds.pop(heappop(heap))
        self.count -= len(found)
        return found

    def trim(self, is_wanted: Callable[[_T], bool]) -> None:
        """Take out the items that are not wanted any more."""
        for second, items in self._seconds.items():
            self._seconds[second] = [item for item in items if is_wanted(item)]
        self.count = sum(map(len, self._seconds.values()))
