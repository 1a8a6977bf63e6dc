"""`kill -9` at random moments under load, with restarts on the same directory."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Final

import pytest
from faults import kills

if TYPE_CHECKING:
    from faults.harness import FaultHarness

_TAKES_ALL: Final = os.environ.get("BBCACHE_FAULTS") == "all"


@pytest.mark.slow
@pytest.mark.timeout(7200 if _TAKES_ALL else 120)
def test_nothing_served_is_wrong_or_lost(harness: FaultHarness) -> None:
    """After each kill what was served is there, whole, and the accounting equal the directory."""
    count = 1000 if _TAKES_ALL else 4
    seed = random.randrange(1 << 30)
    tally = kills.kill_again_and_again(harness.benches[0], count, seed)
    assert not tally.complaints, f"seed {seed}, {tally}: {tally.complaints[:5]}"
    assert tally.kills >= count
    assert tally.hits > 0
    assert tally.refreshes > 0
