"""The tests say the same in the background as in the foreground."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_IN_A_BACKGROUND = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
# They raise signals in the tests' process, and end a server and commands by them.
_REPRESENTATIVE = (
    "tests/cli/test_stop_signals.py",
    "tests/postgres/server/test_cluster.py::test_start_in_no_time",
    f"tests/cli/test_serve.py::test_a_signal_lets_clients_end_what_they_are_at[{signal.SIGINT:d}]",
)


def ignore_and_block() -> None:
    """Do what nohup, cron and some CI runners do, and what a parent does that waits for signals.

    The first ignore signals, the last has blocked them. Undoing one leaves the other.
    """
    for number in _IN_A_BACKGROUND:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_IN_A_BACKGROUND, signal.SIGTERM})


def test_tests_of_signals_in_the_background() -> None:
    """Tests that send signals pass, whatever the dispositions that pytest starts with."""
    plugins = ["-p", "no:cacheprovider", "-p", "pytest_timeout"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, *_REPRESENTATIVE],
        cwd=_ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # to load all takes a second
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=ignore_and_block,
    )
    assert done.returncode == 0, done.stdout
