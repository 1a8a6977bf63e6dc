"""`kill -9` at random moments of a cache under load, on one directory all the time."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faults.harness import Bench

_START_S, _WORK_S = 0.05, 0.15  # a kill comes within that time of the start, or of the work
_MOST_WORK_S = 5.0
_SHARE_IN_START = 0.3


@dataclass(slots=True)
class Tally:
    """How a series of kills went.

    Attributes:
        kills: how many lives ended by one.
        hits: basebackups that were served in them, each counted once a life.
        refreshes: LSNs that timelines were moved to.
        harms: entries replaced by bad copies.
        complaints: everything that is not as it must be.
    """

    kills: int = 0
    hits: int = 0
    refreshes: int = 0
    harms: int = 0
    complaints: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.hits} basebackups served, "
            f"{self.refreshes} refreshes, {self.harms} bad copies put in"
        )


def kill_again_and_again(bench: Bench, count: int, seed: int) -> Tally:
    """Start, kill and start again `count` times; then check what is left.

    A busy machine works more slowly: the lives become longer, and go on until there was a
    basebackup that was served, and one that was refreshed.
    """
    directory = bench.directory / "kills"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    data_dir, journal = directory / "cache", directory / "journal"
    rng, tally, work_s, has_worked = random.Random(seed), Tally(), _WORK_S, False
    while (tally.kills < count or not has_worked) and not tally.complaints:
        is_at_work = rng.random() >= _SHARE_IN_START
        ended = bench.fork_server.run(
            "load",
            data_dir,
            kill_after_s=rng.uniform(0, work_s if is_at_work else _START_S),
            kill_from_work=is_at_work,
            journal=str(journal),
            seed=rng.randrange(1 << 30),
        )
        tally.kills += ended.is_killed
        tally.complaints += ended.complaints(may_be_killed=True)
        if ended.status == 0:
            tally.complaints.append("a life ended by itself")
        written = f"\n{journal.read_text()}"
        has_worked = "\nhit " in written and "\ntip " in written
        if not has_worked:
            work_s = min(2 * work_s, _MOST_WORK_S)
    lines = journal.read_text().splitlines()
    tally.complaints += [line for line in lines if line.startswith(("WRONG", "PROBLEM"))]
    tally.hits, tally.refreshes, tally.harms = (
        sum(line.startswith(word) for line in lines) for word in ("hit ", "tip ", "harm ")
    )
    after = bench.fork_server.run("restart", data_dir, survivors=[])
    tally.complaints += [f"at the end: {line}" for line in after.complaints()]
    return tally
