"""Ratios that were reached once, and must not get worse again."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import TYPE_CHECKING, Final, NamedTuple

from bbcache.bench.bars import Sense, Verdict
from bbcache.bench.units import format_figure
from bbcache.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from bbcache.bench.bars import Bar, Outcome

_NAME: Final = "locked.toml"


class Locked(NamedTuple):
    """What was reached for one bar.

    Attributes:
        reached: the figure, in the bar's unit.
        slack: the share by which it may be worse.
    """

    reached: float
    slack: float

    def limit(self, bar: Bar) -> float:
        """The worst figure that still passes."""
        room = 1 + self.slack
        return self.reached * room if bar.sense is Sense.AT_MOST else self.reached / room


def read_locked(text: str | None = None) -> dict[str, Locked]:
    """What is locked, by the names of bars.

    Args:
        text: TOML with `slack`, a table `reached`, and a table `slacks` for bars that
            need another slack; None for the file of the package.

    Raises:
        ConfigError: it is not like that.
    """
    if text is None:
        text = files("bbcache.bench").joinpath(_NAME).read_text()
    try:
        document = tomllib.loads(text)
        slack, slacks = float(document["slack"]), document.get("slacks", {})
        reached = document["reached"]
        if unknown := set(slacks) - set(reached):
            raise ConfigError(f"{_NAME} has a slack, but no figure, for {', '.join(unknown)}")
        return {
            name: Locked(float(value), float(slacks.get(name, slack)))
            for name, value in reached.items()
        }
    except (KeyError, TypeError, AttributeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{_NAME} cannot be understood: {error!r}") from error


def regressions(
    outcomes: Iterable[Outcome], locked: Mapping[str, Locked], *, needs_peers: bool
) -> Iterator[str]:
    """What has become worse, one line each.

    Args:
        outcomes: what was measured; bars that are not locked are passed over.
        locked: what was reached.
        needs_peers: whether a bar without its peer counts, too.
    """
    for outcome in outcomes:
        bar = outcome.bar
        if outcome.verdict is Verdict.ERROR:
            yield f"{bar.name} could not be measured: {outcome.reason}"
        elif outcome.verdict is Verdict.MISSING and needs_peers:
            yield f"{bar.name} was not measured: {outcome.reason}"
        elif bar.name in locked and outcome.value is not None:
            limit = locked[bar.name].limit(bar)
            if not bar.is_met_by(outcome.value, limit):
                yield (
                    f"{bar.name} is {format_figure(outcome.value, bar.unit)}, but was "
                    f"{format_figure(locked[bar.name].reached, bar.unit)} once, and is to be "
                    f"{bar.sense} {format_figure(limit, bar.unit)}"
                )
