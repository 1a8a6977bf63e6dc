"""Ratios that were reached before and must not get worse: ``baseline.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.errors import ConfigError
from benchmarks.bars import Sense
from benchmarks.units import format_figure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.bars import Bar, Outcome

PATH: Final = Path(__file__).with_name("baseline.toml")


class Baseline(NamedTuple):
    """The ratio that was reached for one bar.

    Attributes:
        reached: the figure, in the bar's unit.
        slack: the share by which it may be worse.
    """

    reached: float
    slack: float

    def limit(self, bar: Bar) -> float:
        """Return the worst figure that passes."""
        room = 1 + self.slack
        return self.reached * room if bar.sense == Sense.AT_MOST else self.reached / room


def read_baseline(text: str | None = None) -> dict[str, Baseline]:
    """Return the baseline of each bar, by its name.

    Args:
        text: TOML with `slack`, a table `reached`, and a table `slacks` for bars that
            need another slack; None for the content of `PATH`.

    Raises:
        ConfigError: it is not like that.
    """
    try:
        document = tomllib.loads(PATH.read_text() if text is None else text)
        slack, slacks = float(document["slack"]), document.get("slacks", {})
        reached = document["reached"]
        if unknown := set(slacks) - set(reached):
            raise ConfigError(f"{PATH.name} has a slack, but no figure, for {', '.join(unknown)}")
        return {
            name: Baseline(float(value), float(slacks.get(name, slack)))
            for name, value in reached.items()
        }
    except (KeyError, TypeError, AttributeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{PATH.name} cannot be understood: {error!r}") from error


def regression(outcome: Outcome, baseline: Mapping[str, Baseline]) -> str:
    """Return the complaint about a bar that got worse; empty where it did not.

    Args:
        outcome: a measured bar; one without a figure or without a baseline passes.
        baseline: the baseline of each bar.
    """
    reached = baseline.get(outcome.name)
    if reached is None or outcome.value is None:
        return ""
    limit = reached.limit(outcome)
    if outcome.is_met_by(outcome.value, limit):
        return ""
    figures = (outcome.value, reached.reached, limit)
    now, before, wanted = (format_figure(each, outcome.unit) for each in figures)
    return f"{outcome.name} is {now}; the baseline is {before}, the limit {outcome.sense} {wanted}"
