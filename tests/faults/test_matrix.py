"""Whatever call fails: no hang, no crash, nothing wrong served, and a good start after it.

The normal run takes a share, which each run chooses at random: of each group of calls that are
alike, one call fails in an eighth of all ways, and every way to fail meets an eighth of the
groups. ``BBCACHE_FAULTS=all`` takes every call.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Final

import pytest
from faults import matrix
from faults.life import STORIES

from bbcache.storage.entry_names import PREFIX

if TYPE_CHECKING:
    from faults.calls import Call
    from faults.harness import FaultHarness

_TAKES_ALL: Final = os.environ.get("BBCACHE_FAULTS") == "all"
_SHARE: Final = 8  # a normal run takes one in so many
_FIRST: Final = random.randrange(_SHARE)


@pytest.mark.slow
@pytest.mark.timeout(7200 if _TAKES_ALL else 120)
@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("name", matrix.COLUMNS)
def test_a_life_outlives_every_fault(
    harness: FaultHarness, life_calls: dict[str, list[Call]], name: str, story: str
) -> None:
    """A call that fails, or ends the process, costs at most a miss."""
    column, calls = matrix.COLUMNS[name], life_calls[story]
    first = (_FIRST + list(matrix.COLUMNS).index(name)) % _SHARE
    groups = slice(None) if column.only else slice(first, None, _SHARE)
    faults = matrix.share_of_column(column, calls, random.Random(random.random()), groups)
    if _TAKES_ALL:
        faults = matrix.whole_column(column, calls)
    summary = matrix.run(harness, faults, story)
    assert not summary.bad, "\n".join([str(summary), *map(str, summary.bad[:5])])
    # Lives differ by a few calls. A transfer of one byte cannot be short, and a share of the short
    # ones has so few calls that it may have no other.
    if _TAKES_ALL or not column.only:
        assert summary.met_count >= len(faults) / 2, str(summary)


def test_a_life_uses_every_kind_of_call(life_calls: dict[str, list[Call]]) -> None:
    """The life is whole: it makes every call that the store, the lock and the reader know."""
    made = {call.op for call in life_calls["used"]}
    assert made >= {
        *("open", "close", "read", "pread", "write", "pwrite", "fsync", "ftruncate", "flock"),
        *("stat", "mkdir", "rename", "unlink", "opendir", "readdir", "closedir"),
    }


def test_a_life_prepares_on_two_threads_at_once(life_calls: dict[str, list[Call]]) -> None:
    """Prepares, gets and clean-up come from threads of their own."""
    calls = life_calls["used"]
    writes = [call for call in calls if call.op == "write" and PREFIX in call.path]
    assert len({call.thread for call in writes}) == 2
    assert len({call.thread for call in calls}) >= 4
