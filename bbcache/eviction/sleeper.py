"""A timeline in memory while it sleeps, or has an archive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bbcache.eviction.policy import Ranked

if TYPE_CHECKING:
    from bbcache.eviction.table import Row


class Sleeper(Ranked):
    """A timeline that sleeps, or has an archive.

    Attributes:
        stopped_s: when it stopped.
        row: its kind in the table.
        scale_s: its typical sleep.
        bin: the bin of the table up to which its sleep is counted.
        cost: 32 times the binary logarithm of its typical sleep and its share of the cache.
        is_asleep: whether it is asleep and known: its timer counts.
        is_held: whether it has an archive.
        is_counted: whether its return is counted.
    """

    __slots__ = (
        *("bin", "cost", "is_asleep", "is_counted", "is_held"),
        *("row", "scale_s", "stopped_s"),
    )

    def __init__(
        self,
        key: bytes,
        size_bytes: int,
        stopped_s: float,
        row: Row,
        scale_s: float,
        cost: float,
    ) -> None:
        super().__init__(key, size_bytes)
        self.stopped_s = stopped_s
        self.row = row
        self.scale_s = scale_s
        self.bin = 0
        self.cost = cost
        self.is_asleep = True
        self.is_held = False
        self.is_counted = False
