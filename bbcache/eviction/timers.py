"""The seconds at which items are due."""

from __future__ import annotations

import math
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_SLACK: Final = 64


class Timers(Generic[_T]):
    """Items by the second in which they are due. Not thread-safe.

    A heap of seconds, each with a list, costs a large fleet far less than a heap of items.
    """

    def __init__(self) -> None:
        self._seconds: list[int] = []
        self._items: dict[int, list[_T]] = {}
        self._count = 0

    def add(self, due_s: float, item: _T) -> None:
        """Add an item; it is due at the next whole second."""
        second = math.ceil(due_s)
        items = self._items.get(second)
        if items is None:
            heappush(self._seconds, second)
            self._items[second] = [item]
        else:
            items.append(item)
        self._count += 1

    def due(self, now_s: float) -> list[_T]:
        """Take out what is due."""
        found: list[_T] = []
        while self._seconds and self._seconds[0] <= now_s:
            found += self._items.pop(heappop(self._seconds))
        self._count -= len(found)
        return found

    def trim(self, most: int, is_wanted: Callable[[_T], bool]) -> None:
        """Take out what is not wanted any more, if there are many more items than `most`."""
        if self._count <= most + _SLACK:
            return
        for second, items in self._items.items():
            self._items[second] = [item for item in items if is_wanted(item)]
        self._count = sum(map(len, self._items.values()))
