"""Fleets of timelines that run, stop, sleep and start again; everything is seeded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.fleets.kinds import (
    DAY_S,
    NEVER_S,
    Agent,
    AlwaysOn,
    AzureLike,
    ContinuousIntegration,
    Cron,
    Developer,
    Dormant,
    Inverse,
    Kind,
    LogNormal,
    Office,
    Preview,
    log_normal,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.random import Generator
    from numpy.typing import NDArray

    from benchmarks.fleets.kinds import Floats, Ints

_GONE_S: Final = 1e17  # a sleep of this length never ends
START, STOP, DELETE = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fleet:
    """The events of a fleet, in order of time.

    Attributes:
        name: of the fleet.
        times_s: of the events.
        kinds: START, STOP or DELETE.
        timelines: numbers from 0.
        returns_s: for each stop, the time of the next start; `NEVER_S` if there is none.
        count: of all timelines.
        sizes_bytes: of each timeline's archive.
        costs_s: of a miss of each timeline.
        living: how many timelines live at one time, on average after `warm_s`.
        warm_s: the end of the first third, which results leave out.
        span_s: the whole time.
        sleeps_s: for each stop, draws of the sleep by the true law, sorted; may be empty.
    """

    name: str
    times_s: Floats
    kinds: NDArray[np.int8]
    timelines: NDArray[np.int32]
    returns_s: Floats
    count: int
    sizes_bytes: Floats
    costs_s: Floats
    living: float
    warm_s: float
    span_s: float
    sleeps_s: NDArray[np.float32]

    @property
    def mean_size_bytes(self) -> float:
        """The mean size of the archives that could be built."""
        return float(self.sizes_bytes[self.timelines[self.kinds == STOP]].mean())

    def max_entries(self, share: float) -> int:
        """The limit of entries for a share of the living timelines."""
        return max(1, int(share * self.living))

    def max_size_bytes(self, share: float) -> int:
        """The limit of bytes for the archives of a share of the living timelines."""
        return max(1, int(share * self.living * self.mean_size_bytes))


@dataclass(frozen=True, slots=True)
class Recipe:
    """The definition of a fleet.

    Attributes:
        title: its name in tables.
        shares: of the timelines that live at one time, by kind.
        living: timelines that live at one time.
        days: of the simulation.
    """

    title: str
    shares: Mapping[type[Kind], float]
    living: int
    days: int


RECIPES: Final[Mapping[str, Recipe]] = {
    "mixed": Recipe(
        "mixed",
        {
            Office: 0.2,
            Cron: 0.1,
            Developer: 0.18,
            Agent: 0.15,
            Preview: 0.1,
            ContinuousIntegration: 0.1,
            AlwaysOn: 0.05,
            Dormant: 0.07,
            LogNormal: 0.05,
        },
        1000,
        15,
    ),
    "office": Recipe("office hours", {Office: 1}, 1000, 15),
    "cron": Recipe("cron", {Cron: 1}, 400, 8),
    "dev": Recipe("developers", {Developer: 1}, 1500, 21),
    "azure": Recipe("azure-like", {AzureLike: 1}, 500, 8),
    "ephemeral": Recipe(
        "preview branches", {ContinuousIntegration: 0.35, Preview: 0.35, Agent: 0.3}, 1500, 14
    ),
    "lognormal": Recipe("log-normal", {LogNormal: 1}, 800, 10),
}


INVERSE: Final = Recipe("inverse habits", {Inverse: 1}, 400, 15)


class _Events:
    """The events of a fleet while it is made, kind by kind and turn by turn."""

    def __init__(self, rng: Generator, recipe: Recipe, draws: int, seed: int) -> None:
        self.span_s = recipe.days * DAY_S
        self.times_s: list[Floats] = []
        self.kinds: list[NDArray[np.int8]] = []
        self.timelines: list[Ints] = []
        self.returns_s: list[Floats] = []
        self.sleeps_s: list[NDArray[np.float32]] = []
        self.births_s: list[Floats] = []
        self.ends_s: list[Floats] = []
        self.count = 0
        self._rng = rng
        self._draws = draws
        self._draws_rng = np.random.default_rng([seed, 1])  # leaves the events as they are
        for kind, share in recipe.shares.items():
            count = int(recipe.living * share)
            if kind.life_s is not None:
                count = int(count * (self.span_s + 3 * DAY_S) / kind.life_s)
            self._live(kind(rng, count, self.span_s), count)

    def _live(self, kind: Kind, count: int) -> None:
        rng, alive, now_s = self._rng, np.arange(count), kind.births_s.copy()
        ends_s = np.full(count, self.span_s)
        while len(alive):
            stops_s = now_s + kind.run(rng, alive)
            is_in = stops_s < self.span_s
            alive, stops_s = alive[is_in], stops_s[is_in]
            if not len(alive):
                break
            sleeps_s = np.maximum(kind.sleep(rng, alive, stops_s), 1.0)
            is_gone = sleeps_s >= _GONE_S
            starts_s = np.where(is_gone, NEVER_S, stops_s + sleeps_s)
            self._add(STOP, stops_s, alive, starts_s)
            if self._draws:
                self.sleeps_s.append(self._draw(kind, alive, stops_s))
            is_back = starts_s < self.span_s
            self._add(START, starts_s[is_back], alive[is_back])
            if kind.mean_deletion_s is not None:
                gone = alive[is_gone]
                deletions_s = stops_s[is_gone] + rng.exponential(kind.mean_deletion_s, len(gone))
                ends_s[gone] = np.minimum(deletions_s, self.span_s)
                self._add(DELETE, deletions_s, gone)
            alive, now_s = alive[is_back], starts_s[is_back]
        self.births_s.append(kind.births_s)
        self.ends_s.append(ends_s)
        self.count += count

    def _draw(self, kind: Kind, alive: Ints, stops_s: Floats) -> NDArray[np.float32]:
        rng = self._draws_rng
        draws = [kind.sleep(rng, alive, stops_s) for _ in range(self._draws)]
        sleeps_s: NDArray[np.float32] = np.maximum(np.stack(draws, 1), 1.0).astype(np.float32)
        sleeps_s.sort(1)
        return sleeps_s

    def _add(
        self, kind: int, times_s: Floats, timelines: Ints, returns_s: Floats | None = None
    ) -> None:
        self.times_s.append(times_s)
        self.kinds.append(np.full(len(times_s), kind, np.int8))
        self.timelines.append(timelines + self.count)
        self.returns_s.append(np.zeros(len(times_s)) if returns_s is None else returns_s)


def make_fleet(
    name: str, seed: int = 1, *, living: int | None = None, days: int | None = None, draws: int = 0
) -> Fleet:
    """Make the events of a fleet.

    Args:
        name: a key of `RECIPES`.
        seed: of the dice.
        living: timelines that live at one time; None for those of the recipe.
        days: of the simulation; None for those of the recipe.
        draws: how many sleeps to draw by the true law for each stop, for the oracle.
    """
    recipe = RECIPES[name]
    recipe = Recipe(recipe.title, recipe.shares, living or recipe.living, days or recipe.days)
    return build_fleet(name, recipe, seed, draws)


def build_fleet(name: str, recipe: Recipe, seed: int, draws: int = 0) -> Fleet:
    """Make the events of any recipe; the arguments are those of `make_fleet`."""
    rng = np.random.default_rng(seed)
    made = _Events(rng, recipe, draws, seed)
    times_s, kinds = np.concatenate(made.times_s), np.concatenate(made.kinds)
    order = np.argsort(times_s, kind="stable")
    order = order[(times_s[order] >= 0) & (times_s[order] < made.span_s)]
    sleeps_s = np.zeros((0, 0), np.float32)
    if draws:
        rows = np.cumsum(kinds == STOP) - 1  # of each event's draws, if it is a stop
        stops = order[kinds[order] == STOP]
        sleeps_s = np.concatenate(made.sleeps_s)[rows[stops]]
    medians = np.full(made.count, 0.3)
    sizes_mb = np.clip(log_normal(rng, medians, 1.0), 0.02, 8.0)
    costs_s = (0.05 + sizes_mb / 10) * np.exp(0.4 * rng.standard_normal(made.count))
    births_s, ends_s = np.concatenate(made.births_s), np.concatenate(made.ends_s)
    warm_s = made.span_s / 3
    lives_s = np.minimum(ends_s, made.span_s) - np.maximum(births_s, warm_s)
    return Fleet(
        name=name,
        times_s=times_s[order],
        kinds=kinds[order],
        timelines=np.concatenate(made.timelines)[order].astype(np.int32),
        returns_s=np.concatenate(made.returns_s)[order],
        count=made.count,
        sizes_bytes=np.round(1e6 * sizes_mb),
        costs_s=costs_s,
        living=float(np.clip(lives_s, 0, None).sum() / (made.span_s - warm_s)),
        warm_s=warm_s,
        span_s=made.span_s,
        sleeps_s=sleeps_s,
    )


def events(fleet: Fleet) -> Iterator[tuple[float, int, int]]:
    """Time, kind and timeline of each event, as Python's numbers."""
    return zip(fleet.times_s.tolist(), fleet.kinds.tolist(), fleet.timelines.tolist(), strict=True)


def keys_of(fleet: Fleet) -> list[bytes]:
    """A key for each timeline, of 32 bytes as in a cache."""
    return [number.to_bytes(32, "big") for number in range(fleet.count)]
