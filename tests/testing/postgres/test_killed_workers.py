"""Runs of pytest that are killed with SIGKILL at random moments leave nothing behind.

``BBCACHE_TESTING_KILLS`` sets how many; each second run builds its snapshot.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from support.cache_helpers import CHILD_DEADLINE_S
from support.helpers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bbcache.testing.postgres import PostgresOptions

pytestmark = [pytest.mark.postgres, pytest.mark.timeout(3600)]

_KILLS: Final = int(os.environ.get("BBCACHE_TESTING_KILLS", "2"))
_LIMIT_S: Final = 30.0
_CONFTEST: Final = """
from bbcache.testing.postgres import snapshot

@snapshot(inputs=["conftest.py"])
def app(db):
    db.psql("CREATE TABLE account AS SELECT generate_series(1, 100) AS id")
"""
_TESTS: Final = """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_database(pg_database, number):
    assert pg_database.psql("SELECT count(*) FROM account") == "100"

def test_server(pg_fresh_server):
    assert pg_fresh_server.psql("SELECT count(*) FROM account") == "100"
"""
_INI: Final = """
[pytest]
bbcache_pg_bin = {bin}
bbcache_pg_cache_dir = {directory}/cache
bbcache_pg_run_dir = {directory}
bbcache_pg_spares = 1
"""


class KilledRuns:
    """A project, and runs of its tests.

    Args:
        directory: short, and reachable for the servers' user.
    """

    def __init__(self, directory: Path, options: PostgresOptions) -> None:
        self.directory = directory
        self._project = directory / "project"
        self._cache_dir = directory / "cache"
        self._sockets_dir = directory / "s"
        self._project.mkdir()
        self._sockets_dir.mkdir(mode=0o711)
        (self._project / "conftest.py").write_text(_CONFTEST)
        (self._project / "test_it.py").write_text(_TESTS)
        ini = _INI.format(bin=options.bin, directory=directory)
        (self._project / "pytest.ini").write_text(ini)

    def start(self, *, is_cold: bool) -> subprocess.Popen[bytes]:
        """Start a run; one that is cold builds the snapshot."""
        if is_cold:
            shutil.rmtree(self._cache_dir, ignore_errors=True)
        plugins = ["-p", "pytest_bbcache", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", "-q", *plugins]
        env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TMPDIR": str(self._sockets_dir)}
        with (self.directory / "log").open("wb") as log:
            return subprocess.Popen(
                command, cwd=self._project, env={**os.environ, **env}, stdout=log, stderr=log
            )

    def kill_with_guard(self, run: subprocess.Popen[bytes]) -> None:
        """Kill a run once a server of it has a socket, and what would clean up after it."""
        wait_until(lambda: any(self._sockets_dir.glob("*/.s.PGSQL.*")), CHILD_DEADLINE_S)
        os.kill(run.pid, signal.SIGSTOP)
        for children in Path(f"/proc/{run.pid}/task").glob("*/children"):
            for pid in children.read_text().split():
                if b"bbcache-guard" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)
        run.kill()
        run.wait()
        assert any(self._sockets_dir.glob("*/.s.PGSQL.*")), "somebody has cleaned up"

    def leftovers(self) -> list[str]:
        """The leftovers of all runs: processes, directories of theirs, half-written snapshots."""
        left = [*self.directory.glob("bbcache-testing-*/run-*"), *self._sockets_dir.iterdir()]
        left += self._cache_dir.glob(".*.part")
        return [f"process {pid}" for pid in self._processes()] + [str(path) for path in left]

    def _processes(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if os.fsencode(self.directory) in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                pass  # it has ended
        return found


@pytest.fixture
def runs(own_dir: Path, options: PostgresOptions) -> Iterator[KilledRuns]:
    """Runs below a directory that only they use."""
    yield KilledRuns(own_dir, options)
    assert len(list(own_dir.glob("bbcache-testing-*/spare-*"))) <= 4, "spares pile up"


def test_the_next_run_cleans_up_after_one_without_guard(runs: KilledRuns) -> None:
    """It ends the servers, and removes the directories of their sockets, too."""
    runs.kill_with_guard(runs.start(is_cold=False))
    assert runs.start(is_cold=False).wait() == 0, (runs.directory / "log").read_text()
    wait_until(lambda: runs.leftovers() == [], CHILD_DEADLINE_S)


def test_killed_runs_leave_nothing(runs: KilledRuns) -> None:
    """Neither a server nor a directory half a minute later, whatever was under way."""
    durations_s = {}
    for is_cold in (True, False):
        started_s = time.monotonic()
        assert runs.start(is_cold=is_cold).wait() == 0, (runs.directory / "log").read_text()
        durations_s[is_cold] = time.monotonic() - started_s
        wait_until(lambda: runs.leftovers() == [])
    took_s = []
    count = 0
    while count < _KILLS:
        is_cold = count % 2 == 0
        moment_s = random.uniform(0, durations_s[is_cold])
        started_s = time.monotonic()
        run = runs.start(is_cold=is_cold)
        try:
            run.wait(moment_s)
            durations_s[is_cold] = time.monotonic() - started_s  # it was faster than the last
            continue
        except subprocess.TimeoutExpired:
            run.kill()
        run.wait()
        killed_s = time.monotonic()
        count += 1
        had_left = bool(runs.leftovers())
        while left := runs.leftovers():
            assert time.monotonic() - killed_s < _LIMIT_S, f"killed after {moment_s:.2f} s: {left}"
            time.sleep(0.02)
        took_s += [time.monotonic() - killed_s] * had_left
    print(  # noqa: T201 - the counts of a long run
        f"{_KILLS} kills, {len(took_s)} of them with something to clean up; that was gone after "
        f"{statistics.median(took_s or [0]):.2f} s (median), {max(took_s or [0]):.2f} s (at most)"
    )
