"""The share of a long test that a normal run takes.

Each run takes another share, chosen by the seed that it prints. ``HYPOTHESIS_PROFILE=nightly``
takes everything.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

_T = TypeVar("_T")

IS_NIGHTLY: Final = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
_LEAST: Final = 4  # items of a share


def share_of(items: Sequence[_T], turn: int = 0, one_in: int = 5) -> list[_T]:
    """One in five items in a normal run, but four at least; all of them in a nightly run.

    A step may be passed by once in a while: where a share has several, most are met.

    Args:
        items: what a test would go through, in order.
        turn: the number of the test. Five tests in a row that go through the same items take
            each of them.
        one_in: another share than one in five.
    """
    if IS_NIGHTLY:
        return list(items)
    step = max(1, min(one_in, len(items) // _LEAST))
    return list(items[(random.randrange(step) + turn) % step :: step])
