"""Interleaved rounds: every contender once, then every contender once again."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, NamedTuple

from bbcache.errors import safe_str
from benchmarks.latency import Latencies
from benchmarks.peers import PeerMissingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Round = Callable[[], float]

log = logging.getLogger(__name__)


class Pace(NamedTuple):
    """How long the rounds of one case may take.

    Attributes:
        budget_s: seconds for all rounds.
        least: the number of rounds that are run even where they take longer.
        most: the number of rounds that are never exceeded.
    """

    budget_s: float
    least: int
    most: int

    def round_count(self, pass_s: float) -> int:
        """Return how many rounds fit, where one round of all contenders takes `pass_s` seconds."""
        fitting = math.floor(self.budget_s / pass_s) if pass_s > 0 else self.most
        return min(self.most, max(self.least, fitting))


class Rounds:
    """The contenders of one case and their figures. For one thread.

    Args:
        clock: seconds that only grow.

    Attributes:
        samples: by contender, one figure a round.
        missing: by contender, why it cannot run.
        failed: by contender, its exception; such a contender runs no more.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.samples: dict[str, list[float]] = {}
        self.missing: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self._clock = clock
        self._rounds: dict[str, Round] = {}

    def add(self, name: str, enter: Callable[[], Round]) -> None:
        """Add a contender.

        Args:
            name: its name in the tables.
            enter: prepares the contender, and returns a function that runs one round
                and returns the figure of the round. Where `enter` raises
                PeerMissingError, the contender is noted as missing; where it, or a
                round, raises any other exception, as failed.
        """
        try:
            self._rounds[name] = enter()
        except PeerMissingError as error:
            self.missing[name] = str(error)
        except Exception as error:  # noqa: BLE001 - peers raise anything; the others go on
            self._fail(name, error)

    def run(self, pace: Pace) -> None:
        """Warm every contender up by one round, then run the rounds in turn.

        Each round starts with another contender. A warm-up that has used the whole
        budget counts as a round.
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

    def quantiles(self) -> dict[str, dict[str, float]]:
        """Return the quantiles of each contender that measures single calls."""
        return {
            name: run.quantiles()
            for name, run in self._rounds.items()
            if isinstance(run, Latencies) and name in self.samples
        }

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


def timed(target: Callable[..., object], setup: Callable[[], Iterable[object]] = tuple) -> Round:
    """Return a round that times one call, in seconds.

    Args:
        target: the timed function.
        setup: called before each round, untimed; returns the arguments of `target`.
    """

    def run() -> float:
        arguments = tuple(setup())
        started_s = time.perf_counter()
        target(*arguments)
        return time.perf_counter() - started_s

    return run


def checked(run: Round, check: Callable[[], None]) -> Round:
    """Return the same round with an untimed check behind its first call.

    Args:
        run: a round.
        check: raises where the result of the round is wrong.
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
