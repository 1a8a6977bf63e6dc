"""Processes that start guarded servers and are killed; each says what it has made, as JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bbcache.postgres.server.binaries import PostgresBinaries
from bbcache.postgres.server.cluster import Cluster
from bbcache.postgres.server.guard import Guard

if TYPE_CHECKING:
    from pathlib import Path

_LONG_S = 120


def _say(**said: object) -> None:
    print(json.dumps({name: str(value) for name, value in said.items()}), flush=True)  # noqa: T201 - to its parent


def _guarded(parent: str) -> tuple[Guard, Path]:
    guard = Guard()
    directory = guard.make_directory(parent, "guarded-")
    directory.chmod(0o711)
    return guard, directory


def serve(pg_bin: str, template: str, parent: str) -> None:
    """Start a server, and a program and a forked child that live on; then be killed."""
    guard, directory = _guarded(parent)
    pgdata_dir = directory / "pgdata"
    subprocess.run(["cp", "-a", "--", template, pgdata_dir], check=True)
    cluster = Cluster(PostgresBinaries.find(pg_bin), pgdata_dir, guard=guard)
    cluster.start({"fsync": "off"})
    program = subprocess.Popen(["sleep", str(_LONG_S)])
    forked_pid = os.fork()
    if forked_pid == 0:
        time.sleep(_LONG_S)
        os._exit(0)
    _say(
        directory=directory,
        socket_dir=cluster.socket_dir,
        pid=cluster.pid,
        guard_pid=guard.pid,
        others=f"{program.pid},{forked_pid}",
    )
    os.kill(os.getpid(), signal.SIGKILL)


def make(pg_bin: str, parent: str) -> None:
    """Run initdb in a guarded directory until killed."""
    guard, directory = _guarded(parent)
    cluster = Cluster(PostgresBinaries.find(pg_bin), directory / "pgdata", guard=guard)
    _say(directory=directory, guard_pid=guard.pid)
    cluster.initdb(["--no-sync"])
    os.kill(os.getpid(), signal.SIGKILL)  # it was faster


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
