"""A pageserver that is killed at random moments loses no row that was committed."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from pageserver.compute_kills import Killer, committed

if TYPE_CHECKING:
    from pathlib import Path

    from pageserver.conftest import Lab

pytestmark = pytest.mark.postgres

_KILLS = int(os.environ.get("BBCACHE_COMPUTE_KILLS", "3"))


def test_kills_at_random_moments(lab: Lab, tmp_path: Path) -> None:
    """Of a start, a boot, work and a stop with its takeover; servers are left running.

    ``BBCACHE_COMPUTE_KILLS`` says how many; the counts are printed.
    """
    address = lab.add_timeline()
    lab.play(address, "create table t as select 0 i")
    numbers = tmp_path / "numbers"
    numbers.touch()
    seed = random.randrange(1 << 30)
    killer = Killer(lab, address, numbers, random.Random(seed))
    lab.close()
    for _ in range(_KILLS):
        killer.kill_once()
    lab.open()
    found = {number for (number,) in lab.read(address, "select i from t")}
    assert committed(numbers) <= found
    print(  # noqa: T201 - the counts of a long run
        f"seed {seed}: {_KILLS} kills {dict(killer.killed_in)}, left {dict(killer.left)}, "
        f"{len(committed(numbers))} rows committed, none lost"
    )
