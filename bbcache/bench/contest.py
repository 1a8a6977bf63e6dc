"""A contest: what is measured in turn, the bars on it, and the figures for the plots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from bbcache.bench.bars import Bar, Outcome, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bbcache.bench.latency import Distribution
    from bbcache.bench.rounds import Lineup
    from bbcache.bench.scene import Scene


class CodecPoint(NamedTuple):
    """What one codec makes of one input.

    Attributes:
        input_name: ``lean`` or ``full``.
        codec: library and level.
        seconds: the median of the rounds.
        size_bytes: of the output.
        input_bytes: of the input.
    """

    input_name: str
    codec: str
    seconds: float
    size_bytes: int
    input_bytes: int


class Curve(NamedTuple):
    """How something grows with the number of entries.

    Attributes:
        title: what grows.
        series: by what was measured, pairs of entries and seconds.
    """

    title: str
    series: Mapping[str, Sequence[tuple[float, float]]]


@dataclass
class Figures:
    """What the plots show, and what they leave out.

    Attributes:
        codecs: time against size.
        distributions: latencies, by what was called.
        curves: growth.
        notes: what was left out, and why.
    """

    codecs: list[CodecPoint] = field(default_factory=list)
    distributions: dict[str, Distribution] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def extend(self, other: Figures) -> None:
        """Take over those of another contest."""
        self.codecs += other.codecs
        self.distributions |= other.distributions
        self.curves += other.curves
        self.notes += other.notes


class Contest(NamedTuple):
    """What is measured in turn.

    Attributes:
        group: its name in the table.
        bars: the lines on it; none where it is for the plots alone.
        measure: makes the contestants ready, races them, and returns the figures.
        is_cut: whether only some of the bars are wanted, so that who is not needed for
            them can stay away.
    """

    group: str
    bars: tuple[Bar, ...]
    measure: Callable[[Scene, Lineup], Figures]
    is_cut: bool = False

    def judge(self, lineup: Lineup) -> list[Outcome]:
        """Hold every bar against what the contestants have shown."""
        return [
            judge(bar, self.group, lineup.samples, lineup.missing, lineup.failed)
            for bar in self.bars
        ]

    def contestants(self) -> set[str] | None:
        """Who is to run: those that the bars need where they are cut, else None: all."""
        if not self.is_cut:
            return None
        return {name for bar in self.bars for name in (bar.what, bar.against) if name}
