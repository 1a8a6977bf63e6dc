"""A pageserver that works without end, is killed again and again, and must lose no commit.

Its servers are left running. It appends each number that it has committed to a file, once
the commit was acknowledged; each boot of a compute node compares the table with the file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from prometheus_client import CollectorRegistry

from bbcache import BasebackupCacheConfig, TenantId, TimelineId
from bbcache.pageserver import Pageserver
from bbcache.postgres.server.cluster import PostgresBinaries

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from pageserver.conftest import Address, Lab

PHASES = ("start", "boot", "work", "stop")
_ROWS_A_ROUND = 5
_FIRST_GUESS_S = 0.2  # how long a phase takes


def live(root: str, bindir: str, ids: list[str], settings: dict[str, str], numbers: str) -> None:
    """The life of the pageserver: rounds of boot, work and stop, until it is killed."""
    say("start")
    address = TenantId.from_str(ids[0]), TimelineId.from_str(ids[1])
    binaries, config = PostgresBinaries.find(bindir), BasebackupCacheConfig()
    pageserver = Pageserver(Path(root), binaries, config, CollectorRegistry())
    while True:
        say("boot")
        with pageserver.open_basebackup(*address).file as archive:
            compute = pageserver.make_compute(*address, archive)
        compute.start(settings)
        with psycopg.connect(compute.cluster.conninfo(), autocommit=True) as connection:
            work(connection, Path(numbers))
        say("stop")
        compute.stop()


def work(connection: psycopg.Connection, numbers: Path) -> None:
    """Compare what is there with what was committed, and commit some more."""
    say("work")
    found = {number for (number,) in connection.execute("select i from t")}
    lost = committed(numbers) - found
    if lost:
        say(f"lost {sorted(lost)}")
        sys.exit(1)
    first = max(found) + 1
    with numbers.open("a", buffering=1) as file:
        for number in range(first, first + _ROWS_A_ROUND):
            connection.execute("insert into t values (%s)", [number])
            file.write(f"{number}\n")


def committed(numbers: Path) -> set[int]:
    """The numbers whose commits were acknowledged; a kill may have cut the last line."""
    lines = numbers.read_text().splitlines(keepends=True)
    return {int(line) for line in lines if line.endswith("\n")}


def say(what: str) -> None:
    """One line on stdout, at once."""
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


class Killer:
    """Kills the pageserver of a lab again and again.

    Attributes:
        killed_in: how many kills there were in each phase.
        left: how often each was found after a kill: a compute node that runs, one that
            has ended, one that was never started, and a takeover half-way.
    """

    def __init__(self, lab: Lab, address: Address, numbers: Path, rng: random.Random) -> None:
        self.killed_in: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self._lab = lab
        self._timelines_dir = lab.timeline(address).pgdata_dir.parent
        self._life = json.dumps(
            {
                "root": str(lab.root),
                "bindir": str(lab.binaries.bindir),
                "ids": [str(each) for each in address],
                "settings": {**lab.settings},
                "numbers": str(numbers),
            }
        )
        self._rng = rng
        self._lasts_s = dict.fromkeys(PHASES, _FIRST_GUESS_S)

    def kill_once(self) -> None:
        """Start the pageserver, and kill it at a random moment of a random phase."""
        phase = self._rng.choice(PHASES)
        round_number = 1 if phase == "start" else self._rng.randint(1, 2)
        argv = [sys.executable, __file__, self._life]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            try:
                for said in self._phases(process):
                    round_number -= said == phase
                    if round_number == 0:
                        time.sleep(self._rng.uniform(0, 1.2 * self._lasts_s[phase]))
                        break
            finally:
                process.kill()
        self.killed_in[phase] += 1
        self._look()

    def _phases(self, process: subprocess.Popen[str]) -> Iterator[str]:
        """The phases as the process enters them, each timed when the next one begins."""
        assert process.stdout is not None
        last, begun_s = "", 0.0
        for line in process.stdout:
            said = line.strip()
            assert said in PHASES, f"the pageserver says: {said}"
            if last:
                self._lasts_s[last] = (self._lasts_s[last] + time.monotonic() - begun_s) / 2
            last, begun_s = said, time.monotonic()
            yield said
        raise AssertionError("the pageserver has ended by itself")

    def _look(self) -> None:
        names = [path.name for path in (self._lab.root / "computes").iterdir()]
        for name in names:
            if (self._lab.root / "computes" / name / "postmaster.pid").exists():
                self.left["running"] += 1
            elif f"{name}.started" in names:
                self.left["ended"] += 1
            elif "." not in name:
                self.left["never started"] += 1
        self.left["half-way"] += len(list(self._timelines_dir.iterdir())) > 1


if __name__ == "__main__":
    live(**json.loads(sys.argv[1]))
