"""The processes of `test_default_signals`: their signals arrive ignored or blocked."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from bbcache.errors import PostgresError
from bbcache.postgres.server.cluster import Cluster, PostgresBinaries
from bbcache.postgres.server.user import ServerUser


def _arrive(how: str) -> None:
    """Set signals as if this process had inherited them from its parent."""
    numbers = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}
    if how == "blocked":
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    else:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


def _say(text: str) -> None:
    sys.stdout.write(text)


def show(how: str) -> None:
    """Print the signals and the ids of a program that is started as the server's user."""
    _arrive(how)
    command = ["/bin/grep", "-E", "^(Sig(Blk|Ign)|Uid|Gid|Groups)", "/proc/self/status"]
    done = subprocess.run(
        **ServerUser.current().subprocess_kwargs(command), check=True, capture_output=True
    )
    _say(done.stdout.decode())


def start_in_no_time(how: str, bindir: str, pgdata_dir: str) -> None:
    """Print whether a server that is not ready in time has left its pid file."""
    _arrive(how)
    cluster = Cluster(PostgresBinaries.find(bindir), pgdata_dir)
    Path(pgdata_dir, "recovery.signal").touch()
    try:
        cluster.start({"restore_command": "sleep 600"}, timeout_s=0.1)
    except PostgresError as error:
        has_pid_file = Path(pgdata_dir, "postmaster.pid").exists()
        _say(f"{'was not ready in time' in str(error)} {has_pid_file}\n")


def start_and_stop(how: str, bindir: str, pgdata_dir: str) -> None:
    """Start, use and stop a server."""
    _arrive(how)
    cluster = Cluster(PostgresBinaries.find(bindir), pgdata_dir, settings={"fsync": "off"})
    cluster.start()
    _say(cluster.psql("SELECT 1") + "\n")
    cluster.stop()
