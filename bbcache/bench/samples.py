"""The arithmetic of measurements: medians, quantiles, spreads, ratios of rounds."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_QUARTERS: Final = (0.25, 0.75)


class Summary(NamedTuple):
    """What a list of samples comes to.

    Attributes:
        median: the middle one.
        spread: half the distance between the quartiles, as a share of the median; None
            where there is one sample only, or the median is 0.
        sample_count: how many samples there are.
    """

    median: float
    spread: float | None
    sample_count: int


def quantile(values: Iterable[float], share: float) -> float:
    """The value that `share` of the values are not above, linear between two of them.

    Args:
        values: one at least, in any order.
        share: from 0 (the smallest) to 1 (the greatest).
    """
    return quantile_of_sorted(sorted(values), share)


def quantile_of_sorted(ordered: Sequence[float], share: float) -> float:
    """Like `quantile`, of values in rising order."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarize(values: Sequence[float]) -> Summary:
    """Median and spread of one sample or more."""
    median = statistics.median(values)
    if len(values) == 1 or median == 0:
        return Summary(median, None, len(values))
    low, high = (quantile(values, share) for share in _QUARTERS)
    return Summary(median, (high - low) / 2 / abs(median), len(values))


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """The ratio of each round, of two rows of samples taken in the same rounds.

    Raises:
        ValueError: the rows have different lengths, or a denominator is not positive.
    """
    if any(value <= 0 for value in denominators):
        raise ValueError("a ratio to nothing")
    return [above / below for above, below in zip(numerators, denominators, strict=True)]
