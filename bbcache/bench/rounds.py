"""Rounds in turn: every contestant once, then every contestant once again."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, NamedTuple

from bbcache.bench.peers import PeerMissingError
from bbcache.errors import safe_str

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from contextlib import AbstractContextManager

log = logging.getLogger(__name__)


class Pace(NamedTuple):
    """How long the rounds of one group may take.

    Attributes:
        budget_s: seconds for all rounds.
        least: so many rounds are run even where they take longer.
        most: more are not run even where they would fit.
    """

    budget_s: float
    least: int
    most: int

    def round_count(self, pass_s: float) -> int:
        """How many rounds fit, where one of each contestant takes `pass_s` seconds."""
        fitting = math.floor(self.budget_s / pass_s) if pass_s > 0 else self.most
        return min(self.most, max(self.least, fitting))


class Lineup:
    """The contestants of one group, and what they have shown. For one thread.

    Args:
        wanted: the names of those to run; None for all.
        clock: seconds that only grow.

    Attributes:
        samples: by contestant, one figure a round.
        missing: by contestant, why it cannot run.
        failed: by contestant, what it has raised; it runs no more then.
    """

    def __init__(
        self,
        wanted: Collection[str] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.samples: dict[str, list[float]] = {}
        self.missing: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self._wanted = wanted
        self._clock = clock
        self._rounds: dict[str, Callable[[], float]] = {}

    def wants(self, name: str) -> bool:
        """Whether this contestant is to run."""
        return self._wanted is None or name in self._wanted

    def add(self, name: str, enter: Callable[[], Callable[[], float]]) -> None:
        """Let a contestant join, unless it is not wanted.

        Args:
            name: its name in the table.
            enter: makes it ready, and returns what runs one round and returns the
                round's figure. Where it raises PeerMissingError, it is noted as missing;
                where it, or a round, raises anything else, as failed.
        """
        if not self.wants(name):
            return
        try:
            self._rounds[name] = enter()
        except PeerMissingError as error:
            self.missing[name] = str(error)
        except Exception as error:  # noqa: BLE001 - peers raise anything; the others go on
            self._fail(name, error)

    def race(self, pace: Pace) -> None:
        """Warm every contestant up by a round, then run rounds in turn, each from another start.

        A first round that has taken all the time that there is counts.
        """
        started_s = self._clock()
        warm = {name: value for name in [*self._rounds] if (value := self._run(name)) is not None}
        pass_s = self._clock() - started_s
        is_counted = pass_s > pace.budget_s
        self.samples = {name: [value] if is_counted else [] for name, value in warm.items()}
        names = list(warm)
        for number in range(is_counted, pace.round_count(pass_s)):
            shift = number % max(1, len(names))
            for name in names[shift:] + names[:shift]:
                value = self._run(name)
                if value is not None:
                    self.samples[name].append(value)

    def _run(self, name: str) -> float | None:
        if name in self.failed:
            return None
        try:
            return self._rounds[name]()
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(name, error)
            return None

    def _fail(self, name: str, error: Exception) -> None:
        log.debug("%s failed", name, exc_info=error)
        self.failed[name] = f"{name} failed: {safe_str(error)}"


def timed(
    target: Callable[..., object], setup: Callable[[], Iterable[object]] = tuple
) -> Callable[[], float]:
    """A round that times one call, in seconds.

    Args:
        target: what is timed.
        setup: called before, untimed; returns the arguments of `target`.
    """

    def run() -> float:
        arguments = tuple(setup())
        started_s = time.perf_counter()
        target(*arguments)
        return time.perf_counter() - started_s

    return run


def checked(run: Callable[[], float], check: Callable[[], None]) -> Callable[[], float]:
    """The same rounds, after the first of which something is checked, untimed.

    Args:
        run: a round.
        check: raises where what the round has made is not right.
    """
    is_checked = False

    def run_and_check() -> float:
        nonlocal is_checked
        figure = run()
        if not is_checked:
            check()
            is_checked = True
        return figure

    return run_and_check


def timed_beside(
    work: Callable[[], AbstractContextManager[object]], target: Callable[[], float]
) -> Callable[[], float]:
    """A round whose figure is taken while something else is under way.

    Args:
        work: the something else, until its block ends.
        target: takes the figure.
    """

    def run() -> float:
        with work():
            return target()

    return run
